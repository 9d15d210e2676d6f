//! One optimizer step: micro-batches → forward → loss → backward → finite check → global-norm
//! clip → update. Nothing is changed unless the loss and the gradient norm are finite.
//!
//! Where numbers are in reach of the host, the host decides that ([`Limits::verdict`]). Elsewhere
//! the device does, by the same comparison, and the host learns of it when it asks
//! ([`MadeStep::report`]): a step then waits for nothing.

use burn::tensor::{Bool, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::device::runs_own_operations;
use crate::model::{LanguageModel, replace_values, take_values, values};
use crate::ops::{self, Compute};
use crate::ranks::Ranks;
use crate::train::adamw::Verdict;
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
    /// The summed loss of each part, `[1]`, unread.
    losses: Vec<Tensor<1>>,
    /// The summed loss of all ranks, once they have told each other.
    total: Option<f64>,
    count: f64,
    tokens: u64,
    /// Those of this rank.
    own_tokens: u64,
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
                // Other devices queue their work by thread and want all of it from one.
                [batch] if !runs_own_operations(device) => {
                    vec![Self::one(model, objective, batch, device)]
                }
                [batch] => vec![in_pool(|| Self::one(model, objective, batch, device))],
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
        let losses = vec![sum.inner()];
        Self { losses, total: None, count, tokens, own_tokens: tokens, metrics, gradients }
    }

    fn add(&mut self, other: Self) {
        self.losses.extend(other.losses);
        self.count += other.count;
        self.tokens += other.tokens;
        self.own_tokens += other.own_tokens;
        if self.gradients.is_empty() {
            self.metrics = other.metrics;
            self.gradients = other.gradients;
            return;
        }
        let metrics = self.metrics.iter().zip(other.metrics);
        self.metrics = metrics.map(|((name, sum), (_, more))| (*name, sum + more)).collect();
        let old = std::mem::take(&mut self.gradients);
        self.gradients = old.into_iter().zip(other.gradients).map(|(a, b)| a + b).collect();
    }

    /// Mean loss per counted item.
    pub fn loss(&self) -> f32 {
        (self.total.unwrap_or_else(|| self.own_total()) / self.count) as f32
    }

    fn own_total(&self) -> f64 {
        self.losses.iter().map(|sum| f64::from(sum.clone().into_scalar::<f32>())).sum()
    }

    /// The same with loss, count, tokens and metrics of all ranks. Gradients stay this rank's own.
    #[must_use]
    pub(crate) fn with_others(mut self, ranks: &Ranks) -> Self {
        if ranks.is_alone() {
            return self;
        }
        let mut own = vec![self.own_total(), self.count, self.tokens as f64];
        own.extend(self.metrics.iter().map(|(_, sum)| sum));
        let sums = ranks.sums(&own);
        self.total = Some(sums[0]);
        self.count = sums[1];
        self.tokens = sums[2] as u64;
        self.metrics.iter_mut().zip(&sums[3..]).for_each(|((_, sum), all)| *sum = *all);
        self
    }

    pub(crate) fn take_gradients(&mut self) -> Vec<Tensor<1>> {
        std::mem::take(&mut self.gradients)
    }

    /// A step made of this, once it is known how it went.
    pub(crate) fn made(self, figures: Figures, limits: Limits) -> MadeStep {
        let Self { count, tokens, own_tokens, metrics, .. } = self;
        MadeStep { figures, limits, count, tokens, own_tokens, metrics }
    }

    /// The gradients of the reduced loss, flat, in table order.
    pub fn reduced_gradients(self, reduction: Reduction) -> Vec<Tensor<1>> {
        let divisor = self.divisor(reduction);
        self.gradients.into_iter().map(|gradient| gradient.div_scalar(divisor)).collect()
    }

    pub(crate) fn divisor(&self, reduction: Reduction) -> f64 {
        match reduction {
            Reduction::Mean => self.count,
            Reduction::Sum => 1.0,
        }
    }

    /// Applies the update unless loss or gradient norm is not finite, and says what happened.
    pub fn apply(
        self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: Rates,
    ) -> (LanguageModel, StepReport) {
        let (model, made) = self.make(model, optimizer, settings, rates);
        (model, made.report(optimizer))
    }

    /// Applies the update unless loss or gradient norm is not finite; what happened can be asked
    /// for later.
    pub fn make(
        mut self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: Rates,
    ) -> (LanguageModel, MadeStep) {
        let gradients = optimizer.trained(self.take_gradients());
        let gradients = Step { gradients, settings, rates };
        let (model, figures) = if runs_own_operations(&model.head().device()) {
            self.decide_here(model, optimizer, gradients)
        } else {
            self.decide_there(model, optimizer, gradients)
        };
        (model, self.made(figures, settings.limits))
    }

    /// The host looks at loss and norm and leaves the update out or makes it.
    fn decide_here(
        &self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        step: Step,
    ) -> (LanguageModel, Figures) {
        let Step { gradients, settings, rates } = step;
        let (divisor, compute) = (self.divisor(settings.reduction), model.compute());
        let norm = in_pool(|| global_norm(gradients.iter().flatten(), compute));
        let (loss, grad_norm) = (self.loss(), norm / divisor);
        let passed = settings.limits.verdict(loss, grad_norm).is_none();
        let figures = Figures::Known { loss, grad_norm, passed };
        if !passed {
            return (model, figures);
        }
        let factor = clip_factor(grad_norm, settings.grad_clip) / divisor;
        // Taken out of the model, so that the update has them to itself and works in place.
        let (model, values) = take_values(model);
        let new = in_pool(|| optimizer.update(values, gradients, factor, rates, compute));
        (replace_values(model, new), figures)
    }

    /// The device computes the update and takes it, or keeps what was.
    fn decide_there(
        &self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        step: Step,
    ) -> (LanguageModel, Figures) {
        let Step { gradients, settings, rates } = step;
        let divisor = self.divisor(settings.reduction);
        let squares = |g: &Tensor<1>| ops::sum_of_squares(g.clone(), model.compute());
        let squares = Tensor::cat(gradients.iter().flatten().map(squares).collect(), 0);
        let norm = squares.sum().sqrt().div_scalar(divisor);
        let loss = Tensor::cat(self.losses.clone(), 0).sum().div_scalar(self.count);
        let Limits { loss: loss_limit, grad_norm: norm_limit } = settings.limits;
        let passed = within(&loss, loss_limit).bool_and(within(&norm, norm_limit));
        let factor = clip_factors(&norm, settings.grad_clip).div_scalar(divisor);
        let figures = [loss, norm, passed.clone().float()];
        let figures = Figures::There(Box::new(Tensor::cat(figures.into(), 0)));
        let verdict = Verdict { factor, passed };
        let new = optimizer.update_where(&verdict, values(&model), gradients, rates);
        (replace_values(model, new), figures)
    }
}

