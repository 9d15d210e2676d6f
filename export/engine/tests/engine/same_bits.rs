//! Nothing about how a pass is run shows in its logits.

use bitnet_engine::{Kernel, Model};

use crate::random_model::{SPLIT, model, threads};

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| i * 7919 % 2100).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits of all tokens in one call.
fn together(model: &Model, tokens: &[u32], threads: usize) -> Vec<u32> {
    let pool = crate::random_model::threads(threads);
    bits(&model.forward_all(&mut model.new_cache(), tokens, &pool).unwrap())
}

#[test]
fn one_token_at_a_time_gives_the_logits_of_one_call() {
    let (model, pool) = (model(SPLIT), threads(2));
    let tokens = prompt(40);
    let mut cache = model.new_cache();
    let mut one_by_one = Vec::new();
    for token in &tokens {
        one_by_one.extend(bits(&model.forward(&mut cache, &[*token], &pool).unwrap()));
    }
    assert_eq!(cache.len(), tokens.len());
    assert!(one_by_one == together(&model, &tokens, 2));
}

#[test]
fn a_long_prompt_in_pieces_gives_the_logits_of_one_call() {
    // 300 tokens: more than go through the blocks together.
    let (model, pool) = (model(SPLIT), threads(2));
    let tokens = prompt(300);
    let whole = model.forward(&mut model.new_cache(), &tokens, &pool).unwrap();
    let mut cache = model.new_cache();
    model.forward(&mut cache, &tokens[..70], &pool).unwrap();
    model.forward(&mut cache, &prompt(100), &pool).unwrap();
    cache.truncate(70);
    let rest = model.forward(&mut cache, &tokens[70..], &pool).unwrap();
    assert_eq!(bits(&rest), bits(&whole));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for config in [SPLIT.to_owned(), format!("{SPLIT}sub_norms = false\nhidden_act = \"silu\"")] {
        let model = model(&config);
        for tokens in [prompt(1), prompt(9)] {
            let one = together(&model, &tokens, 1);
            assert!(one == together(&model, &tokens, 2));
            assert!(one == together(&model, &tokens, 3));
        }
    }
}

#[test]
fn the_kernel_changes_no_bit() {
    let mut model = model(&format!("{SPLIT}tie_word_embeddings = false"));
    let tokens = prompt(6);
    let detected = together(&model, &tokens, 1);
    for kernel in Kernel::available() {
        model = model.with_kernel(kernel);
        assert!(together(&model, &tokens, 1) == detected, "{kernel:?}");
    }
}
