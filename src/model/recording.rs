//! The forward pass that trains, and the way back: recorded as a whole, or block by block.
//!
//! Block by block works so: forward, nothing is recorded and only what enters each block is kept.
//! Backward, from the last block to the first, a block runs once more on what entered it, recorded
//! this time, and the gradient of what left it turns into the gradient of what entered it. Every
//! operation sees the same operands either way and a sum of gradients has two terms at most, so
//! loss and gradients are the same to the bit; the price is a second forward pass of the blocks.

use burn::module::Module;
use burn::tensor::{Gradients, Int, Tensor};

use super::attention::AttentionContext;
use super::{Documents, LanguageModel, gradients};

/// What a forward pass that trains leaves in memory for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// All that the backward pass needs.
    #[default]
    Kept,
    /// What enters each block; the rest is computed again.
    Recomputed,
}

/// The way from the gradients of a loss over final hidden states to those of all parameters.
pub struct Recording(Way);

enum Way {
    /// One graph reaches from the loss to every parameter.
    Whole,
    Blocks(Box<Blocks>),
}

/// What is kept of a pass whose blocks are computed again.
struct Blocks {
    tokens: Tensor<2, Int>,
    context: AttentionContext,
    /// What enters each block, outside of any graph.
    inputs: Vec<Tensor<3>>,
    /// What leaves the last one: where the graph of the loss ends.
    last: Tensor<3>,
}

impl LanguageModel {
    /// `tokens [B, T]` → hidden states after the final norm `[B, T, C]`, to make a loss of, and
    /// the way back from there. The model is one with autodiff.
    pub fn record(&self, tokens: Tensor<2, Int>, documents: &Documents) -> (Tensor<3>, Recording) {
        match self.activations {
            Activations::Kept => (self.forward(tokens, documents), Recording(Way::Whole)),
            Activations::Recomputed => self.record_blocks(tokens, documents),
        }
    }

    fn record_blocks(
        &self,
        tokens: Tensor<2, Int>,
        documents: &Documents,
    ) -> (Tensor<3>, Recording) {
        let context = AttentionContext::new(documents, &self.model.rope);
        let plain = self.model.valid();
        let mut inputs = plain.residuals(tokens.clone().inner(), &context, self.compute);
        let last = leaf(inputs.pop().expect("the embedding is there"));
        let hidden = self.model.norm.forward(last.clone(), self.compute);
        (hidden, Recording(Way::Blocks(Box::new(Blocks { tokens, context, inputs, last }))))
    }
}

impl Recording {
    /// Every parameter's gradient, flat, in table order; `grads` are those of the loss.
    ///
    /// # Panics
    /// When a parameter took no part in the loss, or `model` is not the one that was recorded.
    pub fn gradients(self, model: &LanguageModel, mut grads: Gradients) -> Vec<Tensor<1>> {
        match self.0 {
            Way::Whole => gradients(model, &mut grads),
            Way::Blocks(blocks) => blocks.gradients(model, grads),
        }
    }
}

impl Blocks {
    fn gradients(self, model: &LanguageModel, mut grads: Gradients) -> Vec<Tensor<1>> {
        let transformer = &model.model;
        let mut top = gradients(&transformer.norm, &mut grads);
        top.extend(model.lm_head.iter().flat_map(|head| gradients(head, &mut grads)));
        let tied =
            model.lm_head.is_none().then(|| gradients(&transformer.embed_tokens, &mut grads));
        let mut upstream = take(&self.last, &mut grads);
        drop((self.last, grads));
        let mut blocks = Vec::with_capacity(self.inputs.len());
        for (block, input) in transformer.layers.iter().zip(self.inputs).rev() {
            let input = leaf(input);
            let output = block.forward(input.clone(), &self.context, model.compute);
            let mut grads = backward(output, upstream);
            blocks.push(gradients(block, &mut grads));
            upstream = take(&input, &mut grads);
        }
        let mut grads = backward(transformer.embed(self.tokens), upstream);
        let embedding = gradients(&transformer.embed_tokens, &mut grads);
        let embedding = match tied {
            Some(tied) => tied.into_iter().zip(embedding).map(|(a, b)| a + b).collect(),
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
    leaf.grad_remove(grads).expect("a leaf takes part in what is made of it")
}

/// The gradients behind `output` where its own is `upstream`.
fn backward(output: Tensor<3>, upstream: Tensor<3>) -> Gradients {
    (output * upstream).sum().backward()
}
