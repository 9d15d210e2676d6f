//! Every family of models and every kind of scaled positions against transformers: frequencies, hidden
//! states, logits, loss and gradients, in training, in the engine, and through a GGUF file.
//!
//! A set is a folder under `tests/fixtures/golden/families`, or under a folder of `BITNET_FIXTURES` or its
//! `families`, whose `meta.json` names its `family`. `README.md` there says what it holds.

use std::path::{Path, PathBuf};

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::convert::gguf::{GgufForm, write_gguf};
use bitnet_format::convert::no_progress;
use bitnet_format::gguf::Metadata;
use bitnet_format::rope::RopeFrequencies;
use bitnet_format::{DType, RopeScaling, StoredModel};
use bitnet_train::model::{LanguageModel, SegmentStarts, token_logits};
use bitnet_train::train::{CrossEntropy, GradAccumulator, LossReduction, TokenBatch};
use burn::tensor::Device;

use super::sets::{Set, check, host, ids, largest_difference, relative_distance};

/// The largest difference of a logit or a hidden state.
const LOGIT: f64 = 1e-4;

fn families() -> Vec<Set> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/families");
    let others = std::env::var_os("BITNET_FIXTURES").unwrap_or_default();
    let others = std::env::split_paths(&others).flat_map(|path| [path.join("families"), path]);
    let folders: Vec<PathBuf> = std::iter::once(own).chain(others).collect();
    let mut found = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let entries = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let sets = entries.filter(|dir| dir.join("config.json").exists()).map(|dir| Set { dir });
        found.extend(sets.filter(Set::is_family));
    }
    found.sort_by(|a, b| a.dir.cmp(&b.dir));
    assert!(found.len() >= 16, "the sets of the repository are there");
    found
}

fn open(set: &Set) -> StoredModel {
    StoredModel::open(&set.dir).unwrap_or_else(|error| panic!("{error}"))
}

/// Logits of all rows by the engine.
fn engine(model: &Model, rows: &[Vec<i32>]) -> Vec<f32> {
    let threads = ThreadPool::new(2).unwrap();
    let mut workspace = Workspace::new(&threads);
    let mut all = Vec::new();
    for row in rows {
        let tokens: Vec<u32> = row.iter().map(|&id| id as u32).collect();
        let logits = model.forward_all(&mut workspace, &mut model.new_cache(), &tokens).unwrap();
        all.extend_from_slice(logits);
    }
    all
}

/// Hidden states, layer by layer, and logits by the training forward.
fn training(model: &LanguageModel, rows: &[Vec<i32>]) -> (Vec<Vec<f32>>, Vec<f32>) {
    let (device, shape) = (Device::flex(), [rows.len(), rows[0].len()]);
    let documents = SegmentStarts::whole_rows(shape[0], shape[1]);
    let tokens = ids(&rows.concat(), shape, &device);
    let states = model.hidden_states(tokens.clone(), &documents);
    let logits = token_logits(model.forward(tokens, &documents).flatten(0, 1), model.head());
    (states.into_iter().map(host).collect(), host(logits))
}

#[test]
fn golden_families_frequencies() {
    for set in families() {
        let (file, spec) = (set.file("forward.safetensors"), set.spec());
        let length = file.shape("input_ids")[1];
        let rope = RopeFrequencies::of(&spec);
        let rope = rope.for_length(length);
        let apart = rope
            .values()
            .iter()
            .zip(file.floats("inv_freq"))
            .map(|(ours, theirs)| f64::from(ours.to_bits().abs_diff(theirs.to_bits())));
        // torch's own powers differ by an ulp from build to build.
        let most =
            if matches!(spec.rope_scaling, Some(RopeScaling::Dynamic { .. })) { 4.0 } else { 1.0 };
        check(&set, "frequencies, ulp", apart.fold(0.0, f64::max), most);
        let scaling = file.floats("attention_scaling");
        check(&set, "factor", largest_difference(&[rope.attention_factor()], &scaling), 1e-7);
    }
}

