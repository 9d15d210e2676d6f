//! Cross-entropy in plain tensor operations, some tokens at a time.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::ops::OpBackend;
use crate::ops::head::Targets;

/// Tokens whose logits exist at the same time.
const LOGIT_TOKENS: usize = 1024;

/// The gradients that the forward pass computes join the graph as factors of differences that are
/// exactly zero: `(x − detach(x)) · gradient`.
pub(super) fn cross_entropy(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: &Targets,
    backend: OpBackend,
) -> Tensor<1> {
    let [batch, time, width] = hidden.dims();
    let hidden = hidden.reshape([batch * time, width]);
    let device = hidden.device();
    // Detached: a graph would keep the logits of every chunk.
    let (tokens, frozen) = (hidden.clone().detach(), head.clone().detach());
    let mut sum = Tensor::<1>::zeros([1], &device);
    let mut head_gradient = frozen.zeros_like();
    let mut hidden_gradients = Vec::new();
    for first in (0..batch * time).step_by(LOGIT_TOKENS) {
        let count = LOGIT_TOKENS.min(batch * time - first);
        let chunk = tokens.clone().narrow(0, first, count);
        // In f32 always: a product that a device returns in bf16 would cost the logits more than
        // rounding the operands does.
        let logits = chunk.clone().matmul(frozen.clone().transpose());
        let chosen = TargetChunk::new(targets, first..first + count, &device);
        let log_probs = activation::log_softmax(logits, 1);
        sum = sum + chosen.loss(&log_probs);
        let error = chosen.logit_gradient(log_probs); // [count, V]
        hidden_gradients.push(backend.matmul(error.clone(), frozen.clone()));
        head_gradient = head_gradient + backend.matmul(error.transpose(), chunk);
    }
    let along = |x: Tensor<2>, gradient: Tensor<2>| ((x.clone() - x.detach()) * gradient).sum();
    sum + along(hidden, Tensor::cat(hidden_gradients, 0)) + along(head, head_gradient)
}

/// The targets of some tokens, on the device.
struct TargetChunk {
    /// `[tokens, 1]`
    ids: Tensor<2, Int>,
    /// `[tokens, 1]`
    weights: Tensor<2>,
}

impl TargetChunk {
    fn new(targets: &Targets, tokens: Range<usize>, device: &Device) -> Self {
        let shape = [tokens.len(), 1];
        let ids = TensorData::new(targets.ids[tokens.clone()].to_vec(), shape);
        let weights = TensorData::new(targets.weights[tokens].to_vec(), shape);
        Self { ids: Tensor::from_data(ids, device), weights: Tensor::from_data(weights, device) }
    }

    /// The weighted sum of the losses, `[1]`.
    fn loss(&self, log_probs: &Tensor<2>) -> Tensor<1> {
        (log_probs.clone().gather(1, self.ids.clone()) * self.weights.clone()).sum().neg()
    }

    /// `weight · (p − 1 at the target)`
    fn logit_gradient(self, log_probs: Tensor<2>) -> Tensor<2> {
        let [_, vocab] = log_probs.dims();
        let entries = Tensor::<1, Int>::arange(0..vocab as i64, &self.ids.device());
        let hit = self.ids.equal(entries.unsqueeze());
        (log_probs.exp() - hit.float()) * self.weights
    }
}
