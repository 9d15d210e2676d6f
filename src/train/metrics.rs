//! The figures of steps: read from the steps in flight, logged, counted.
//!
//! A step is made first and synced later. On the CPU one follows the other at once; a device makes a
//! few steps before the host reads their figures, so that it never waits.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::context::RunContext;
use super::energy::StepEnergy;
use super::state::{Progress, TrainState};
use super::step::guard::Skip;
use super::step::report::{PendingStep, StepReport};
use super::waiting_lines::{Attempt, LogLine, WaitingLines};
use crate::data::SourceLocation;
use crate::distributed::Comm;
use crate::error::{TrainError, is_full_disk};
use crate::monitor::{Monitor, StepRecord, Trackers};
use crate::recipe::StepRates;
use crate::run_dir::{METRICS_FILE, RunDir};

/// Where the figures of a run go: its directory, the terminal, trackers.
pub(crate) struct RunLog<'a> {
    pub(crate) dir: &'a RunDir,
    pub(crate) monitor: &'a mut dyn Monitor,
    /// Rank 0 has one; the others draw no curves.
    pub(crate) trackers: Option<Trackers>,
    waiting: WaitingLines,
    /// Whether a full disk holds the curves up.
    trackers_wait: bool,
}

impl<'a> RunLog<'a> {
    pub(crate) fn new(
        dir: &'a RunDir,
        monitor: &'a mut dyn Monitor,
        trackers: Option<Trackers>,
    ) -> Self {
        Self { dir, monitor, trackers, waiting: WaitingLines::default(), trackers_wait: false }
    }

    /// Appends a line to `metrics.jsonl` and draws it.
    pub(super) fn append(&mut self, record: &impl Serialize) -> Result<(), TrainError> {
        let line = serde_json::to_string(record).expect("our own records serialise");
        let read = serde_json::from_str(&line).expect("it was written just now");
        let told = self.trackers.as_mut().and_then(|trackers| trackers.command_line(&line));
        self.write_line(METRICS_FILE, line)?;
        if let Some(text) = told {
            self.monitor.message(&text);
        }
        self.draw(|trackers| trackers.line(&read))
    }

    /// Appends a line to a log. Where the disk is full it waits in memory, with one warning.
    pub(super) fn write_line(&mut self, file: &str, line: String) -> Result<(), TrainError> {
        match self.waiting.append(self.dir, file, line)? {
            Attempt::Written | Attempt::StillFull => {}
            Attempt::Full(why) => self.monitor.message(&format!(
                "{why}; training goes on, and what the logs lack is written when there is room"
            )),
            Attempt::Caught(lines) => self.monitor.message(&format!(
                "there is room again: the logs have the {lines} lines they lacked"
            )),
        }
        Ok(())
    }

    /// Writes the lines that wait.
    ///
    /// # Errors
    /// When the disk is still full.
    pub(super) fn write_waiting(&mut self) -> Result<(), TrainError> {
        self.waiting.write(self.dir)
    }

    /// # Errors
    /// When the disk is full and no more lines can wait.
    pub(super) fn require_bound(&mut self) -> Result<(), TrainError> {
        self.waiting.require_bound(self.dir)
    }

    /// The lines that wait, for a checkpoint.
    pub(super) fn unwritten(&self) -> Vec<LogLine> {
        self.waiting.lines()
    }

    /// Shows a text beside the curves.
    pub(super) fn text(&mut self, tag: &str, step: u64, text: &str) -> Result<(), TrainError> {
        self.draw(|trackers| trackers.text(tag, step, text))
    }

    /// Tells the trackers that the run is finished.
    pub(super) fn finish_trackers(&mut self) -> Result<(), TrainError> {
        let mut told = None;
        self.draw(|trackers| trackers.finish().map(|text| told = text))?;
        if let Some(text) = told {
            self.monitor.message(&text);
        }
        Ok(())
    }

    /// Draws, and says once that a full disk holds the curves up.
    fn draw(
        &mut self,
        drawing: impl FnOnce(&mut Trackers) -> io::Result<()>,
    ) -> Result<(), TrainError> {
        let Some(trackers) = &mut self.trackers else { return Ok(()) };
        match drawing(trackers) {
            Err(error) if is_full_disk(&error) => {
                if !std::mem::replace(&mut self.trackers_wait, true) {
                    self.monitor.message(&format!("{error}; training goes on without its curves"));
                }
                Ok(())
            }
            drawn => Ok(drawn?),
        }
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        self.append(record)?;
        self.monitor.step(record);
        Ok(())
    }
}

/// A step whose figures are unread.
pub(super) struct StepInFlight {
    pub(super) step: u64,
    /// Trained targets of the run up to this step.
    pub(super) tokens: u64,
    /// Trained targets of this rank.
    pub(super) own_tokens: u64,
    pub(super) rates: StepRates,
    pub(super) pending: PendingStep,
    /// The documents of this rank's share.
    pub(super) places: Vec<SourceLocation>,
}