#[test]
fn golden_families_hidden_states_and_logits() {
    for set in families() {
        let file = set.file("forward.safetensors");
        let model = LanguageModel::read(&open(&set), &Device::flex()).unwrap();
        let (states, logits) = training(&model, &set.rows("forward.safetensors", "input_ids"));
        for (layer, state) in states.iter().enumerate() {
            let expected = file.floats(&format!("hidden.{layer}"));
            check(&set, "hidden state", largest_difference(state, &expected), LOGIT);
        }
        let expected = file.floats("logits");
        check(&set, "logits", largest_difference(&logits, &expected), LOGIT);
        let (_, logits) = training(&model, &set.rows("forward.safetensors", "short.input_ids"));
        let expected = file.floats("short.logits");
        check(&set, "logits of short rows", largest_difference(&logits, &expected), LOGIT);
    }
}

/// Rows of which all tokens are read, as transformers does, though the last has no target: `dynamic`
/// frequencies depend on their number.
fn whole_rows(rows: &[i32], width: usize) -> TokenBatch {
    let next = |at: usize| (at + 1) % width;
    let targets = (0..rows.len()).map(|at| rows[at / width * width + next(at % width)]).collect();
    let loss_mask = (0..rows.len()).map(|at| f32::from(next(at % width) != 0)).collect();
    let documents = SegmentStarts::whole_rows(rows.len() / width, width);
    TokenBatch { tokens: rows.to_vec(), targets, loss_mask, documents }
}

#[test]
fn golden_families_loss_and_gradients() {
    let device = Device::flex().autodiff();
    for set in families() {
        let (rows, file) =
            (set.rows("forward.safetensors", "input_ids"), set.file("grads.safetensors"));
        let (tokens, width) = (rows.concat(), rows[0].len());
        let (model, _) = LanguageModel::read_for_training(&open(&set), &device).unwrap();
        let batch = whole_rows(&tokens, width);
        let sum = GradAccumulator::over(&model, &CrossEntropy, &[vec![batch]], &device, &|| false);
        let sum = sum.unwrap();
        let loss = (f64::from(sum.loss()) - set.meta()["loss_mean_all"].as_f64().unwrap()).abs();
        check(&set, "loss", loss, 1e-5);
        let found = sum.reduced_gradients(LossReduction::Mean);
        let names = bitnet_train::model::named_values(&model).into_iter().map(|(name, _)| name);
        for (name, found) in names.zip(found) {
            let expected = file.floats(&format!("mean_all.{name}"));
            // A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
            let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let found = host(found);
            let error = if largest < 1e-6 {
                largest_difference(&found, &expected)
            } else {
                relative_distance(&found, &expected)
            };
            check(&set, &name, error, 2e-4);
        }
    }
}

#[test]
fn golden_families_in_the_engine() {
    for set in families() {
        let model = Model::load(&set.dir).unwrap();
        for (tokens, logits) in [("input_ids", "logits"), ("short.input_ids", "short.logits")] {
            let found = engine(&model, &set.rows("forward.safetensors", tokens));
            let expected = set.file("forward.safetensors").floats(logits);
            check(&set, "engine", largest_difference(&found, &expected), LOGIT);
        }
    }
}

#[test]
fn golden_families_through_gguf() {
    for set in families() {
        let (source, dir) = (open(&set), tempfile::tempdir().unwrap());
        let path = dir.path().join("x.gguf");
        let form = GgufForm {
            matrices: DType::F32,
            embedding: DType::F32,
            name: "x".to_owned(),
            tokenizer: Metadata::default(),
        };
        let written = write_gguf(&path, &source, &form, &mut no_progress);
        let spec = source.spec();
        let untold = match &spec.rope_scaling {
            Some(RopeScaling::Dynamic { .. }) => true,
            Some(RopeScaling::Yarn(yarn)) => !yarn.truncate,
            _ => false,
        };
        if spec.quantise || untold {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("ternary") || error.contains("[rope_scaling]"), "{error}");
            continue;
        }
        written.unwrap();
        let model = Model::load(&path).unwrap();
        let found = engine(&model, &set.rows("forward.safetensors", "input_ids"));
        let expected = set.file("forward.safetensors").floats("logits");
        check(&set, "engine, GGUF", largest_difference(&found, &expected), LOGIT);
    }
}

#[test]
fn golden_families_agree_by_no_accident() {
    for set in families() {
        let expected = set.file("forward.safetensors").floats("logits");
        let model = Model::load(&set.dir).unwrap();
        let mut other = set.rows("forward.safetensors", "input_ids");
        for row in &mut other {
            row.swap(0, 1);
        }
        let found = engine(&model, &other);
        assert!(largest_difference(&found, &expected) > 1e-2, "{}", set.name());
    }
}
