//! One optimizer step: micro-batches → forward → loss → backward → finite check → global-norm
//! clip → update. Nothing is changed unless the loss and the gradient norm are finite.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::{LanguageModel, replace_values, take_values, values};
use crate::ops::{self, Compute};
use crate::train::guard::Limits;
use crate::train::{AdamW, Objective, Outcome, Rates};

/// How the summed loss of a batch becomes the quantity that is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Divide by the number of counted items in the whole batch.
    Mean,
    /// Leave the sum (SFT in the 2B4T report, §3.2).
    Sum,
}

/// What a step needs to know beside model and data.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Mean or sum.
    pub reduction: Reduction,
    /// Largest global gradient norm; 0 switches clipping off.
    pub grad_clip: f64,
    /// Above these the update is left out.
    pub limits: Limits,
}

impl Default for StepSettings {
    /// Mean loss, gradients clipped to a global norm of 1.
    fn default() -> Self {
        Self { reduction: Reduction::Mean, grad_clip: 1.0, limits: Limits::NONE }
    }
}

/// Why an update was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Loss or gradient norm is not finite.
    NotFinite,
    /// One of them lies above its limit.
    Spike,
}

/// What happened in a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean loss per counted item, whatever the reduction.
    pub loss: f32,
    /// Global L2 norm of the gradient of the reduced loss, before clipping.
    pub grad_norm: f64,
    /// Items counted: trained tokens, or pairs.
    pub count: f64,
    /// Trained targets, whatever is counted.
    pub tokens: u64,
    /// Why the update was left out, if it was.
    pub skipped: Option<Skip>,
    /// Means over what is counted of the objective's other figures.
    pub metrics: Vec<(&'static str, f64)>,
}

/// The sum over micro-batches of losses and gradients.
#[derive(Debug, Default)]
pub struct Accumulated {
    loss_sum: f64,
    count: f64,
    tokens: u64,
    metrics: Vec<(&'static str, f64)>,
    gradients: Vec<Tensor<1>>,
}

impl Accumulated {
    /// Runs micro-batches one after the other.
    pub fn of<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        micro_batches: &[O::Batch],
        device: &Device,
    ) -> Self {
        let mut total = Self::default();
        for batch in micro_batches {
            total.add(Self::one(model, objective, batch, device));
        }
        total
    }

