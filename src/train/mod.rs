//! The training loop.
//!
//! `Trainer::train` is the whole of it: draw a batch, sum its gradients, clip and update, run the
//! callbacks that are due. The state of a run is four values: model, optimizer, step and loader
//! position (`TrainState`); resuming reads them from a checkpoint and enters the same loop.
//!
//! * `open`, `context`: everything a recipe names, opened once (`RunContext`)
//! * `stage`: what pretraining, SFT and DPO bring to the loop
//! * `step`: gradients and the optimizer step
//! * `metrics`, `callbacks`, `save`: what happens between steps
//!
//! What a run is beside its training (directory, options, resuming, pipelines) is `crate::run`.

mod callbacks;
pub(crate) mod context;
mod energy;
mod latent_report;
mod metrics;
pub(crate) mod open;
mod rounded_away;
mod sample;
mod save;
pub(crate) mod stage;
pub(crate) mod state;
pub(crate) mod step;
mod tasks;
pub(crate) mod teacher;
mod telemetry;
pub(crate) mod waiting_lines;

use std::time::Instant;

pub use crate::distributed::{all_ok, first_only};
pub use crate::error::TrainError;
pub use crate::recipe::{LossReduction, StepRates};
pub use sample::{SampleSettings, sample};
pub use stage::distill::relations::{RelationBlock, Relations};
pub use stage::distill::{Distillation, DistillationBatch};
pub use stage::evaluate::{Likelihood, batch_of, likelihood};
pub use stage::objective::{CrossEntropy, LossSum, Objective, TokenBatch, batch_log_probs};
pub use stage::preference::{DpoObjective, PairBatch, sequence_log_probs};
pub use step::accumulate::GradAccumulator;
pub use step::adamw::{AdamW, AdamWSettings};
pub use step::clip::global_norm;
pub use step::during::UpdateDuring;
pub use step::guard::{Limits, Skip};
pub use step::muon::MuonSettings;
pub use step::report::{PendingStep, StepReport, StepSettings};
pub use step::update::{OptimizerStep, lean_process, optimizer_step, single_process};

pub(crate) use callbacks::Callbacks;
pub(crate) use metrics::RunLog;

use crate::distributed::any_stop;
use crate::model::LanguageModel;
use crate::platform::StopSignal;
use context::RunContext;
use stage::{BatchRequest, Stage, StepGradients};
use state::{Progress, TrainState};

/// The loop with everything it works on.
pub(crate) struct Trainer<'a> {
    pub(crate) context: &'a RunContext<'a>,
    pub(crate) stage: Box<dyn Stage>,
    pub(crate) callbacks: Callbacks<'a>,
    /// When the run has to stop, by `train.max_minutes`.
    pub(crate) deadline: Option<Instant>,
}

/// What signals, files and the clock ask of a run, on whichever rank.
struct Requests {
    stop: Option<StopSignal>,
    save: bool,
}

