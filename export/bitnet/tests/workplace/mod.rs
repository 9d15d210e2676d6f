//! What tests of benchmarks work with: a model that says anything, and files of rows.

use std::path::Path;

use bitnet_format::ModelSpec;
use bitnet_format::convert::hf::write_packed;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_text::train_bpe;
use serde_json::Value;

/// A packed folder with random weights and a context of that many tokens.
pub(crate) fn random_model(model: &Path, context: usize) {
    let spec: ModelSpec = toml::from_str(&format!(
        "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
         num_key_value_heads = 1\nvocab_size = 300\nmax_position_embeddings = {context}\n",
    ))
    .unwrap();
    let mut state = 1u32;
    let mut draw = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    fs_err::create_dir(model).unwrap();
    write_packed(model, &spec, |entry| Ok((0..entry.elements()).map(|_| draw()).collect()))
        .unwrap();
    let texts = ["the cat sat on the mat", "the dog sat on the log, and sang"];
    let tokenizer = train_bpe(texts.into_iter().map(str::to_owned), 290).unwrap();
    fs_err::write(model.join(TOKENIZER_FILE), tokenizer).unwrap();
}

/// A file of JSON lines, in a folder that is made for it.
pub(crate) fn write_rows(path: &Path, rows: impl IntoIterator<Item = Value>) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    let lines: Vec<String> = rows.into_iter().map(|row| format!("{row}\n")).collect();
    fs_err::write(path, lines.concat()).unwrap();
}