    /// Runs micro-batches, the parts of each at the same time on the threads of the pool, and adds
    /// up in their order; `None` when `interrupted` says so between two of them.
    pub fn over<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        micro_batches: &[Vec<O::Batch>],
        device: &Device,
        interrupted: &dyn Fn() -> bool,
    ) -> Option<Self> {
        let mut total = Self::default();
        for parts in micro_batches {
            if interrupted() {
                return None;
            }
            let run =
                |batch: &O::Batch| Self::one(&with_own_leaves(model), objective, batch, device);
            let sums: Vec<Self> = match parts.as_slice() {
                [batch] => vec![Self::one(model, objective, batch, device)],
                parts => parts.par_iter().map(run).collect(),
            };
            for sum in sums {
                total.add(sum);
            }
        }
        Some(total)
    }

    fn one<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        batch: &O::Batch,
        device: &Device,
    ) -> Self {
        let (hidden, recording) = objective.rows(batch).record(model, device);
        let Outcome { sum, count, tokens, metrics } = objective.outcome(model, hidden, batch);
        let gradients = recording.gradients(model, sum.backward());
        let loss_sum = f64::from(sum.into_scalar::<f32>());
        Self { loss_sum, count, tokens, metrics, gradients }
    }

    fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.count += other.count;
        self.tokens += other.tokens;
        if self.gradients.is_empty() {
            self.metrics = other.metrics;
            self.gradients = other.gradients;
            return;
        }
        let metrics = self.metrics.iter().zip(other.metrics);
        self.metrics = metrics.map(|((name, sum), (_, more))| (*name, sum + more)).collect();
        let old = std::mem::take(&mut self.gradients);
        self.gradients = old.into_par_iter().zip(other.gradients).map(|(a, b)| a + b).collect();
    }

    /// Mean loss per counted item.
    pub fn loss(&self) -> f32 {
        (self.loss_sum / self.count) as f32
    }

    /// The gradients of the reduced loss, flat, in table order.
    pub fn reduced_gradients(self, reduction: Reduction) -> Vec<Tensor<1>> {
        let divisor = self.divisor(reduction);
        self.gradients.into_iter().map(|gradient| gradient.div_scalar(divisor)).collect()
    }

    fn divisor(&self, reduction: Reduction) -> f64 {
        match reduction {
            Reduction::Mean => self.count,
            Reduction::Sum => 1.0,
        }
    }

    /// Applies the update unless loss or gradient norm is not finite.
    pub fn apply(
        self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: Rates,
    ) -> (LanguageModel, StepReport) {
        let divisor = self.divisor(settings.reduction);
        let gradients = optimizer.trained(self.gradients);
        let compute = model.compute();
        let norm = in_pool(|| global_norm(gradients.iter().flatten(), compute));
        let grad_norm = norm / divisor;
        let loss = (self.loss_sum / self.count) as f32;
        let skipped = settings.limits.verdict(loss, grad_norm);
        let mean = |(name, sum): &(&'static str, f64)| (*name, sum / self.count);
        let metrics = self.metrics.iter().map(mean).collect();
        let (count, tokens) = (self.count, self.tokens);
        let report = StepReport { loss, grad_norm, count, tokens, skipped, metrics };
        if skipped.is_some() {
            return (model, report);
        }
        let factor = clip_factor(grad_norm, settings.grad_clip) / divisor;
        // Taken out of the model, so that the update has them to itself and works in place.
        let (model, values) = take_values(model);
        let new = in_pool(|| optimizer.update(values, gradients, factor, rates, compute));
        (replace_values(model, new), report)
    }
}

/// The same model whose parameters begin graphs of their own, so that several passes can be
/// recorded at the same time. The values are shared.
pub(crate) fn with_own_leaves(model: &LanguageModel) -> LanguageModel {
    replace_values(model.clone(), values(model))
}

/// Runs work that is shared out over the threads of the pool many times in a row on one of them:
/// from outside, each time would cost two switches of threads.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// L2 norm over all gradients together, summed in f64 over the tensors.
pub fn global_norm<'a>(
    gradients: impl IntoIterator<Item = &'a Tensor<1>>,
    compute: Compute,
) -> f64 {
    gradients.into_iter().map(|g| ops::sum_of_squares(g.clone(), compute)).sum::<f64>().sqrt()
}

impl Limits {
    fn verdict(self, loss: f32, grad_norm: f64) -> Option<Skip> {
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Some(Skip::NotFinite);
        }
        (f64::from(loss) > self.loss || grad_norm > self.grad_norm).then_some(Skip::Spike)
    }
}

/// What gradients are multiplied by: `torch.nn.utils.clip_grad_norm_`, its 1e-6 included.
fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_above_a_limit_is_a_spike_and_one_that_is_not_finite_is_worse() {
        let limits = Limits { loss: 2.0, grad_norm: 5.0 };
        assert_eq!(limits.verdict(2.0, 5.0), None);
        assert_eq!(limits.verdict(2.1, 1.0), Some(Skip::Spike));
        assert_eq!(limits.verdict(1.0, 5.1), Some(Skip::Spike));
        assert_eq!(limits.verdict(f32::NAN, 1.0), Some(Skip::NotFinite));
        assert_eq!(Limits::NONE.verdict(1.0, f64::INFINITY), Some(Skip::NotFinite));
        assert_eq!(Limits::NONE.verdict(1e30, 1e30), None);
    }

    #[test]
    fn clipping_acts_only_above_the_limit() {
        assert!((clip_factor(2.0, 1.0) - 0.5).abs() < 1e-6);
        assert!((clip_factor(0.5, 1.0) - 1.0).abs() < f64::EPSILON);
        assert!((clip_factor(1e9, 0.0) - 1.0).abs() < f64::EPSILON);
    }
}
