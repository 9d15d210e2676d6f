//! Finite check → global-norm clip → update. Nothing changes unless loss and gradient norm pass.
//!
//! Four implementations of [`OptimizerStep`], one of which is chosen when a run is opened:
//! [`HostStep`] reads loss and norm and decides; [`DeviceStep`] lets the device decide by the same
//! comparison, so that a step waits for nothing; [`DuringStep`] has updated most parameters in the
//! backward pass; `distributed::DataParallel` steps with several ranks.

use std::time::Duration;

use bitnet_format::TensorEntry;
use burn::tensor::{Bool, Device, Tensor};

use super::accumulate::{GradAccumulator, in_pool};
use super::adamw::{AdamW, AdamWSettings, UpdateMask};
use super::clip::{clip_factor_on_device, global_norm};
use super::during::{self, Applied};
use super::guard::{Limits, Skip};
use super::report::{PendingStep, StepFigures, StepReport, StepSettings};
use crate::checkpoint::{Moments, StoredMoments};
use crate::error::TrainError;
use crate::latents::{LeanSettings, UpdateTime};
use crate::model::{LanguageModel, replace_values, take_values, values};
use crate::ops::{self, OpBackend};
use crate::recipe::StepRates;

/// Steps that a device makes before the host reads their figures.
const STEPS_IN_FLIGHT: usize = 8;

