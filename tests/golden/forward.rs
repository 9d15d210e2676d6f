//! The forward pass against `BitNetForCausalLM`.

use bitnet_train::model::{SegmentStarts, target_log_probs, token_logits};
use burn::tensor::Device;

use super::sets::{self, check, host, ids, largest_difference};

#[test]
fn golden_hidden_states_and_logits() {
    let device = Device::flex();
    for set in sets::with("forward.safetensors") {
        let (file, model) = (set.file("forward.safetensors"), set.model(&device));
        let shape = file.shape("input_ids");
        let shape = [shape[0], shape[1]];
        let tokens = ids(&file.ints("input_ids"), shape, &device);
        let documents = SegmentStarts::whole_rows(shape[0], shape[1]);
        let states = model.hidden_states(tokens, &documents);
        for (layer, state) in states.iter().enumerate() {
            let expected = file.floats(&format!("hidden.{layer}"));
            let error = largest_difference(&host(state.clone()), &expected);
            check(&set, &format!("hidden.{layer}"), error, 1e-4);
        }
        let last = states.last().unwrap().clone();
        let logits = token_logits(last.flatten(0, 1), model.head());
        let error = largest_difference(&host(logits), &file.floats("logits"));
        check(&set, "logits", error, 1e-4);
    }
}

#[test]
fn golden_target_log_probabilities() {
    let device = Device::flex();
    for set in sets::with("forward.safetensors") {
        let (file, model) = (set.file("forward.safetensors"), set.model(&device));
        let width = file.shape("input_ids")[1];
        let rows = file.ints("input_ids");
        let batch = sets::next_token_batch(&rows, &rows, width);
        let shape = batch.documents.dims();
        let hidden = model.forward(ids(&batch.tokens, shape, &device), &batch.documents);
        let targets = ids(&batch.targets, shape, &device);
        let found = host(target_log_probs(hidden, model.head(), targets));
        let error = largest_difference(&found, &file.floats("target_logps"));
        check(&set, "target_logps", error, 1e-4);
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
        let logits = token_logits(hidden.flatten(0, 1), model.head());
        let error = largest_difference(&host(logits), &file.floats("packdoc.logits"));
        check(&set, "packdoc.logits", error, 1e-4);
    }
}