impl Trainer<'_> {
    /// Trains to the last step, or until a signal stops the run with its state saved.
    pub(crate) fn train(&mut self, mut state: TrainState) -> Result<TrainState, TrainError> {
        let context = self.context;
        loop {
            // Callbacks of the step before; a resumed run repeats those that a signal cut off.
            // Asked once an iteration and exchanged between ranks, so that all of them save or stop
            // at the same step.
            let requests = self.requests();
            if state.progress.unfinished {
                self.callbacks.after_step(self.stage.as_mut(), &mut state, requests.save)?;
            }
            if state.progress.step == context.steps {
                return Ok(state);
            }
            if let Some(stop) = requests.stop {
                return Err(self.callbacks.save_and_stop(&mut state, stop));
            }

            // Draw a batch, run it forward and backward, sum the gradients.
            self.callbacks.step_starts();
            let step = state.progress.step + 1;
            let rates = context.schedule.at(step);
            let settings = context.step_settings(state.progress.spikes.limits(context.guard()));
            let TrainState { model, optimizer, progress, .. } = &mut state;
            // Only with `train.update = "during"`: then the backward pass itself applies updates.
            let updates = context.updates_during(optimizer, settings, rates);
            let drawn =
                next_gradients(context, self.stage.as_mut(), (model, progress), updates.as_ref());
            let gradients = match drawn {
                // A signal in the middle: the state is still that of the step before.
                Err(TrainError::Stopped(stop)) => {
                    return Err(self.callbacks.save_and_stop(&mut state, stop));
                }
                // Half of the parameters are new: there is no state to save.
                Err(error @ TrainError::HalfUpdated { .. }) => return Err(error),
                Err(error) => return Err(self.callbacks.save_before(&mut state, error)),
                Ok(gradients) => gradients,
            };

            // Check, clip, update.
            let StepGradients { sum, next, places } = gradients;
            let (model, optimizer) = (state.model, &mut state.optimizer);
            let (model, pending) = context.stepper.step(sum, model, optimizer, settings, rates);
            state.model = model;
            // From here the step counts as made: a checkpoint written now continues with the next
            // batch.
            state.progress.advance(next, &pending);

            // A device that would have to wait for its figures makes a few steps first.
            self.callbacks.made(step, &state.progress, rates, pending, places);
            if self.callbacks.in_flight() >= context.stepper.log_interval() {
                let synced = self.callbacks.sync_metrics(&mut state);
                synced.or_else(|error| self.callbacks.end(&mut state, error))?;
            }
        }
    }

    /// The requests (stop, save) made to any rank; all ranks get the same answer.
    fn requests(&self) -> Requests {
        let RunContext { signals, comm, .. } = self.context;
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let stop = signals.stop().or(late.then_some(StopSignal::TimeIsOver));
        let save = signals.take_save() || self.callbacks.take_save_request();
        if comm.world_size() == 1 {
            return Requests { stop, save };
        }
        Requests { stop: any_stop(comm, stop), save: comm.all_reduce_max(u8::from(save)) > 0 }
    }
}

/// The gradients of the step that follows a state, their loss checked; changes nothing but what `updates`
/// does.
pub(crate) fn next_gradients(
    context: &RunContext,
    stage: &mut dyn Stage,
    (model, progress): (&LanguageModel, &Progress),
    updates: Option<&UpdateDuring>,
) -> Result<StepGradients, TrainError> {
    let (train, position) = (&context.recipe.train, &progress.position);
    let step = progress.step + 1;
    let phase = context.schedule.phase_of(step);
    let (mix, batch, cut) = (&context.mixes[phase], train.batches().at(step), train.cut());
    let request = BatchRequest { phase, mix, position, batch, cut, updates };
    // The clone shares all tensors. It carries the step for stochastic rounding and the ternary
    // warm-up.
    let model = context.at_step(model.clone(), step);
    let gradients = stage.gradients(&model, request, context.step_context(&context.device))?;
    if let Some(tensor) = gradients.sum.broken() {
        let tensor = context.table[tensor].name.clone();
        return Err(TrainError::HalfUpdated { step, tensor });
    }
    // Step 1 only: later the policy has moved away from its reference.
    if let (1, Some(expected)) = (step, stage.first_loss()) {
        check_first_loss(gradients.sum.loss(), expected, context.backend.is_native())?;
    }
    Ok(gradients)
}

/// Policy and reference of a preference run start equal, so its first loss is known (ln 2). Another
/// loss would mean that they are not the same model, or not computed alike. Where a product may
/// depend on the number of rows (`!exact`), one rounding can move an activation code.
fn check_first_loss(found: f32, expected: f32, exact: bool) -> Result<(), TrainError> {
    let tolerance = if exact { 1e-6 } else { 1e-2 };
    if (found - expected).abs() <= tolerance {
        return Ok(());
    }
    Err(TrainError::ReferenceDiffers { found, expected })
}
