//! The forward pass against `BitNetForCausalLM`.

use bitnet_train::model::{LanguageModel, SegmentStarts, target_log_probs, token_logits};
use burn::tensor::Device;

use super::agreement::{Agreement, absolute, agree, check};
use super::backward::Target;
use super::reference::{Pass, Row};
use super::sets::{self, Set, host, ids, next_token_batch};

/// The hidden states of every layer and the logits of each row, one after the other.
fn states(set: &Set, model: &LanguageModel) -> Vec<Vec<f32>> {
    let rows = set.rows("forward.safetensors", "input_ids");
    let states = |tokens: &Vec<i32>| {
        let (time, device) = (tokens.len(), Device::flex());
        let documents = SegmentStarts::whole_rows(1, time);
        let states = model.hidden_states(ids(tokens, [1, time], &device), &documents);
        let last = states.last().unwrap().clone();
        let logits = token_logits(last.flatten(0, 1), model.head());
        let mut all: Vec<f32> = states.into_iter().flat_map(host).collect();
        all.extend(host(logits));
        all
    };
    rows.iter().map(states).collect()
}

/// The same from the fixture; `logits [B, T, V]`.
fn expected_states(set: &Set, logits: &[f32]) -> Vec<Vec<f32>> {
    let file = set.file("forward.safetensors");
    let rows = file.shape("input_ids")[0];
    let mut parts: Vec<_> =
        (0..=set.spec().num_hidden_layers).map(|n| file.floats(&format!("hidden.{n}"))).collect();
    parts.push(logits.to_vec());
    let of_row = |row: usize| {
        let part =
            |all: &Vec<f32>| all[all.len() / rows * row..all.len() / rows * (row + 1)].to_vec();
        parts.iter().flat_map(part).collect()
    };
    (0..rows).map(of_row).collect()
}

fn states_of(row: &Row) -> Vec<f32> {
    // What transformers calls the last hidden state is the one after the last norm.
    let layers = row.layers.iter().map(|layer| &layer.x);
    let all = layers.chain([&row.hidden, &row.logits]);
    all.flatten().map(|&v| v as f32).collect()
}

/// Whether our states and logits agree with a fixture of these `logits`.
fn states_agree(set: &Set, logits: &[f32]) -> Result<Agreement, String> {
    let found = states(set, &set.model(&Device::flex()));
    let rows = set.rows("forward.safetensors", "input_ids");
    let reference = set.reference();
    let all = found.iter().zip(expected_states(set, logits)).zip(rows);
    Agreement::of_all(all.map(|((found, expected), row)| {
        let passes = reference.passes(std::slice::from_ref(&row));
        agree([found, &expected], |a, b| absolute(a, b), passes, |pass| states_of(&pass.rows[0]))
    }))
}

#[test]
fn golden_hidden_states_and_logits() {
    for set in sets::with("forward.safetensors") {
        let logits = set.file("forward.safetensors").floats("logits");
        check(&set, "hidden states and logits", states_agree(&set, &logits));
    }
}

#[test]
fn golden_a_logit_that_was_moved_by_a_thousandth_fails_on_every_set() {
    for set in sets::with("forward.safetensors") {
        let logits = set.file("forward.safetensors").floats("logits");
        for at in [0, logits.len() / 2, logits.len() - 1] {
            let mut spoiled = logits.clone();
            spoiled[at] += 1e-3;
            let agreement = states_agree(&set, &spoiled);
            assert!(agreement.is_err(), "{} logit {at}: {agreement:?}", set.name());
        }
    }
}

#[test]
fn golden_target_log_probabilities() {
    let device = Device::flex();
    for set in sets::with("forward.safetensors") {
        let (file, model) = (set.file("forward.safetensors"), set.model(&device));
        let (expected, reference) = (file.floats("target_logps"), set.reference());
        let rows = set.rows("forward.safetensors", "input_ids");
        let all = rows.iter().zip(expected.chunks(rows[0].len() - 1)).map(|(row, expected)| {
            let batch = next_token_batch(row, row, row.len());
            let shape = batch.documents.dims();
            let hidden = model.forward(ids(&batch.tokens, shape, &device), &batch.documents);
            let targets = ids(&batch.targets, shape, &device);
            let found = host(target_log_probs(hidden, model.head(), targets));
            let passes = reference.passes(std::slice::from_ref(&batch.tokens));
            let log_probs = |pass: &Pass| {
                let next = |(position, &token): (usize, &i32)| {
                    pass.log_prob(&Target { row: 0, position, token, weight: 1.0 }) as f32
                };
                batch.targets.iter().enumerate().map(next).collect()
            };
            agree([&found, &expected.to_vec()], |a, b| absolute(a, b), passes, log_probs)
        });
        check(&set, "target_logps", Agreement::of_all(all));
    }
}

#[test]
fn golden_packed_documents_see_only_themselves() {
    let device = Device::flex();
    for set in sets::with("forward.safetensors") {
        let (file, model) = (set.file("forward.safetensors"), set.model(&device));
        let tokens = file.ints("packdoc.input_ids");
        let positions = file.ints("packdoc.position_ids");
        let starts = positions.iter().enumerate().map(|(i, position)| i as i32 - position);
        let documents = SegmentStarts::new(1, tokens.len(), starts.collect());
        let hidden = model.forward(ids(&tokens, [1, tokens.len()], &device), &documents);
        let found = host(token_logits(hidden.flatten(0, 1), model.head()));
        let second = positions.iter().rposition(|&position| position == 0).unwrap();
        let documents = [tokens[..second].to_vec(), tokens[second..].to_vec()];
        let reference = set.reference();
        let logits = |pass: &Pass| {
            pass.rows.iter().flat_map(|row| row.logits.iter().map(|&v| v as f32)).collect()
        };
        let expected = file.floats("packdoc.logits");
        let agreement =
            agree([&found, &expected], |a, b| absolute(a, b), reference.passes(&documents), logits);
        check(&set, "packdoc.logits", agreement);
    }
}
