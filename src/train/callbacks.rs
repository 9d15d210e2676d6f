//! Periodic actions between steps: metrics, ternary statistics, evaluation, samples. Saving is
//! `save`. All ranks pass here; what each of them does is decided here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitnet_eval::{Benchmark, BenchmarkScore};
use bitnet_format::process::{peak_memory, resident_memory};
use burn::module::Module;
use serde_json::json;

use super::context::RunContext;
use super::metrics::{InFlight, RunLog, StepInFlight};
use super::rounded_away::rounded_shares;
use super::sample::{SampleSettings, sample};
use super::stage::Stage;
use super::state::{Progress, TrainState};
use super::step::report::PendingStep;
use super::tasks;
use super::telemetry::Telemetry;
use crate::data::SourceLocation;
use crate::distributed::all_ok;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::Evaluation;
use crate::recipe::StepRates;
use crate::run_dir::SAMPLES_FILE;

/// What runs between steps, with what it remembers.
pub(crate) struct Callbacks<'a> {
    pub(super) context: &'a RunContext<'a>,
    pub(super) log: RunLog<'a>,
    telemetry: Telemetry,
    in_flight: InFlight,
    /// Loss of the last step that was read.
    pub(crate) last_loss: Option<f32>,
    /// Checkpoints in a row that a full disk prevented.
    pub(super) failed_saves: u32,
    /// The last folder written with the model, and the step it is of.
    pub(super) written: Option<(u64, PathBuf)>,
    /// When a checkpoint was last written or tried.
    pub(super) last_save: Instant,
}

impl<'a> Callbacks<'a> {
    pub(crate) fn new(context: &'a RunContext<'a>, log: RunLog<'a>) -> Self {
        Self {
            context,
            log,
            telemetry: Telemetry::default(),
            in_flight: InFlight::none(),
            last_loss: None,
            failed_saves: 0,
            written: None,
            last_save: Instant::now(),
        }
    }

    pub(super) fn step_starts(&mut self) {
        self.in_flight.step_starts();
    }

    /// What a token of these steps has cost: measured, and what was counted.
    pub(crate) fn energy(&self) -> Option<(f64, String)> {
        self.in_flight.energy()
    }

    /// Tells the user something.
    pub(crate) fn message(&mut self, text: &str) {
        self.log.monitor.message(text);
    }

    /// Notes a step that was made and not read.
    pub(super) fn made(
        &mut self,
        step: u64,
        progress: &Progress,
        rates: StepRates,
        pending: PendingStep,
        places: Vec<SourceLocation>,
    ) {
        let (tokens, own_tokens) = (progress.tokens, progress.own_tokens);
        let step = StepInFlight { step, tokens, own_tokens, rates, pending, places };
        self.in_flight.steps.push(step);
    }

