//! Folders and requests that are refused, and scoring.

use std::path::Path;

use bitnet_engine::{EngineError, HeadPrecision, Model, Workspace, score};
use bitnet_format::convert::hf::write_packed;
use bitnet_format::folder::{CONFIG_FILE, MODEL_FILE};
use bitnet_format::writer::{TensorData, write_tensors};
use bitnet_format::{HfConfig, StoredModel, TensorEntry, TensorSource, WeightForm, tensor_table};

use crate::random_model::{SMALL, model, threads};

/// Writes a folder of float matrices.
fn floats(dir: &Path, spec: &str) {
    floats_but(dir, spec, &[], 1.0);
}

/// Writes one whose tensors of these names are multiplied by a factor.
fn floats_but(dir: &Path, spec: &str, changed: &[&str], factor: f32) {
    let config = HfConfig { spec: toml::from_str(spec).unwrap(), form: WeightForm::Latent };
    let values = |entry: TensorEntry| {
        let factor = if changed.contains(&entry.name.as_str()) { factor } else { 1.0 };
        let value = |i: usize| factor * ((i * 7 % 13) as f32 - 5.5);
        let values: Vec<f32> = (0..entry.elements()).map(value).collect();
        (entry.name, TensorData::bf16(&entry.shape, &values))
    };
    let tensors = tensor_table(&config.spec).into_iter().map(values);
    write_tensors(&dir.join(MODEL_FILE), tensors).unwrap();
    fs_err::write(dir.join(CONFIG_FILE), config.to_json("bfloat16")).unwrap();
}

#[test]
fn a_dense_model_gives_the_same_logits_at_once_and_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    for extra in ["", "attention_bias = true", "qk_norm = true", "sub_norms = false"] {
        floats(dir.path(), &format!("{SMALL}\nquantise = false\n{extra}"));
        let model = Model::load(dir.path()).unwrap();
        let pool = threads(2);
        let (mut workspace, mut cache) = (Workspace::new(&pool), model.new_cache());
        let tokens: Vec<u32> = (0..7).map(|i| i * 3 % 8).collect();
        let all = model.forward_all(&mut workspace, &mut model.new_cache(), &tokens).unwrap();
        let all = all.to_vec();
        for (token, expected) in tokens.chunks(1).zip(all.chunks(model.spec().vocab_size)) {
            let logits = model.forward(&mut workspace, &mut cache, token).unwrap();
            assert!(logits == expected && logits.iter().any(|&logit| logit != 0.0), "{extra}");
        }
    }
}

#[test]
fn latents_are_quantised_on_the_way() {
    let [master, packed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    floats(master.path(), SMALL);
    let source = StoredModel::open(master.path()).unwrap();
    write_packed(packed.path(), source.spec(), |entry| source.floats(entry)).unwrap();
    let [a, b] = [&master, &packed].map(|dir| Model::load(dir.path()).unwrap());
    let pool = threads(1);
    let logits = |model: &Model| {
        let mut workspace = Workspace::new(&pool);
        model.forward(&mut workspace, &mut model.new_cache(), &[1, 2, 3]).unwrap().to_vec()
    };
    assert_eq!(logits(&a), logits(&b));
}

#[test]
fn tensors_of_zeros_are_known_in_every_form() {
    let zeros = [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.mlp.down_proj.weight",
    ];
    let [master, packed, whole] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    floats_but(master.path(), SMALL, &zeros, 0.0);
    floats(whole.path(), SMALL);
    let source = StoredModel::open(master.path()).unwrap();
    write_packed(packed.path(), source.spec(), |entry| source.floats(entry)).unwrap();
    for head in [HeadPrecision::File, HeadPrecision::Int8] {
        let load = |dir: &Path| Model::load_with(dir, head).unwrap();
        assert_eq!(load(master.path()).all_zero(), zeros);
        assert_eq!(load(packed.path()).all_zero(), zeros);
        assert!(load(whole.path()).all_zero().is_empty());
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_not_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    floats_but(dir.path(), SMALL, &["model.norm.weight"], 3e37);
    let (model, pool) = (Model::load(dir.path()).unwrap(), threads(1));
    let (mut workspace, mut cache) = (Workspace::new(&pool), model.new_cache());
    let next = model.forward(&mut workspace, &mut cache, &[1, 2]);
    assert!(matches!(next, Err(EngineError::NotANumber)));
    let all = model.forward_all(&mut workspace, &mut model.new_cache(), &[1, 2]);
    assert!(matches!(all, Err(EngineError::NotANumber)));
    assert!(matches!(score(&model, &[1, 2], &pool), Err(EngineError::NotANumber)));
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_its_path() {
    let error = Model::load(Path::new("no/such/model")).err().unwrap().to_string();
    assert!(error.contains("no/such/model"), "{error}");
}

#[test]
fn tokens_that_do_not_fit_leave_the_cache_as_it_was() {
    let (model, pool) = (model(SMALL), threads(1));
    let (mut cache, mut workspace) = (model.new_cache(), Workspace::new(&pool));
    model.forward(&mut workspace, &mut cache, &[1; 20]).unwrap();
    for (tokens, message) in [
        (&[][..], "the prompt holds no token"),
        (&[0; 5], "25 tokens do not fit the model's context of 24"),
        (&[49, 50], "token id 50 lies outside the vocabulary of 50"),
    ] {
        let error = model.forward(&mut workspace, &mut cache, tokens).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(cache.len(), 20);
    }
    model.forward(&mut workspace, &mut cache, &[0; 4]).unwrap();
}

#[test]
fn scores_are_those_of_the_logits() {
    let (model, pool) = (model(&SMALL.replace("= 24", "= 99")), threads(1));
    let tokens: Vec<u32> = (0..70).map(|i| i * 13 % 50).collect(); // more than one run of logits
    let scores = score(&model, &tokens, &pool).unwrap();
    let mut workspace = Workspace::new(&pool);
    let logits = model.forward_all(&mut workspace, &mut model.new_cache(), &tokens).unwrap();
    assert_eq!((scores.logprobs.len(), scores.argmax.len()), (70, 70));
    assert_eq!(scores.logprobs[0], None);
    for at in 0..70 {
        let logits = &logits[at * 50..][..50];
        assert!(logits.iter().all(|&logit| logit <= logits[scores.argmax[at] as usize]));
        let Some(&next) = tokens.get(at + 1) else { continue };
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = f64::from(logits[next as usize]) - sum.ln();
        assert!((scores.logprobs[at + 1].unwrap() - expected).abs() < 1e-6);
    }
    assert!(matches!(score(&model, &[], &pool), Err(EngineError::EmptyPrompt)));
}