/// Makes optimizer steps, and knows where the optimizer's state lives.
pub trait OptimizerStep: std::fmt::Debug {
    /// Applies the update, or skips it when loss or gradient norm does not pass its limit.
    fn step(
        &self,
        sum: GradAccumulator,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> (LanguageModel, PendingStep);

    /// Reads the figures of a step; may wait for the device. `optimizer` is the one that made it.
    fn sync(&self, pending: PendingStep, _optimizer: &mut AdamW) -> StepReport {
        pending.read()
    }

    /// Steps that may be made before [`OptimizerStep::sync`].
    fn log_interval(&self) -> usize {
        1
    }

    /// For each parameter whether it is not trained.
    fn frozen(&self) -> &[bool];

    /// Where fewer bits than f32 are kept.
    fn lean(&self) -> LeanSettings {
        LeanSettings::default()
    }

    /// The optimizer of step 0 of the parameters of this `table`, with the moments that this process
    /// keeps.
    fn new_optimizer(
        &self,
        table: &[TensorEntry],
        settings: AdamWSettings,
        device: &Device,
    ) -> AdamW {
        AdamW::with_lean(table, settings, self.lean(), self.frozen(), device)
    }

    /// Brings what was read from a checkpoint to all ranks: the model of rank 0, and the moments
    /// that rank 0 has `stored`.
    ///
    /// # Errors
    /// When a moment is missing or broken.
    fn load(
        &self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        stored: Option<&StoredMoments>,
    ) -> Result<LanguageModel, TrainError> {
        let device = model.device().inner();
        let stored = stored.expect("a single process has opened it");
        stored.complete(&model)?;
        stored.read_all(model.table(), optimizer, &device)?;
        Ok(model)
    }

    /// Calls `write` with the moments of all parameters, on the rank that writes the checkpoint.
    ///
    /// # Errors
    /// Those of `write`, and ranks whose parameters differ.
    fn save(
        &self,
        _model: &LanguageModel,
        optimizer: &AdamW,
        _step: u64,
        write: &mut dyn FnMut(&dyn Moments) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        write(optimizer)
    }

    /// Time spent communicating with other ranks since the last call.
    fn take_communicated(&self) -> Duration {
        Duration::ZERO
    }
}

/// The step of one process with this backend; `frozen[i]` says whether tensor `i` is not trained.
/// With `sync_every_step` no step stays in flight, because the limits depend on the steps before.
pub fn single_process(
    backend: OpBackend,
    frozen: Vec<bool>,
    sync_every_step: bool,
) -> Box<dyn OptimizerStep> {
    let lean = (LeanSettings::default(), UpdateTime::After);
    lean_process(backend, frozen, lean, sync_every_step)
}

/// The same with state in fewer bits, or updates in the middle of the backward pass, which the host
/// alone makes.
pub fn lean_process(
    backend: OpBackend,
    frozen: Vec<bool>,
    (lean, update): (LeanSettings, UpdateTime),
    sync_every_step: bool,
) -> Box<dyn OptimizerStep> {
    if !backend.is_native() {
        let in_flight = if sync_every_step { 1 } else { STEPS_IN_FLIGHT };
        return Box::new(DeviceStep { frozen, in_flight });
    }
    match update {
        UpdateTime::After => Box::new(HostStep { frozen, lean }),
        UpdateTime::During => Box::new(DuringStep { frozen, lean }),
    }
}

/// The host reads loss and norm, then skips the update or makes it.
#[derive(Debug)]
pub(crate) struct HostStep {
    frozen: Vec<bool>,
    lean: LeanSettings,
}

impl OptimizerStep for HostStep {
    fn step(
        &self,
        mut sum: GradAccumulator,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> (LanguageModel, PendingStep) {
        let gradients = sum.take_gradients();
        let backend = model.backend();
        let norm = in_pool(|| global_norm(gradients.iter().flatten(), backend));
        let (pending, factor) = sum.judge(norm, settings);
        let Some(factor) = factor else { return (model, pending) };
        // Taken out of the model, so that nothing else holds them and the update works in place.
        let (model, values) = take_values(model);
        let outside = model.outside();
        let new =
            in_pool(|| optimizer.update_all(values, outside, gradients, (factor, rates), backend));
        (replace_values(model, new), pending)
    }

    fn frozen(&self) -> &[bool] {
        &self.frozen
    }

    fn lean(&self) -> LeanSettings {
        self.lean
    }
}

/// The step of a run that updates during its backward pass: what is left is a handful of norms.
#[derive(Debug)]
pub(crate) struct DuringStep {
    frozen: Vec<bool>,
    lean: LeanSettings,
}

impl OptimizerStep for DuringStep {
    fn step(
        &self,
        mut sum: GradAccumulator,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> (LanguageModel, PendingStep) {
        let Applied { squares, skipped, rest, .. } = sum.take_applied();
        let loss = sum.loss();
        // The loss alone skips a step; a norm that is not finite shows in what is reported.
        // A finite loss with a skipped step means that a gradient was not finite; the report says
        // so.
        let not_finite = skipped == Some(Skip::NotFinite) && loss.is_finite();
        let norm = during::sum(&squares).sqrt();
        let grad_norm = if not_finite { f64::NAN } else { norm };
        let figures = StepFigures::OnHost { loss, grad_norm, passed: skipped.is_none() };
        let pending = sum.into_pending(figures, settings.limits);
        if skipped.is_some() {
            return (model, pending);
        }
        optimizer.last_squares = squares;
        let backend = model.backend();
        let (model, mut values) = take_values(model);
        for (index, gradient, factor) in rest {
            let value = std::mem::replace(&mut values[index], Tensor::zeros([0], &model.device()));
            let pair = [value, gradient];
            values[index] = optimizer.update_one(index, pair, (factor, rates), backend);
        }
        (replace_values(model, values), pending)
    }

    fn frozen(&self) -> &[bool] {
        &self.frozen
    }

    fn lean(&self) -> LeanSettings {
        self.lean
    }
}

/// The device computes the update, then takes it or keeps the old values.
#[derive(Debug)]
pub(crate) struct DeviceStep {
    frozen: Vec<bool>,
    in_flight: usize,
}

impl OptimizerStep for DeviceStep {
    fn step(
        &self,
        mut sum: GradAccumulator,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> (LanguageModel, PendingStep) {
        let gradients = sum.take_gradients();
        // Everything from here to `figures` is queued on the device; the host reads none of it.
        let divisor = sum.divisor(settings.reduction);
        let squares = |g: &Tensor<1>| ops::sum_of_squares(g.clone(), model.backend());
        let squares = Tensor::cat(gradients.iter().flatten().map(squares).collect(), 0);
        let norm = squares.sum().sqrt().div_scalar(divisor);
        let loss = sum.loss_on_device();
        let Limits { loss: loss_limit, grad_norm: norm_limit } = settings.limits;
        let passed = within(&loss, loss_limit).bool_and(within(&norm, norm_limit));
        let factor = clip_factor_on_device(&norm, settings.grad_clip).div_scalar(divisor);
        let figures = Tensor::cat(vec![loss, norm, passed.clone().float()], 0);
        let mask = UpdateMask { factor, passed };
        let new = optimizer.update_where(&mask, values(&model), gradients, rates, model.backend());
        let figures = StepFigures::OnDevice(Box::new(figures));
        (replace_values(model, new), sum.into_pending(figures, settings.limits))
    }

    /// The host counted the update as made and takes it back when the device skipped it.
    fn sync(&self, pending: PendingStep, optimizer: &mut AdamW) -> StepReport {
        let report = pending.read();
        // Steps in flight after a skipped one took a count that is one too high for their bias
        // correction: a small difference, and only on devices that keep steps in flight.
        optimizer.updates -= u64::from(report.skipped.is_some());
        report
    }

    fn log_interval(&self) -> usize {
        self.in_flight
    }

    fn frozen(&self) -> &[bool] {
        &self.frozen
    }
}

/// One step of a single process: the update and its figures.
pub fn optimizer_step(
    sum: GradAccumulator,
    model: LanguageModel,
    optimizer: &mut AdamW,
    settings: StepSettings,
    rates: StepRates,
) -> (LanguageModel, StepReport) {
    let stepper = single_process(model.backend(), Vec::new(), true);
    let (model, pending) = stepper.step(sum, model, optimizer, settings, rates);
    (model, stepper.sync(pending, optimizer))
}

/// [`Limits::check`] of one figure `[1]`; false for NaN, because no comparison with it holds.
fn within(figure: &Tensor<1>, limit: f64) -> Tensor<1, Bool> {
    // An infinite limit becomes the largest f32: infinity itself must not pass.
    figure.clone().lower_equal_scalar(limit.min(f64::from(f32::MAX)) as f32)
}