/// What an update is made of.
struct Step {
    gradients: Vec<Option<Tensor<1>>>,
    settings: StepSettings,
    rates: Rates,
}

/// Loss, gradient norm and whether the update was made.
#[derive(Clone, Debug)]
pub(crate) enum Figures {
    Known {
        loss: f32,
        grad_norm: f64,
        passed: bool,
    },
    /// The same on the device, `[3]`.
    There(Box<Tensor<1>>),
}

/// A step that was made, its figures perhaps still on the device.
#[derive(Clone, Debug)]
pub struct MadeStep {
    figures: Figures,
    limits: Limits,
    count: f64,
    tokens: u64,
    own_tokens: u64,
    metrics: Vec<(&'static str, f64)>,
}

impl MadeStep {
    /// Trained targets of this rank.
    pub fn own_tokens(&self) -> u64 {
        self.own_tokens
    }

    /// Trained targets.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// What happened; waits for the device. `optimizer` made the step, and is told when the device
    /// left the update out.
    pub fn report(self, optimizer: &mut AdamW) -> StepReport {
        let (loss, grad_norm, passed) = match self.figures {
            Figures::Known { loss, grad_norm, passed } => (loss, grad_norm, passed),
            Figures::There(figures) => {
                let figures = figures.into_data().try_into_vec::<f32>().expect("figures are f32");
                let passed = figures[2] > 0.5;
                optimizer.updates -= u64::from(!passed);
                (figures[0], f64::from(figures[1]), passed)
            }
        };
        // The two may differ in how they round a limit.
        let why = || self.limits.verdict(loss, grad_norm).unwrap_or(Skip::Spike);
        let skipped = (!passed).then(why);
        let mean = |(name, sum): (&'static str, f64)| (name, sum / self.count);
        let metrics = self.metrics.into_iter().map(mean).collect();
        StepReport { loss, grad_norm, count: self.count, tokens: self.tokens, skipped, metrics }
    }
}

/// The same model whose parameters begin graphs of their own, so that several passes can be
/// recorded at the same time. The values are shared.
pub(crate) fn with_own_leaves(model: &LanguageModel) -> LanguageModel {
    replace_values(model.clone(), values(model))
}

/// Runs work that is shared out over the threads of the pool many times in a row on one of them:
/// from outside, each time would cost two switches of threads.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// L2 norm over all gradients together, summed in f64 over the tensors.
pub fn global_norm<'a>(
    gradients: impl IntoIterator<Item = &'a Tensor<1>>,
    compute: Compute,
) -> f64 {
    let squares = |g: &Tensor<1>| ops::sum_of_squares(g.clone(), compute).into_scalar::<f32>();
    gradients.into_iter().map(|g| f64::from(squares(g))).sum::<f64>().sqrt()
}

impl Limits {
    pub(crate) fn verdict(self, loss: f32, grad_norm: f64) -> Option<Skip> {
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Some(Skip::NotFinite);
        }
        (f64::from(loss) > self.loss || grad_norm > self.grad_norm).then_some(Skip::Spike)
    }
}

/// What gradients are multiplied by: `torch.nn.utils.clip_grad_norm_`, its 1e-6 included.
pub(crate) fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// [`Limits::verdict`] for one figure `[1]`: no comparison holds for what is not a number.
fn within(figure: &Tensor<1>, limit: f64) -> Tensor<1, Bool> {
    figure.clone().lower_equal_scalar(limit.min(f64::from(f32::MAX)) as f32)
}

/// [`clip_factor`] of a norm `[1]`.
fn clip_factors(norm: &Tensor<1>, limit: f64) -> Tensor<1> {
    if limit > 0.0 {
        norm.clone().add_scalar(1e-6).recip().mul_scalar(limit).clamp_max(1.0)
    } else {
        norm.ones_like()
    }
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
