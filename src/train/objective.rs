//! What a micro-batch contributes to training: a sum and a count. Normalising happens once, over
//! the whole batch, so that the result does not depend on how the batch was cut.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::model::{Documents, LanguageModel, target_log_probs};
use crate::ops::{self, Targets};

/// Rows of tokens as the model sees them, on the host.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Input ids `[B, T]`, row-major.
    pub tokens: Vec<i32>,
    /// The id to predict at each place `[B, T]`.
    pub targets: Vec<i32>,
    /// 1 where the target is trained, 0 where not `[B, T]`.
    pub loss_mask: Vec<f32>,
    /// Where the documents begin.
    pub documents: Documents,
}

/// The contribution of one micro-batch.
#[derive(Debug)]
pub struct Outcome {
    /// Sum of the loss over what is counted, `[1]`, with its graph.
    pub sum: Tensor<1>,
    /// How many were counted: trained tokens, or pairs.
    pub count: f64,
    /// Trained targets.
    pub tokens: u64,
    /// Sums over what is counted of other figures, for the log.
    pub metrics: Vec<(&'static str, f64)>,
}

/// A training objective: what is summed, and over what it is counted.
pub trait Objective: Sync {
    /// What one micro-batch is.
    type Batch: Sync;

    /// Runs the model forward on a micro-batch.
    fn evaluate(&self, model: &LanguageModel, batch: &Self::Batch, device: &Device) -> Outcome;
}

/// Next-token cross-entropy over the trained targets: pretraining and SFT.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    type Batch = Batch;

    fn evaluate(&self, model: &LanguageModel, batch: &Batch, device: &Device) -> Outcome {
        let targets = Targets {
            ids: Arc::new(batch.targets.clone()),
            weights: Arc::new(batch.loss_mask.clone()),
        };
        let hidden = batch.hidden(model, device);
        let sum = ops::cross_entropy(hidden, model.head(), targets, model.compute());
        let count = batch.loss_mask.iter().map(|&trained| f64::from(trained)).sum();
        let tokens = batch.trained_tokens();
        Outcome { sum, count, tokens, metrics: Vec::new() }
    }
}

/// Log-probability of every target of a batch, `[B, T]`.
pub fn batch_log_probs(model: &LanguageModel, batch: &Batch, device: &Device) -> Tensor<2> {
    let hidden = batch.hidden(model, device);
    target_log_probs(hidden, model.head(), batch.ids(&batch.targets, device))
}

impl Batch {
    /// Final hidden states `[B, T, C]`.
    fn hidden(&self, model: &LanguageModel, device: &Device) -> Tensor<3> {
        model.forward(self.ids(&self.tokens, device), &self.documents)
    }

    /// `[B, T]`
    fn ids(&self, ids: &[i32], device: &Device) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(ids.to_vec(), self.documents.dims()), device)
    }

    /// Number of trained targets.
    pub fn trained_tokens(&self) -> u64 {
        self.loss_mask.iter().filter(|&&trained| trained != 0.0).count() as u64
    }
}