    /// Steps that were made and not read.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.steps.len()
    }

    /// Reads and logs the steps in flight; gives up on a run that diverges.
    pub(super) fn sync_metrics(&mut self, state: &mut TrainState) -> Result<(), TrainError> {
        self.read_figures(state)?;
        self.log.require_bound()
    }

    /// The same, however many lines wait for room on the disk.
    pub(super) fn read_figures(&mut self, state: &mut TrainState) -> Result<(), TrainError> {
        let last_loss = self.in_flight.sync(self.context, state, &mut self.log)?;
        self.last_loss = last_loss.or(self.last_loss);
        Ok(())
    }

    /// Whether a file or the clock asks for a checkpoint. The clock is rank 0's.
    pub(super) fn take_save_request(&self) -> bool {
        let every = self.context.recipe.checkpoint.every_minutes;
        let due =
            |minutes: f64| self.last_save.elapsed() >= Duration::from_secs_f64(minutes * 60.0);
        let late = self.context.comm.is_first() && every.is_some_and(due);
        self.log.dir.take_save_request() || late
    }

    /// Runs the callbacks that are due; a signal in the middle ends the run with its state saved.
    pub(super) fn after_step(
        &mut self,
        stage: &mut dyn Stage,
        state: &mut TrainState,
        save: bool,
    ) -> Result<(), TrainError> {
        self.periodic(stage, state, save).or_else(|error| self.end(state, error))
    }

    /// Evaluation, samples and checkpoint where they are due.
    fn periodic(
        &mut self,
        stage: &mut dyn Stage,
        state: &mut TrainState,
        save: bool,
    ) -> Result<(), TrainError> {
        let (recipe, step) = (self.context.recipe, state.progress.step);
        let last = step == self.context.steps;
        let at = |every: Option<u64>| every.is_some_and(|every| step.is_multiple_of(every));
        let (evaluates, samples) = (recipe.eval.every, recipe.sample.every);
        let evaluates = at(evaluates) || last && evaluates.is_some();
        let samples = at(samples) || last && samples.is_some();
        let saves = last || save || at(recipe.checkpoint.every);
        let tasks = &recipe.eval.tasks;
        let asks = !tasks.names.is_empty() && (last || at(tasks.every));
        // Figures of steps in flight first: each of these needs the true optimizer state of this
        // step.
        if evaluates || samples || saves || asks {
            self.sync_metrics(state)?;
        }
        if at(recipe.telemetry.every) {
            self.report_codes(state)?;
            self.report_gradients(state)?;
        }
        if evaluates {
            self.evaluate(stage, state)?;
        }
        if asks {
            self.ask_tasks(state)?;
        }
        if samples {
            self.sample(state)?;
        }
        // Before the checkpoint: a run that resumes from it has nothing to repeat.
        state.progress.unfinished = false;
        if saves {
            self.save_checkpoint(state, last)?;
        }
        Ok(())
    }

    /// Logs statistics of the ternary codes.
    fn report_codes(&mut self, state: &TrainState) -> Result<(), TrainError> {
        if self.context.is_beside_codes() {
            return Ok(());
        }
        let (step, spec) = (state.progress.step, &self.context.spec);
        let (report, latents) = self.telemetry.report(spec, &state.model, self.context.comm);
        let Some(all) = report.get("all") else { return Ok(()) };
        let process = json!({"resident_bytes": resident_memory(), "peak_bytes": peak_memory()});
        let record =
            json!({"step": step, "ternary": report, "latents": latents, "process": process});
        self.log.append(&record)?;
        self.log.monitor.ternary(step, all);
        Ok(())
    }

    /// Logs what the 8-bit gradients of the last step lost.
    fn report_gradients(&mut self, state: &TrainState) -> Result<(), TrainError> {
        let report = rounded_shares(&state.model, self.context.comm);
        if report.is_empty() {
            return Ok(());
        }
        self.log.append(&json!({"step": state.progress.step, "rounded_away": report}))
    }

    fn evaluate(
        &mut self,
        stage: &mut dyn Stage,
        state: &mut TrainState,
    ) -> Result<(), TrainError> {
        let (context, model, step) = (self.context, state.model.valid(), state.progress.step);
        let device = context.device.clone().inner();
        let results = stage.evaluate(&model, context.step_context(&device))?;
        for (name, evaluation) in &results {
            self.log.monitor.evaluated(step, name, *evaluation);
        }
        if results.is_empty() {
            return Ok(());
        }
        self.log.append(&json!({"step": step, "eval": results}))?;
        // A mean over sets, so that a large one does not drown a small one.
        let sum: f64 = results.values().map(Evaluation::criterion).sum();
        self.keep_best(state, sum / results.len() as f64)
    }

    /// Asks the model its benchmarks on rank 0; the other ranks wait.
    fn ask_tasks(&mut self, state: &TrainState) -> Result<(), TrainError> {
        let (context, step) = (self.context, state.progress.step);
        let asked = match &context.tasks {
            Some(benchmark) => self.score(benchmark, &state.model.valid(), step),
            None => Ok(Some(())),
        };
        let asked = all_ok(context.comm, asked)?;
        context.step_context(&context.device).finish(asked)
    }

    /// `None` when interrupted.
    fn score(
        &mut self,
        benchmark: &Benchmark,
        model: &LanguageModel,
        step: u64,
    ) -> Result<Option<()>, TrainError> {
        let scores = tasks::ask(self.context, benchmark, model, self.log.monitor)?;
        let Some(scores) = scores else { return Ok(None) };
        for score in &scores {
            self.log.monitor.message(&format!("step {step}: {score}"));
        }
        self.log.append(&json!({"step": step, "tasks": BenchmarkScore::as_json(&scores)}))?;
        Ok(Some(()))
    }

    /// Samples from the model on rank 0; the other ranks wait.
    fn sample(&mut self, state: &TrainState) -> Result<(), TrainError> {
        let context = self.context;
        let sampled = if context.comm.is_first() { self.sample_prompts(state)? } else { Some(()) };
        context.step_context(&context.device).finish(sampled)
    }

    /// `None` when interrupted.
    fn sample_prompts(&mut self, state: &TrainState) -> Result<Option<()>, TrainError> {
        let (context, model) = (self.context, state.model.valid());
        let (wanted, step) = (&context.recipe.sample, state.progress.step);
        let settings = SampleSettings {
            max_tokens: wanted.max_tokens.min(context.spec.context_length()),
            temperature: wanted.temperature,
            seed: context.recipe.seed,
            step,
        };
        for (number, prompt) in wanted.prompts.iter().enumerate() {
            let ids = context.prompt_ids(prompt)?;
            // Samples are rank 0's alone; an interruption is then shared by `finish`.
            let interrupted = || context.signals.stop().is_some();
            let text = sample(&model, &context.tokenizer, &ids, settings, &interrupted);
            let Some(text) = text else { return Ok(None) };
            self.log.monitor.sampled(step, prompt, &text);
            let record = json!({"step": step, "prompt": prompt, "text": text});
            self.log.write_line(SAMPLES_FILE, record.to_string())?;
            self.log.text(&format!("sample/{}", number + 1), step, &format!("{prompt}{text}"))?;
        }
        Ok(Some(()))
    }
}
