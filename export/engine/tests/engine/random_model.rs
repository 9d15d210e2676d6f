//! Packed folders with random weights, for tests that need a model but no meaning.

use bitnet_engine::{Model, ThreadPool};
use bitnet_format::ModelSpec;
use bitnet_format::convert::hf::write_packed;
use tempfile::TempDir;

/// Large enough that products are split over threads, heads grouped, widths uneven.
pub(crate) const SPLIT: &str = "hidden_size = 256\nintermediate_size = 700\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 2100\n\
    max_position_embeddings = 512\n";

/// As small as a model gets.
pub(crate) const SMALL: &str = "hidden_size = 32\nintermediate_size = 44\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 1\nvocab_size = 50\n\
    max_position_embeddings = 24\n";

/// Writes a packed folder of that shape; the same shape gives the same weights.
pub(crate) fn folder(config: &str) -> TempDir {
    let spec: ModelSpec = toml::from_str(config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut draw = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    write_packed(dir.path(), &spec, |entry| {
        let centre = if entry.is_matrix() { 0.0 } else { 1.0 };
        Ok((0..entry.elements()).map(|_| centre + 0.3 * draw()).collect())
    })
    .unwrap();
    dir
}

pub(crate) fn model(config: &str) -> Model {
    Model::load(folder(config).path()).unwrap()
}

pub(crate) fn threads(count: usize) -> ThreadPool {
    ThreadPool::new(count).unwrap()
}
