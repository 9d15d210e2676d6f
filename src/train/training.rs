//! The fold itself: step after step, with what is due in between, until the last step or a signal.

use std::time::{Duration, Instant};

use bitnet_format::folder::ModelFolder;
use bitnet_format::staged::{OnExisting, StagedDir};
use burn::module::Module;
use serde_json::json;

use crate::checkpoint::{self, Contents, FolderParts};
use crate::data::Loader;
use crate::export;
use crate::monitor::{Monitor, StepRecord};
use crate::platform::Stop;
use crate::train::evaluate::{batch_of, likelihood};
use crate::train::run::{Progress, State};
use crate::train::run_dir::{FINAL_DIR, METRICS_FILE, RunDir, SAMPLES_FILE};
use crate::train::sample::{SampleSettings, sample};
use crate::train::session::Session;
use crate::train::{Accumulated, CrossEntropy, Rates, StepReport, TrainError};

/// Non-finite steps in a row after which a run gives up.
const MAX_SKIPPED_IN_A_ROW: u32 = 3;
/// Non-finite steps of a run after which it gives up.
const MAX_SKIPPED: u32 = 20;
/// Checkpoints in a row that may fail for want of space before the run gives up.
const MAX_FAILED_SAVES: u32 = 3;

/// The loop with its surroundings.
pub(crate) struct Training<'a> {
    pub(crate) session: &'a Session<'a>,
    pub(crate) loader: Loader,
    pub(crate) dir: &'a RunDir,
    pub(crate) monitor: &'a mut dyn Monitor,
    pub(crate) last_loss: Option<f32>,
    pub(crate) failed_saves: u32,
}

