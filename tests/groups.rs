//! Models whose scales belong to groups of weights: the training forward over latents, the one over
//! packed codes, and the engine give the same logits for every kind of them.

use std::path::Path;

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::convert::hf::write_packed_form;
use bitnet_format::convert::no_progress;
use bitnet_format::{ModelSpec, StoredModel, WeightForm};
use bitnet_kernels::Operands;
use bitnet_train::model::{FreshModel, LanguageModel, SegmentStarts, token_logits};
use bitnet_train::ops::OpBackend;
use burn::tensor::Device;

use crate::golden::sets::{host, ids};

const TOKENS: usize = 24;
const SEED: u64 = 4;

fn spec(extra: &str) -> ModelSpec {
    toml::from_str(&format!(
        "hidden_size = 256\nintermediate_size = 512\nnum_hidden_layers = 2\nvocab_size = 200\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nmax_position_embeddings = 64\n\
         initializer_range = 0.05\nembedding_initializer_range = 0.5\n{extra}"
    ))
    .unwrap()
}

fn kinds() -> Vec<String> {
    let mut all = Vec::new();
    for group in ["\"matrix\"", "\"row\"", "64", "128", "256"] {
        for embedding in ["full", "ternary"] {
            for activations in ["int8", "none"] {
                all.push(format!(
                    "quantiser = {{ group = {group} }}\nembedding = \"{embedding}\"\n\
                     activations = \"{activations}\"\ntie_word_embeddings = {}",
                    group != "128"
                ));
            }
        }
    }
    all
}

fn tokens() -> Vec<i32> {
    (0..TOKENS as i32).map(|at| at * at * 7 % 200).collect()
}

fn training(model: &LanguageModel) -> Vec<f32> {
    let documents = SegmentStarts::whole_rows(1, TOKENS);
    let hidden = model.forward(ids(&tokens(), [1, TOKENS], &Device::flex()), &documents);
    host(token_logits(hidden.flatten(0, 1), model.head()))
}

fn engine(path: &Path) -> Vec<f32> {
    let (model, threads) = (Model::load(path).unwrap(), ThreadPool::new(1).unwrap());
    let tokens: Vec<u32> = tokens().into_iter().map(|id| id as u32).collect();
    let mut workspace = Workspace::new(&threads);
    model.forward_all(&mut workspace, &mut model.new_cache(), &tokens).unwrap().to_vec()
}

/// Positions where no logit differs by more than the verification of an export calls close.
fn close(found: &[f32], expected: &[f32]) -> usize {
    assert_eq!((found.len(), expected.len()), (TOKENS * 200, TOKENS * 200));
    let pairs = found.chunks(200).zip(expected.chunks(200));
    let is_close = |(a, b): &(&[f32], &[f32])| a.iter().zip(*b).all(|(a, b)| (a - b).abs() <= 1e-3);
    pairs.filter(is_close).count()
}

#[test]
fn the_trainer_has_the_logits_of_the_engine_on_the_exported_file() {
    for kind in kinds() {
        let (spec, dir) = (spec(&kind), tempfile::tempdir().unwrap());
        let fresh = FreshModel::new(spec.clone(), SEED);
        let form = WeightForm::PackedMultiplying;
        write_packed_form(dir.path(), &fresh, form, &mut no_progress).unwrap();
        let expected = engine(dir.path());
        let latents = LanguageModel::initial(&spec, SEED, &Device::flex());
        let stored = StoredModel::open(dir.path()).unwrap();
        let packed = LanguageModel::read(&stored, &Device::flex()).unwrap();
        let reference = latents.clone().with_backend(OpBackend::reference(Operands::F32));
        // Norms, embedding and head of a file are BF16, which the latents here are not: where the
        // table is ternary all are alike.
        let from_latents = kind.contains("ternary").then_some([latents, reference]);
        let all = from_latents.into_iter().flatten().chain([packed]);
        for (number, model) in all.enumerate() {
            let close = close(&training(&model), &expected);
            // Another order of a sum may move an activation over the border of two 8-bit codes.
            let least = if kind.contains("none") { TOKENS } else { TOKENS - 2 };
            assert!(close >= least, "{kind}, model {number}: {close} of {TOKENS} positions");
        }
    }
}

#[test]
fn latents_of_groups_survive_a_file_and_dequantised_ones_keep_their_codes() {
    use bitnet_format::writer::{TensorData as Floats, write_tensors};
    use bitnet_format::{HfConfig, TensorSource, tensor_table};
    let spec = spec("quantiser = { group = 64 }\nembedding = \"ternary\"");
    let device = Device::flex();
    let fresh = FreshModel::new(spec.clone(), SEED);
    for dequantised in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let values = |entry| {
            if dequantised && tensor_table(&spec).contains(entry) && entry.is_ternary(&spec) {
                fresh.grouped(entry, 0..entry.shape[0]).unwrap().values()
            } else {
                fresh.floats(entry).unwrap()
            }
        };
        let table = tensor_table(&spec);
        let tensors: Vec<_> = table.iter().map(|entry| (entry, values(entry))).collect();
        let tensors = tensors
            .iter()
            .map(|(entry, values)| (entry.name.clone(), Floats::f32(&entry.shape, values)));
        write_tensors(&dir.path().join("model.safetensors"), tensors).unwrap();
        let config = HfConfig { spec: spec.clone(), form: WeightForm::Latent };
        fs_err::write(dir.path().join("config.json"), config.to_json("float32")).unwrap();
        let stored = StoredModel::open(dir.path()).unwrap();
        let (model, kept) = LanguageModel::read_for_training(&stored, &device).unwrap();
        assert_eq!(kept, if dequantised { 15 } else { 0 }, "seven matrices a layer, and a table");
        let found = training(&model);
        let expected = training(&LanguageModel::initial(&spec, SEED, &device));
        assert!(found == expected, "dequantised: {dequantised}");
        let other = engine(dir.path());
        assert!(close(&other, &found) >= TOKENS - 2, "the engine reads it too");
    }
}
