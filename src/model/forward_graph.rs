//! The forward pass that trains and the plan of its backward pass: one graph for the whole model, or
//! block by block (activation checkpointing, arXiv 1604.06174).
//!
//! ```text
//! forward    x0 → [block 0] → x1 → [block 1] → x2 ─┐    no graph; x0, x1, x2 are kept
//!                                     final norm, loss    a graph over x2 alone
//! backward   dx2 → block 1 again on x1, with a graph → dx1 → block 0 again on x0 → dx0
//! ```
//!
//! Every operation sees the same operands either way, and no sum of gradients has more than two
//! terms, so loss and gradients are equal to the bit. The price is a second forward pass.

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use super::attention::AttentionContext;
use super::{LanguageModel, SegmentStarts, gradients};

/// What a forward pass that trains keeps in memory for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationMemory {
    /// Everything the backward pass needs.
    #[default]
    Kept,
    /// The input of each block; the rest is computed again.
    Recomputed,
}

/// A recorded forward pass: leads from the gradients of a loss over final hidden states to those of
/// all parameters.
pub struct ForwardGraph(BackwardPlan);

enum BackwardPlan {
    /// One graph reaches from the loss to every parameter.
    Whole,
    PerBlock(Box<BlockInputs>),
}

/// What is kept of a pass whose blocks are computed again.
struct BlockInputs {
    tokens: Tensor<2, Int>,
    context: AttentionContext,
    /// The input of each block, outside of any graph.
    inputs: Vec<Tensor<3>>,
    /// The output of the last block: the graph of the loss ends here.
    last: Tensor<3>,
}

impl LanguageModel {
    /// `tokens [B, T]` → hidden states after the final norm `[B, T, C]`, to compute a loss from, and
    /// the graph that leads back. The model is on a device with autodiff.
    pub fn record(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
    ) -> (Tensor<3>, ForwardGraph) {
        match self.activations {
            ActivationMemory::Kept => {
                (self.forward(tokens, segments), ForwardGraph(BackwardPlan::Whole))
            }
            ActivationMemory::Recomputed => self.record_blocks(tokens, segments),
        }
    }

    fn record_blocks(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
    ) -> (Tensor<3>, ForwardGraph) {
        let context = self.model.attention_context(segments);
        let plain = self.model.valid();
        let mut inputs = plain.residuals(tokens.clone().inner(), &context, self.backend);
        let last = leaf(inputs.pop().expect("residuals start with the embedding"));
        let hidden = self.model.norm.forward(last.clone(), self.backend);
        let kept = BlockInputs { tokens, context, inputs, last };
        (hidden, ForwardGraph(BackwardPlan::PerBlock(Box::new(kept))))
    }
}

impl ForwardGraph {
    /// Every parameter's gradient, flat, in table order, `None` of a frozen one; `grads` are those of
    /// the loss.
    ///
    /// # Panics
    /// When a parameter took no part in the loss, or `model` is not the one that was recorded.
    pub fn gradients(self, model: &LanguageModel, mut grads: Gradients) -> Vec<Option<Tensor<1>>> {
        match self.0 {
            BackwardPlan::Whole => gradients(model, &mut grads),
            BackwardPlan::PerBlock(kept) => kept.gradients(model, grads),
        }
    }
}

impl BlockInputs {
    fn gradients(self, model: &LanguageModel, mut grads: Gradients) -> Vec<Option<Tensor<1>>> {
        let transformer = &model.model;
        let mut top = gradients(&transformer.norm, &mut grads);
        top.extend(model.lm_head.iter().flat_map(|head| gradients(head, &mut grads)));
        let tied =
            model.lm_head.is_none().then(|| gradients(&transformer.embed_tokens, &mut grads));
        let mut upstream = take(&self.last, &mut grads);
        // Frees the graph of the loss before blocks are recorded again.
        drop((self.last, grads));
        let mut blocks = Vec::with_capacity(self.inputs.len());
        for (block, input) in transformer.layers.iter().zip(self.inputs).rev() {
            let input = leaf(input);
            let output = block.forward(input.clone(), &self.context, model.backend);
            let mut grads = backward(output, upstream);
            blocks.push(gradients(block, &mut grads));
            upstream = take(&input, &mut grads);
        }
        let embedding = if transformer.embed_tokens.weight.val().is_require_grad() {
            let mut grads = backward(transformer.embed(self.tokens), upstream);
            gradients(&transformer.embed_tokens, &mut grads)
        } else {
            vec![None]
        };
        // A tied matrix has a gradient as head and one as embedding.
        let embedding = match tied {
            Some(tied) => tied.into_iter().zip(embedding).map(|(a, b)| Some(a? + b?)).collect(),
            None => embedding,
        };
        embedding.into_iter().chain(blocks.into_iter().rev().flatten()).chain(top).collect()
    }
}

/// A tensor where a graph begins.
fn leaf(value: Tensor<3>) -> Tensor<3> {
    value.autodiff().require_grad()
}

fn take(leaf: &Tensor<3>, grads: &mut Gradients) -> Tensor<3> {
    leaf.grad_remove(grads).expect("the graph was built on this leaf")
}

/// The gradients of everything behind `output`, whose own gradient is `upstream`.
fn backward(output: Tensor<3>, upstream: Tensor<3>) -> Gradients {
    (output * upstream).sum().backward()
}
