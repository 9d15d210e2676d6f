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
use super::{ForwardOutputs, LanguageModel, SegmentStarts, gradients, host_ids, parameter_count};
use crate::ops;

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
    /// `tokens [B, T]` → what a loss is computed from, and the graph that leads back. The model is on a
    /// device with autodiff.
    ///
    /// # Panics
    /// When a block that is computed again is to be shown.
    pub fn record(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
        shown: Option<usize>,
    ) -> (ForwardOutputs, ForwardGraph) {
        match self.activations {
            ActivationMemory::Kept => {
                let outputs = self.forward_showing(tokens, segments, shown);
                (outputs, ForwardGraph(BackwardPlan::Whole))
            }
            ActivationMemory::Recomputed => {
                assert!(shown.is_none(), "the recipe's rules keep such a block from being shown");
                let (hidden, graph) = self.record_blocks(tokens, segments);
                (ForwardOutputs { hidden, projections: None }, graph)
            }
        }
    }

    fn record_blocks(
        &self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
    ) -> (Tensor<3>, ForwardGraph) {
        let context = self.model.attention_context(segments);
        // Without autodiff nothing is recorded: only the inputs of blocks survive this pass.
        let plain = self.model.valid();
        let mut inputs = plain.residuals(tokens.clone().inner(), &context, self.backend);
        // A new leaf: the loss has a small graph of its own that ends here.
        let last = leaf(inputs.pop().expect("residuals start with the embedding"));
        let hidden = self.final_norm(last.clone());
        let kept = BlockInputs { tokens, context, inputs, last };
        (hidden, ForwardGraph(BackwardPlan::PerBlock(Box::new(kept))))
    }
}

/// Takes gradients as soon as they are complete: flat, those of tensors `first ..` of the table, `None`
/// of a frozen one. Every tensor comes once.
pub type GradientSink<'a> = dyn FnMut(usize, Vec<Option<Tensor<1>>>) + 'a;

impl ForwardGraph {
    /// Every parameter's gradient, flat, in table order, `None` of a frozen one; `grads` are those of
    /// the loss.
    ///
    /// # Panics
    /// When a parameter took no part in the loss, or `model` is not the one that was recorded.
    pub fn gradients(self, model: &LanguageModel, grads: Gradients) -> Vec<Option<Tensor<1>>> {
        let mut all = Vec::new();
        self.backward(model, grads, &mut |first, gradients| {
            // The end of the table comes first: the list gets its length at once.
            let end = first + gradients.len();
            all.resize_with(all.len().max(end), || None);
            all[first..end].iter_mut().zip(gradients).for_each(|(place, found)| *place = found);
        });
        all
    }

    /// The same, handed over part by part: final norm and head, then the blocks from the last to the
    /// first, then the embedding. A block's parameters may change as soon as `sink` has its gradients.
    ///
    /// # Panics
    /// As [`ForwardGraph::gradients`].
    pub fn backward(self, model: &LanguageModel, mut grads: Gradients, sink: &mut GradientSink) {
        match self.0 {
            BackwardPlan::Whole => sink(0, gradients(model, &mut grads)),
            BackwardPlan::PerBlock(kept) => kept.backward(model, grads, sink),
        }
    }
}

impl BlockInputs {
    fn backward(self, model: &LanguageModel, mut grads: Gradients, sink: &mut GradientSink) {
        let transformer = &model.model;
        let mut top = gradients(&transformer.norm, &mut grads);
        top.extend(model.lm_head.iter().flat_map(|head| gradients(head, &mut grads)));
        // A tied embedding gets gradients twice: now as head, and at the very end as embedding.
        let tied =
            model.lm_head.is_none().then(|| gradients(&transformer.embed_tokens, &mut grads));
        let tied = tied.into_iter().flatten().next().flatten();
        let mut upstream = take(&self.last, &mut grads);
        // Frees the graph of the loss before blocks are recorded again.
        drop((self.last, grads));
        let of_blocks = transformer.layers.iter().map(parameter_count);
        // The table is embedding, blocks, final norm, head; the walk goes through it backwards.
        let mut first = 1 + of_blocks.sum::<usize>();
        sink(first, top);
        for (block, input) in transformer.layers.iter().zip(self.inputs).rev() {
            let input = leaf(input);
            // The second forward pass of this block, recorded this time; the graph is dropped
            // before the next one, so one block's activations are the most that is ever held.
            let output = block.forward(input.clone(), &self.context, model.backend);
            let mut grads = backward(output, upstream);
            let found = gradients(block, &mut grads);
            upstream = take(&input, &mut grads);
            drop(grads);
            first -= found.len();
            sink(first, found);
        }
        let embedding = &transformer.embed_tokens;
        let is_trained = embedding.weight.val().is_require_grad();
        let found = is_trained.then(|| embedding_gradient(model, self.tokens, upstream, tied));
        sink(0, vec![found]);
    }
}

/// The gradient of the embedding `[V · C]`, that of its rows added to what it has as a head.
fn embedding_gradient(
    model: &LanguageModel,
    tokens: Tensor<2, Int>,
    upstream: Tensor<3>,
    as_head: Option<Tensor<1>>,
) -> Tensor<1> {
    if model.backend.is_native() {
        let ids = host_ids(tokens.flatten(0, 1));
        let words = model.model.embed_tokens.count();
        return ops::embedding_gradient(as_head, words, &ids, upstream.flatten(0, 1));
    }
    let mut grads = backward(model.model.embed(tokens, model.backend), upstream);
    let rows = gradients(&model.model.embed_tokens, &mut grads).pop().flatten();
    let rows = rows.expect("the embedding is trained");
    // A tied matrix has a gradient as head and one as embedding.
    match as_head {
        Some(head) => head + rows,
        None => rows,
    }
}

/// A tensor where a graph begins.
fn leaf(value: Tensor<3>) -> Tensor<3> {
    value.autodiff().require_grad()
}

fn take(leaf: &Tensor<3>, grads: &mut Gradients) -> Tensor<3> {
    leaf.grad_remove(grads).expect("the graph was built on this leaf")
}

/// The gradients of everything before `output`, whose own gradient is `upstream`.
fn backward(output: Tensor<3>, upstream: Tensor<3>) -> Gradients {
    // d/dx Σ output · upstream = upstream · d output/dx: the chain rule for an autodiff that starts
    // at scalars.
    (output * upstream).sum().backward()
}
