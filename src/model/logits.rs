//! From hidden states to logits and log-probabilities, for evaluation, preferences and tests.
//! Pretraining and fine-tuning minimise `ops::cross_entropy`, which keeps no logits.

use burn::tensor::{Int, Tensor, activation::log_softmax};

/// Tokens whose logits exist at the same time when no backward pass is recorded.
const CHUNK: usize = 1024;

/// Log-probability of each target: `hidden [B, T, C]`, `head [V, C]`, `targets [B, T]` → `[B, T]`
pub fn target_log_probs(hidden: Tensor<3>, head: Tensor<2>, targets: Tensor<2, Int>) -> Tensor<2> {
    let [batch, time, width] = hidden.dims();
    let rows = batch * time;
    let hidden = hidden.reshape([rows, width]);
    let targets = targets.reshape([rows, 1]);
    let head = head.transpose();
    let chunk = |start: usize| {
        let length = CHUNK.min(rows - start);
        let logits = hidden.clone().narrow(0, start, length).matmul(head.clone());
        log_softmax(logits, 1).gather(1, targets.clone().narrow(0, start, length))
    };
    let chunks = (0..rows).step_by(CHUNK).map(chunk).collect();
    Tensor::cat(chunks, 0).reshape([batch, time])
}

/// The index of the largest of `logits [V]`; the first of several equal ones.
pub fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// Logits of single tokens, for generation and tests: `hidden [N, C]`, `head [V, C]` → `[N, V]`
pub fn token_logits(hidden: Tensor<2>, head: Tensor<2>) -> Tensor<2> {
    hidden.matmul(head.transpose())
}
