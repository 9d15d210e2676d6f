//! Micro-batches → summed loss and summed gradients.
//!
//! Losses and gradients are sums over counted items; the division by the global count happens once,
//! in the update. So how a batch is cut into micro-batches changes nothing but roundings.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::clip::clip_factor;
use super::during::{Applied, UpdateDuring};
use super::guard::Limits;
use super::report::{PendingStep, StepFigures, StepSettings};
use crate::distributed::Comm;
use crate::model::{GradientSink, LanguageModel, replace_values, values};
use crate::ops::{DrawPlace, OpBackend, with_threads};
use crate::recipe::LossReduction;
use crate::train::stage::objective::{LossSum, Objective};

/// Losses and gradients, summed over micro-batches.
#[derive(Debug, Default)]
pub struct GradAccumulator {
    /// The summed loss of each part, `[1]`, unread.
    losses: Vec<Tensor<1>>,
    /// The summed loss of all ranks, after [`GradAccumulator::all_reduce`].
    total: Option<f64>,
    count: f64,
    tokens: u64,
    /// Trained targets of this rank.
    own_tokens: u64,
    metrics: Vec<(&'static str, f64)>,
    /// Flat, in table order; frozen parameters have none.
    gradients: Vec<Option<Tensor<1>>>,
    /// What was updated in the middle of the backward pass.
    applied: Option<Applied>,
}

impl GradAccumulator {
    /// Runs micro-batches one after the other.
    pub fn of<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        micro_batches: &[O::Batch],
        device: &Device,
    ) -> Self {
        model.clear_rounding_counts();
        // `row` counts the rows of this rank's share over all micro-batches: the random bits of a
        // row belong to its place in the step, however the step is cut.
        let (mut total, mut row) = (Self::default(), 0);
        for batch in micro_batches {
            total.add(Self::one(&at_row(model.clone(), row), objective, batch, device));
            row += rows(objective, batch);
        }
        total
    }

