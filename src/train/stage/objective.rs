//! What a micro-batch contributes to training: a sum and a count. The division happens once, over
//! the whole batch, so the result does not depend on how the batch was cut.

use std::sync::Arc;

use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};

use crate::model::{ForwardGraph, ForwardOutputs, LanguageModel, SegmentStarts, target_log_probs};
use crate::ops::{self, Targets};

/// Rows of tokens as the model sees them, on the host.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// Input ids `[B, T]`, row-major.
    pub tokens: Vec<i32>,
    /// The id to predict at each position `[B, T]`.
    pub targets: Vec<i32>,
    /// 1 where the target is trained, 0 where not `[B, T]`.
    pub loss_mask: Vec<f32>,
    /// Where the documents begin.
    pub documents: SegmentStarts,
}

/// The contribution of one micro-batch.
#[derive(Debug)]
pub struct LossSum {
    /// The loss summed over the counted items, `[1]`.
    pub sum: Tensor<1>,
    /// What the backward pass starts from, `[1]`, where that is not `sum` itself: another scalar with
    /// the gradients of `sum`.
    pub root: Option<Tensor<1>>,
    /// Counted items: trained tokens, or pairs.
    pub count: f64,
    /// Trained targets.
    pub tokens: u64,
    /// Other figures for the log, summed over the counted items.
    pub metrics: Vec<(&'static str, f64)>,
}

impl LossSum {
    /// The gradients of the summed loss.
    pub fn backward(&self) -> Gradients {
        self.root.as_ref().unwrap_or(&self.sum).backward()
    }
}

/// A training objective: what is summed, and over what it is counted.
pub trait Objective: Sync {
    /// What one micro-batch is.
    type Batch: Sync;

    /// The rows of a micro-batch that the model reads.
    fn rows<'b>(&self, batch: &'b Self::Batch) -> &'b TokenBatch;

    /// The block whose queries, keys and values the loss sees beside the final hidden states.
    fn shown(&self) -> Option<usize> {
        None
    }

    /// What a pass over those rows contributes; the head is `model`'s.
    fn loss(&self, model: &LanguageModel, outputs: ForwardOutputs, batch: &Self::Batch) -> LossSum;

    /// Runs the model forward on a micro-batch.
    fn evaluate(&self, model: &LanguageModel, batch: &Self::Batch, device: &Device) -> LossSum {
        self.loss(model, self.rows(batch).outputs(model, self.shown(), device), batch)
    }

    /// The same recorded, and the graph that leads back to the parameters.
    fn record(
        &self,
        model: &LanguageModel,
        batch: &Self::Batch,
        device: &Device,
    ) -> (LossSum, ForwardGraph) {
        let (outputs, graph) = self.rows(batch).record(model, self.shown(), device);
        (self.loss(model, outputs, batch), graph)
    }
}

/// Next-token cross-entropy over the trained targets: pretraining and SFT.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    type Batch = TokenBatch;

    fn rows<'b>(&self, batch: &'b TokenBatch) -> &'b TokenBatch {
        batch
    }

    fn loss(&self, model: &LanguageModel, outputs: ForwardOutputs, batch: &TokenBatch) -> LossSum {
        let sum = batch.weighted_loss(model, outputs.hidden, batch.loss_mask.clone());
        let (count, tokens) = (batch.counted(), batch.trained_tokens());
        LossSum { sum, root: None, count, tokens, metrics: Vec::new() }
    }
}

/// Log-probability of every trained target of a batch, `[B, T]`; 0 at all others.
pub fn batch_log_probs(model: &LanguageModel, batch: &TokenBatch, device: &Device) -> Tensor<2> {
    batch.log_probs(model, batch.outputs(model, None, device).hidden)
}

impl TokenBatch {
    /// The inputs as a tensor `[B, T]`.
    pub(crate) fn inputs(&self, device: &Device) -> Tensor<2, Int> {
        self.ids(&self.tokens, device)
    }

    /// Final hidden states, and what the projections of block `shown` gave.
    pub(crate) fn outputs(
        &self,
        model: &LanguageModel,
        shown: Option<usize>,
        device: &Device,
    ) -> ForwardOutputs {
        model.forward_showing(self.inputs(device), &self.documents, shown)
    }

    /// The same recorded, and the graph that leads from their gradients to the parameters'.
    pub(crate) fn record(
        &self,
        model: &LanguageModel,
        shown: Option<usize>,
        device: &Device,
    ) -> (ForwardOutputs, ForwardGraph) {
        model.record(self.inputs(device), &self.documents, shown)
    }

    /// Log-probability of every trained target, `[B, T]`, from the final hidden states; 0 at all others.
    pub(crate) fn log_probs(&self, model: &LanguageModel, hidden: Tensor<3>) -> Tensor<2> {
        let (backend, shape) = (model.backend(), self.documents.dims());
        if backend.is_native() {
            let head = model.head_module();
            let (leaf, targets) = (head.operand(backend), self.targets(self.loss_mask.clone()));
            let found = ops::native_log_probs(hidden, leaf, head.outside(), targets, backend);
            return found.reshape(shape);
        }
        let device = hidden.device();
        let mask = TensorData::new(self.loss_mask.clone(), shape);
        let targets = self.ids(&self.targets, &device);
        target_log_probs(hidden, model.head(), targets) * Tensor::from_data(mask, &device)
    }

    /// `Σ weight · -log p(target)`, `[1]`, from the final hidden states; a weight for each target.
    pub(super) fn weighted_loss(
        &self,
        model: &LanguageModel,
        hidden: Tensor<3>,
        weights: Vec<f32>,
    ) -> Tensor<1> {
        let head = model.head_module();
        let backend = model.backend();
        let leaf = head.operand(backend);
        let targets = self.targets(weights);
        match head.outside() {
            Some(latents) => ops::cross_entropy_outside(hidden, leaf, latents, targets, backend),
            None => ops::cross_entropy(hidden, leaf, targets, backend),
        }
    }

    pub(crate) fn targets(&self, weights: Vec<f32>) -> Targets {
        Targets { ids: Arc::new(self.targets.clone()), weights: Arc::new(weights) }
    }

    /// `[B, T]`
    fn ids(&self, ids: &[i32], device: &Device) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(ids.to_vec(), self.documents.dims()), device)
    }

    /// What a mean is over: the trained targets by their weight.
    pub(crate) fn counted(&self) -> f64 {
        self.loss_mask.iter().map(|&trained| f64::from(trained)).sum()
    }

    /// Number of trained targets.
    pub fn trained_tokens(&self) -> u64 {
        self.loss_mask.iter().filter(|&&trained| trained != 0.0).count() as u64
    }
}
