//! Side adapters in a whole pass: the bits do not depend on how it is run.

use bitnet_engine::{EngineError, Kernel, Model, Sequence, Workspace};
use bitnet_format::adapter::{
    Adapter, AdapterDescription, AdapterKind, LowRankFactor, matching_entries, write_adapter,
};
use bitnet_format::{DType, TensorEntry};

use crate::random_model::{SPLIT, model, threads};

const ALL: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// An adapter of rank 5; `b` gives the values of every B.
fn adapter(model: &Model, kind: AdapterKind, targets: &[&str], b: fn(usize) -> f32) -> Adapter {
    let dir = tempfile::tempdir().unwrap();
    let base_hash = Some("0".repeat(64));
    let description =
        AdapterDescription { kind, rank: 5, alpha: 10.0, base_path: String::new(), base_hash };
    let targets: Vec<_> = targets.iter().map(|&word| word.to_owned()).collect();
    let adapted = matching_entries(model.spec(), &targets).unwrap();
    let values = |entry: &TensorEntry, factor: LowRankFactor| {
        let count = factor.shape(entry, 5).iter().product();
        let a = |i: usize| (i * 31 % 17) as f32 / 170.0 - 0.05;
        Ok((0..count).map(|i| if factor == LowRankFactor::A { a(i) } else { b(i) }).collect())
    };
    write_adapter(dir.path(), &description, model.spec(), &adapted, DType::F32, values).unwrap();
    Adapter::open(dir.path(), model.spec()).unwrap()
}

fn adapted(targets: &[&str], b: fn(usize) -> f32) -> Model {
    let model = model(SPLIT);
    let adapter = adapter(&model, AdapterKind::Side, targets, b);
    model.with_adapter(&adapter).unwrap()
}

fn some(i: usize) -> f32 {
    (i * 7 % 13) as f32 / 130.0 - 0.05
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| i * 7919 % 2100).collect()
}

/// The bits of all logits in one call.
fn together(model: &Model, tokens: &[u32], count: usize) -> Vec<u32> {
    let pool = threads(count);
    let mut workspace = Workspace::new(&pool);
    let logits = model.forward_all(&mut workspace, &mut model.new_cache(), tokens).unwrap();
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn an_adapter_changes_the_logits_and_one_of_zeros_does_not() {
    let (plain, tokens) = (together(&model(SPLIT), &prompt(9), 1), prompt(9));
    assert!(together(&adapted(&ALL, |_| 0.0), &tokens, 1) == plain);
    for word in ALL {
        assert!(together(&adapted(&[word], some), &tokens, 1) != plain, "{word}");
    }
}

#[test]
fn threads_and_the_number_of_tokens_change_no_bit_of_an_adapted_model() {
    let model = adapted(&ALL, some);
    for length in [1, 9, 150] {
        let tokens = prompt(length);
        let one = together(&model, &tokens, 1);
        assert!(one == together(&model, &tokens, 3), "{length} tokens");
        let (pool, mut cache) = (threads(2), model.new_cache());
        let mut workspace = Workspace::new(&pool);
        let mut single = Vec::new();
        for token in &tokens {
            let logits = model.forward(&mut workspace, &mut cache, &[*token]).unwrap();
            single.extend(logits.iter().map(|logit| logit.to_bits()));
        }
        assert!(one == single, "{length} tokens");
    }
}

#[test]
fn the_kernel_changes_no_bit_of_an_adapted_model() {
    let mut model = adapted(&ALL, some);
    let tokens = prompt(6);
    let detected = together(&model, &tokens, 1);
    for kernel in Kernel::available() {
        model = model.with_kernel(kernel);
        assert!(together(&model, &tokens, 1) == detected, "{kernel:?}");
    }
}

#[test]
fn sequences_of_an_adapted_model_are_what_they_are_alone() {
    let (model, pool) = (adapted(&["v_proj", "up_proj", "down_proj"], some), threads(2));
    let mut workspace = Workspace::new(&pool);
    let prompts = [prompt(3), prompt(140), prompt(1)];
    let mut alone = Vec::new();
    for tokens in &prompts {
        let logits = model.forward(&mut workspace, &mut model.new_cache(), tokens).unwrap();
        alone.extend_from_slice(logits);
    }
    let mut caches = [(); 3].map(|()| model.new_cache());
    let places = caches.iter_mut().zip(&prompts);
    let mut sequences: Vec<_> = places.map(|(cache, tokens)| Sequence { cache, tokens }).collect();
    let found = model.forward_batch(&mut workspace, &mut sequences).unwrap();
    assert_eq!(alone, found);
}

#[test]
fn a_latent_adapter_is_no_side_adapter() {
    let model = model(SPLIT);
    let latent = adapter(&model, AdapterKind::Latent, &["q_proj"], some);
    let error = model.with_adapter(&latent).unwrap_err();
    assert!(matches!(error, EngineError::Format(_)));
    assert!(error.to_string().contains("is a latent adapter"), "{error}");
}