    /// Runs micro-batches. The parts of each run at the same time on the threads of the pool; sums are
    /// added in the order of the parts, so the number of threads changes no bit. `None` when
    /// `interrupted` returns true between two micro-batches.
    pub fn over<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        micro_batches: &[Vec<O::Batch>],
        device: &Device,
        interrupted: &dyn Fn() -> bool,
    ) -> Option<Self> {
        model.clear_rounding_counts();
        let (mut total, mut row) = (Self::default(), 0);
        for parts in micro_batches {
            if interrupted() {
                return None;
            }
            let parts: Vec<(u64, &O::Batch)> = parts
                .iter()
                .map(|batch| {
                    let first = row;
                    row += rows(objective, batch);
                    (first, batch)
                })
                .collect();
            let here = |&(row, batch): &(u64, &O::Batch)| {
                Self::one(&at_row(model.clone(), row), objective, batch, device)
            };
            let apart = |&(row, batch): &(u64, &O::Batch)| {
                Self::one(&at_row(detached_copy(model), row), objective, batch, device)
            };
            let sums: Vec<Self> = match parts.as_slice() {
                // Other devices keep a queue a thread: all their work must come from one thread.
                [part] if !model.backend().is_native() => vec![here(part)],
                // One part and several threads: the operations share them.
                [part] if rayon::current_num_threads() > 1 => vec![here(part)],
                [part] => vec![in_pool(|| here(part))],
                parts => {
                    // Where there are more threads than parts, the operations of a part share some.
                    let threads = rayon::current_num_threads().div_ceil(parts.len());
                    let one = |part| with_threads(threads, || apart(part));
                    // `collect` keeps the order of the parts, whichever ends first; the sums below
                    // depend on it.
                    parts.par_iter().map(one).collect()
                }
            };
            // Gradients are added in one fixed order:
            //
            //    micro-batch 0: part 0 + part 1, then micro-batch 1: + part 0 + part 1, …
            //
            // Float sums depend on it, so the cut into parts is part of the recipe and threads are
            // not.
            for sum in sums {
                total.add(sum);
            }
        }
        Some(total)
    }

    /// Runs a micro-batch of a model whose matrices lie outside of tensors as one part, and hands every
    /// gradient to `updates` as soon as it is complete.
    pub fn updating<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        batch: &O::Batch,
        device: &Device,
        updates: &UpdateDuring,
    ) -> Self {
        let pass = |first: &dyn Fn(&Self) -> bool, sink: &mut GradientSink| {
            let (loss, graph) = objective.record(model, batch, device);
            let total = Self::of_loss(&loss);
            if first(&total) {
                graph.backward(model, loss.backward(), sink);
            }
            total
        };
        model.clear_rounding_counts();
        let begin = |total: &Self| updates.begin(total.loss(), total.count);
        // The first step has no step before it whose norm says how much to clip: its backward pass
        // runs twice, once to measure and once to update.
        if updates.knows_no_norm() {
            pass(&begin, &mut |first, gradients| updates.measure(model, first, &gradients));
            updates.measured();
        }
        let total = pass(&begin, &mut |first, gradients| updates.take(model, first, gradients));
        Self { applied: Some(updates.finish()), ..total }
    }

    /// Forward and backward pass of one batch.
    fn one<O: Objective>(
        model: &LanguageModel,
        objective: &O,
        batch: &O::Batch,
        device: &Device,
    ) -> Self {
        let (loss, graph) = objective.record(model, batch, device);
        Self { gradients: graph.gradients(model, loss.backward()), ..Self::of_loss(&loss) }
    }

    /// A loss without its gradients.
    fn of_loss(loss: &LossSum) -> Self {
        let LossSum { ref sum, count, tokens, ref metrics, .. } = *loss;
        // Kept as a tensor: reading a number makes the host wait for the device.
        let (losses, metrics) = (vec![sum.clone().inner()], metrics.clone());
        Self { losses, count, tokens, own_tokens: tokens, metrics, ..Self::default() }
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
        // The old vector is taken apart, so that the sum can be made in the memory of `a`.
        self.gradients = old.into_iter().zip(other.gradients).map(|(a, b)| Some(a? + b?)).collect();
    }

    /// Mean loss per counted item.
    pub fn loss(&self) -> f32 {
        (self.total.unwrap_or_else(|| self.own_total()) / self.count) as f32
    }

    fn own_total(&self) -> f64 {
        self.losses.iter().map(|sum| f64::from(sum.clone().into_scalar::<f32>())).sum()
    }

    /// Loss, count, tokens and metrics summed over all ranks. Gradients stay this rank's own.
    #[must_use]
    pub(crate) fn all_reduce(mut self, comm: &Comm) -> Self {
        if comm.world_size() == 1 {
            return self;
        }
        // In f64: counts stay whole numbers, and a sum of losses loses hardly anything.
        let mut own = vec![self.own_total(), self.count, self.tokens as f64];
        own.extend(self.metrics.iter().map(|(_, sum)| sum));
        let sums = comm.all_reduce_sum(&own);
        self.total = Some(sums[0]);
        self.count = sums[1];
        self.tokens = sums[2] as u64;
        self.metrics.iter_mut().zip(&sums[3..]).for_each(|((_, sum), all)| *sum = *all);
        self
    }

    pub(crate) fn take_gradients(&mut self) -> Vec<Option<Tensor<1>>> {
        std::mem::take(&mut self.gradients)
    }

    /// What was updated already, of a step that updates during its backward pass.
    pub(super) fn take_applied(&mut self) -> Applied {
        self.applied.take().expect("the backward pass has updated")
    }

    /// The tensor whose gradient turned out not to be finite when others were updated already.
    pub(crate) fn broken(&self) -> Option<usize> {
        self.applied.as_ref().and_then(|applied| applied.broken)
    }

    /// The mean loss, `[1]`, on the device.
    pub(super) fn loss_on_device(&self) -> Tensor<1> {
        Tensor::cat(self.losses.clone(), 0).sum().div_scalar(self.count)
    }

    /// The step made of this sum, once its figures are known.
    pub(super) fn into_pending(self, figures: StepFigures, limits: Limits) -> PendingStep {
        let Self { count, tokens, own_tokens, metrics, .. } = self;
        PendingStep { figures, limits, count, tokens, own_tokens, metrics }
    }

    /// What the host decides about a step whose summed gradients have this `norm`: the step, and what its
    /// gradients are multiplied by where it passes its limits.
    pub(crate) fn judge(self, norm: f64, settings: StepSettings) -> (PendingStep, Option<f64>) {
        let divisor = self.divisor(settings.reduction);
        let (loss, grad_norm) = (self.loss(), norm / divisor);
        let passed = settings.limits.check(loss, grad_norm).is_none();
        let figures = StepFigures::OnHost { loss, grad_norm, passed };
        // One factor does both: from a sum to the mean, and from too long to the longest allowed.
        // Gradients are read once more only in the update itself.
        let factor = clip_factor(grad_norm, settings.grad_clip) / divisor;
        (self.into_pending(figures, settings.limits), passed.then_some(factor))
    }

    /// The gradients of the reduced loss, flat, in table order, without those of frozen parameters.
    pub fn reduced_gradients(self, reduction: LossReduction) -> Vec<Tensor<1>> {
        let divisor = self.divisor(reduction);
        let gradients = self.gradients.into_iter().flatten();
        gradients.map(|gradient| gradient.div_scalar(divisor)).collect()
    }

    /// What a sum is divided by to get the reduced loss.
    pub(crate) fn divisor(&self, reduction: LossReduction) -> f64 {
        reduction.divisor(self.count)
    }
}

/// Rows that the model reads.
fn rows<O: Objective>(objective: &O, batch: &O::Batch) -> u64 {
    objective.rows(batch).documents.dims()[0] as u64
}

/// `model`, set to draw the random bits of these rows of its share of the step.
fn at_row(model: LanguageModel, row: u64) -> LanguageModel {
    let backend = model.backend().drawing(|place| DrawPlace { row, ..place });
    model.with_backend(backend)
}

/// How a step's rows, or pairs, are cut. The order of sums depends on the cut, and on no number of threads.
#[derive(Clone, Copy, Debug)]
pub struct BatchCut {
    /// Items of a micro-batch.
    pub micro_batch: usize,
    /// Parts of it that are computed side by side, each with gradients of its own. Small models gain most:
    /// their single operations are too small to be shared.
    pub copies: usize,
}

impl BatchCut {
    /// Items of each part of a micro-batch. A device that shares work itself gets the whole micro-batch.
    pub(crate) fn part_size(self, items: usize, backend: OpBackend) -> usize {
        let parts = if backend.is_native() { self.copies } else { 1 };
        items.div_ceil(parts).max(1)
    }
}

/// The model with its parameters as leaves of a new graph, so that several passes can be recorded
/// at the same time. The values are shared.
pub(crate) fn detached_copy(model: &LanguageModel) -> LanguageModel {
    replace_values(model.clone(), values(model))
}

/// Runs `work` inside the thread pool. Work that enters the pool many times in a row would pay two
/// thread switches each time if it came from outside.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
