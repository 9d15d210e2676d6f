//! Continuations: when they end and that they repeat.

use std::ops::ControlFlow;

use bitnet_engine::{FinishReason, GenerateRequest, Generated, Model, SamplerSettings, generate};

use crate::random_model::{SMALL, model, threads};

fn request(max_tokens: usize) -> GenerateRequest {
    GenerateRequest { sampler: SamplerSettings::default(), stop_ids: vec![], max_tokens }
}

fn continued(model: &Model, request: &GenerateRequest) -> Generated {
    let (mut cache, mut told) = (model.new_cache(), Vec::new());
    let generated = generate(model, &mut cache, &[1, 2, 3], request, &threads(1), |id| {
        told.push(id);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told, generated.tokens);
    generated
}

#[test]
fn one_seed_gives_one_continuation() {
    let model = model(SMALL);
    let first = continued(&model, &request(12));
    assert_eq!((first.tokens.len(), first.stop), (12, FinishReason::Length));
    assert_eq!(continued(&model, &request(12)), first);
    let mut other = request(12);
    other.sampler.seed = 1;
    assert_ne!(continued(&model, &other), first);
}

#[test]
fn greedy_takes_the_most_likely_token_each_time() {
    let (model, pool) = (model(SMALL), threads(1));
    let generated =
        continued(&model, &GenerateRequest { sampler: SamplerSettings::greedy(), ..request(8) });
    let mut sequence = vec![1, 2, 3];
    for &id in &generated.tokens {
        let scores = bitnet_engine::score(&model, &sequence, &pool).unwrap();
        assert_eq!(scores.argmax.last(), Some(&id));
        sequence.push(id);
    }
}

#[test]
fn a_stop_id_ends_the_continuation_and_is_not_part_of_it() {
    let model = model(SMALL);
    let free = continued(&model, &request(12)).tokens;
    let stop = free[6];
    let before = free.iter().position(|&id| id == stop).unwrap();
    let stopped = continued(&model, &GenerateRequest { stop_ids: vec![stop], ..request(12) });
    assert_eq!(
        stopped,
        Generated { tokens: free[..before].to_vec(), stop: FinishReason::Id(stop) }
    );
}

#[test]
fn a_full_context_ends_the_continuation() {
    // 3 tokens of prompt, 21 more in the context of 24, and one chosen after the last of them.
    let generated = continued(&model(SMALL), &request(1000));
    assert_eq!((generated.tokens.len(), generated.stop), (22, FinishReason::Length));
}

#[test]
fn the_caller_can_break_off() {
    let model = model(SMALL);
    let stop = |_| ControlFlow::Break(());
    let generated =
        generate(&model, &mut model.new_cache(), &[1], &request(9), &threads(1), stop).unwrap();
    assert_eq!((generated.tokens.len(), generated.stop), (1, FinishReason::Caller));
}