/// The steps since the last sync.
pub(super) struct InFlight {
    pub(super) steps: Vec<StepInFlight>,
    since: Instant,
    energy: Option<StepEnergy>,
}

/// Means over the steps that were read together.
#[derive(Clone, Copy)]
struct StepCosts {
    time: Duration,
    joules_per_token: Option<f64>,
}

impl InFlight {
    pub(super) fn none() -> Self {
        Self { steps: Vec::new(), since: Instant::now(), energy: StepEnergy::open() }
    }

    /// Starts the clock of the first step after a sync, so that callbacks are not counted.
    pub(super) fn step_starts(&mut self) {
        if self.steps.is_empty() {
            self.since = Instant::now();
            self.energy.iter_mut().for_each(StepEnergy::steps_start);
        }
    }

    fn joules_per_token(&mut self, reports: &[StepReport]) -> Option<f64> {
        let tokens = reports.iter().map(|report| report.tokens).sum();
        self.energy.as_mut()?.per_token(tokens)
    }

    /// Joules per token of all steps, and what was counted.
    pub(super) fn energy(&self) -> Option<(f64, String)> {
        self.energy.as_ref()?.mean()
    }

    /// Reads, logs and counts the steps in flight; the loss of the last one, if there was any.
    pub(super) fn sync(
        &mut self,
        context: &RunContext,
        state: &mut TrainState,
        log: &mut RunLog,
    ) -> Result<Option<f32>, TrainError> {
        let steps = std::mem::take(&mut self.steps);
        let mut sync =
            |step: &StepInFlight| context.stepper.sync(step.pending.clone(), &mut state.optimizer);
        let reports: Vec<StepReport> = steps.iter().map(&mut sync).collect();
        let made = StepCosts {
            time: self.since.elapsed() / (steps.len() as u32).max(1),
            joules_per_token: self.joules_per_token(&reports),
        };
        for (step, report) in steps.iter().zip(&reports) {
            state.progress.spikes.push(context.guard(), report.loss, report.grad_norm);
            state.progress.count_skip(report);
            log_step(context, log, step, report, made)?;
        }
        state.progress.updates = state.optimizer.updates;
        state.progress.last_squares.clone_from(&state.optimizer.last_squares);
        give_up_on_divergence(context, &state.progress)?;
        Ok(reports.last().map(|report| report.loss))
    }
}

fn log_step(
    context: &RunContext,
    log: &mut RunLog,
    step: &StepInFlight,
    report: &StepReport,
    costs: StepCosts,
) -> Result<(), TrainError> {
    let mut record = record(context, step, report, costs);
    let Some(skip) = report.skipped else { return log.step(&record) };
    record.rows = places_of_all(context.comm, &step.places);
    log.step(&record)?;
    let why = if skip == Skip::Spike { "a spike" } else { "not finite" };
    let (step, rows) = (step.step, record.rows.join(" "));
    log.monitor.message(&format!("step {step} skipped ({why}); its documents: {rows}"));
    Ok(())
}

/// The documents of a step, of all ranks.
fn places_of_all(comm: &Comm, own: &[SourceLocation]) -> Vec<String> {
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    let own = serde_json::to_vec(&own).expect("names serialise");
    let read =
        |bytes: Vec<u8>| -> Vec<String> { serde_json::from_slice(&bytes).expect("names we wrote") };
    comm.gather(&own).into_iter().flat_map(read).collect()
}

fn give_up_on_divergence(context: &RunContext, progress: &Progress) -> Result<(), TrainError> {
    let guard = context.guard();
    let (step, in_a_row, total) = (progress.step, progress.skipped_in_a_row, progress.skipped);
    if in_a_row >= guard.max_skipped_in_a_row || total >= guard.max_skipped {
        return Err(TrainError::Diverged { step, in_a_row, total });
    }
    Ok(())
}

fn record(
    context: &RunContext,
    step: &StepInFlight,
    report: &StepReport,
    costs: StepCosts,
) -> StepRecord {
    let phase = context.schedule.phase_of(step.step);
    StepRecord {
        step: step.step,
        phase: context.recipe.phases[phase].name.clone(),
        tokens: step.tokens,
        loss: report.loss,
        loss_bits: format!("{:08x}", report.loss.to_bits()),
        lr: step.rates.learning_rate,
        weight_decay: step.rates.weight_decay,
        grad_norm: report.grad_norm,
        tokens_per_second: report.tokens as f64 / costs.time.as_secs_f64(),
        joules_per_token: costs.joules_per_token,
        ternary_lambda: context.recipe.ternary_warmup.map(|_| context.lambda(step.step).share()),
        skipped: report.skipped.is_some(),
        ranks: context.comm.world_size(),
        tokens_this_rank: step.own_tokens,
        metrics: report.metrics.iter().copied().collect(),
        rows: Vec::new(),
    }
}