impl Training<'_> {
    pub(crate) fn fold(&mut self, mut state: State) -> Result<State, TrainError> {
        let limit = self.session.recipe.train.max_minutes;
        let deadline = limit.map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0));
        if state.progress.unfinished {
            self.after_step(&mut state)?;
        }
        while state.progress.step < self.session.steps {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(self.save_and_stop(&state, Stop::Terminate));
            }
            state = match self.step(state)? {
                Ok(next) => next,
                Err((state, stop)) => return Err(self.save_and_stop(&state, stop)),
            };
            self.after_step(&mut state)?;
        }
        Ok(state)
    }

    /// What is due after a step; a signal ends the run here, with the state saved.
    fn after_step(&mut self, state: &mut State) -> Result<(), TrainError> {
        state.progress.unfinished = true;
        let finished = self.between_steps(state)?;
        state.progress.unfinished = !finished;
        let last = state.progress.step == self.session.steps;
        match self.session.signals.stop() {
            Some(stop) if !(finished && last) => Err(self.save_and_stop(state, stop)),
            _ => Ok(()),
        }
    }

    /// One step; gives the state back unchanged when a signal arrived before the update.
    fn step(&mut self, mut state: State) -> Result<Result<State, (State, Stop)>, TrainError> {
        let (session, began) = (self.session, Instant::now());
        let step = state.progress.step + 1;
        let phase = session.schedule.phase_of(step);
        let train = &session.recipe.train;
        let position = &state.progress.position;
        let (rows, next) = self.loader.rows(phase, &session.mixes[phase], position, train.batch)?;
        let batches: Vec<_> = rows.chunks(train.micro_batch).map(batch_of).collect();
        let interrupted = || session.interrupted();
        let sum =
            Accumulated::over(&state.model, &CrossEntropy, &batches, &session.device, &interrupted);
        let Some(sum) = sum else {
            let stop = session.signals.stop().expect("only a signal interrupts");
            return Ok(Err((state, stop)));
        };
        let rates = rates_at(session, step);
        let (model, report) =
            sum.apply(state.model, &mut state.optimizer, session.step_settings(), rates);
        state.model = model;
        let progress = &mut state.progress;
        progress.position = next;
        progress.step = step;
        progress.tokens += report.count as u64;
        progress.updates = state.optimizer.updates;
        count_skips(progress, report);
        let record = record(session, progress, report, rates, began.elapsed());
        self.dir.append(METRICS_FILE, &record)?;
        self.monitor.step(&record);
        self.last_loss = Some(report.loss);
        if report.skipped {
            let places = rows.iter().flat_map(|row| &row.documents).map(ToString::to_string);
            let places = places.collect::<Vec<_>>().join(" ");
            self.monitor.message(&format!("step {step} skipped; its documents: {places}"));
        }
        give_up_on_divergence(progress)?;
        Ok(Ok(state))
    }

    /// Evaluation, samples and checkpoint where they are due; false when a signal cut them off.
    fn between_steps(&mut self, state: &mut State) -> Result<bool, TrainError> {
        let (recipe, step) = (self.session.recipe, state.progress.step);
        let last = step == self.session.steps;
        let due =
            |every: Option<u64>| every.is_some_and(|every| last || step.is_multiple_of(every));
        if due(recipe.eval.every) && !self.evaluate(state)? {
            return Ok(false);
        }
        if due(recipe.sample.every) && !self.sample(state)? {
            return Ok(false);
        }
        state.progress.unfinished = false;
        let asked = self.session.signals.take_save() || self.dir.take_save_request();
        if last || asked || recipe.checkpoint.every.is_some_and(|every| step.is_multiple_of(every))
        {
            self.save_if_possible(state, last)?;
        }
        Ok(true)
    }

    /// Saves; a full disk is put up with a few times, since training can go on without.
    fn save_if_possible(&mut self, state: &State, must: bool) -> Result<(), TrainError> {
        match self.save(state) {
            Err(error) if !must && error.is_full_disk() && self.failed_saves < MAX_FAILED_SAVES => {
                self.failed_saves += 1;
                self.monitor.message(&format!("{error}; training goes on without this checkpoint"));
                Ok(())
            }
            Ok(()) => {
                self.failed_saves = 0;
                Ok(())
            }
            failed => failed,
        }
    }

    /// False when interrupted.
    fn evaluate(&mut self, state: &State) -> Result<bool, TrainError> {
        let (session, model) = (self.session, state.model.valid());
        let device = session.device.clone().inner();
        let mut results = serde_json::Map::new();
        for (name, cache) in &session.validation {
            let rows = crate::data::validation_rows(cache, session.recipe.data.seq_len);
            let sum = likelihood(&model, rows, &device, &|| session.interrupted());
            let Some(sum) = sum else { return Ok(false) };
            let evaluation = sum.evaluation();
            self.monitor.evaluated(state.progress.step, name, evaluation);
            results.insert(name.clone(), json!(evaluation));
        }
        if !results.is_empty() {
            self.dir
                .append(METRICS_FILE, &json!({"step": state.progress.step, "eval": results}))?;
        }
        Ok(true)
    }

    /// False when interrupted.
    fn sample(&mut self, state: &State) -> Result<bool, TrainError> {
        let (session, model) = (self.session, state.model.valid());
        let wanted = &session.recipe.sample;
        let step = state.progress.step;
        for prompt in &wanted.prompts {
            let room = session.spec.max_position_embeddings;
            let settings = SampleSettings {
                max_tokens: wanted.max_tokens.min(room),
                temperature: wanted.temperature,
                seed: session.recipe.seed,
                step,
            };
            let text =
                sample(&model, &session.tokenizer, prompt, settings, &|| session.interrupted())?;
            let Some(text) = text else { return Ok(false) };
            self.monitor.sampled(step, prompt, &text);
            self.dir
                .append(SAMPLES_FILE, &json!({"step": step, "prompt": prompt, "text": text}))?;
        }
        Ok(true)
    }

    fn save(&mut self, state: &State) -> Result<(), TrainError> {
        let target = checkpoint::path_of(self.dir.path(), state.progress.step);
        let resolved = self.session.recipe.resolved_toml();
        let contents = Contents {
            folder: self.parts(),
            model: &state.model,
            optimizer: &state.optimizer,
            recipe: &resolved,
        };
        checkpoint::save(&target, contents, &state.progress)?;
        self.monitor.saved(&target);
        let ends =
            (0..self.session.mixes.len()).map(|phase| self.session.schedule.phase_range(phase));
        let mut pinned: Vec<u64> = ends.map(|range| range.end - 1).collect();
        pinned.extend(state.resumed_from);
        self.dir.prune(&state.progress.run_id, self.session.recipe.checkpoint.keep, &pinned)
    }

    fn parts(&self) -> FolderParts<'_> {
        FolderParts { spec: &self.session.spec, tokenizer: Some(self.session.tokenizer.json()) }
    }

    fn save_and_stop(&mut self, state: &State, stop: Stop) -> TrainError {
        let saved = checkpoint::path_of(self.dir.path(), state.progress.step);
        let needed = state.progress.step > 0 && checkpoint::verify(&saved).is_err();
        match if needed { self.save(state) } else { Ok(()) } {
            Ok(()) => TrainError::Stopped(stop),
            Err(error) => error,
        }
    }

    /// The final folder and the exports.
    pub(crate) fn finish(&mut self, state: &State) -> Result<(), TrainError> {
        let target = self.dir.join(FINAL_DIR);
        let staged = StagedDir::beside(&target, OnExisting::Replace)?;
        checkpoint::write_model(staged.path(), self.parts(), &state.model)?;
        staged.publish()?;
        self.monitor.saved(&target);
        for format in &self.session.recipe.export.formats {
            let out = self.dir.join("export").join(format.name());
            let request =
                export::Request { format: *format, out: &out, on_existing: OnExisting::Replace };
            let report = export::export(&ModelFolder::open(&target)?, &target, &request)?;
            self.monitor.saved(&out);
            self.monitor.message(&report.to_string());
        }
        self.monitor.finished();
        Ok(())
    }
}

fn rates_at(session: &Session, step: u64) -> Rates {
    let rates = session.schedule.at(step);
    Rates { learning_rate: rates.learning_rate, weight_decay: rates.weight_decay }
}

fn count_skips(progress: &mut Progress, report: StepReport) {
    if report.skipped {
        progress.skipped_in_a_row += 1;
        progress.skipped += 1;
    } else {
        progress.skipped_in_a_row = 0;
    }
}

fn give_up_on_divergence(progress: &Progress) -> Result<(), TrainError> {
    let (step, in_a_row, total) = (progress.step, progress.skipped_in_a_row, progress.skipped);
    if in_a_row >= MAX_SKIPPED_IN_A_ROW || total >= MAX_SKIPPED {
        return Err(TrainError::Diverged { step, in_a_row, total });
    }
    Ok(())
}

fn record(
    session: &Session,
    progress: &Progress,
    report: StepReport,
    rates: Rates,
    took: Duration,
) -> StepRecord {
    let phase = session.schedule.phase_of(progress.step);
    StepRecord {
        step: progress.step,
        phase: session.recipe.phases[phase].name.clone(),
        tokens: progress.tokens,
        loss: report.loss,
        loss_bits: format!("{:08x}", report.loss.to_bits()),
        lr: rates.learning_rate,
        weight_decay: rates.weight_decay,
        grad_norm: report.grad_norm,
        tokens_per_second: report.count / took.as_secs_f64(),
        skipped: report.skipped,
    }
}
