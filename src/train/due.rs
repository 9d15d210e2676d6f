//! What is due between steps and at the end: evaluation, samples, checkpoints, the final folder and
//! the exports. Which rank does what is decided here; all of them come by.

use bitnet_format::StoredModel;
use bitnet_format::staged::{OnExisting, StagedDir};
use burn::module::Module;
use serde_json::json;

use crate::checkpoint::{self, Contents, FolderParts, Moments};
use crate::export;
use crate::monitor::{Evaluation, EventFile};
use crate::platform::Stop;
use crate::train::TrainError;
use crate::train::agreement::{agree, first_only};
use crate::train::run::{Best, State};
use crate::train::run_dir::{BEST_DIR, FINAL_DIR, METRICS_FILE, SAMPLES_FILE};
use crate::train::sample::{SampleSettings, sample};
use crate::train::session::Session;
use crate::train::together::GatheredMoments;
use crate::train::training::Training;

/// Checkpoints in a row that may fail for want of space before the run gives up.
const MAX_FAILED_SAVES: u32 = 3;

impl Training<'_> {
    /// Evaluation, samples and checkpoint where they are due; stopped when a signal cut them off.
    pub(super) fn between_steps(
        &mut self,
        state: &mut State,
        asked: bool,
    ) -> Result<(), TrainError> {
        let (recipe, step) = (self.session.recipe, state.progress.step);
        let last = step == self.session.steps;
        let at = |every: Option<u64>| every.is_some_and(|every| step.is_multiple_of(every));
        let (evaluates, samples) = (recipe.eval.every, recipe.sample.every);
        let evaluates = at(evaluates) || last && evaluates.is_some();
        let samples = at(samples) || last && samples.is_some();
        let saves = last || asked || at(recipe.checkpoint.every);
        if evaluates || samples || saves {
            self.settle(state)?;
        }
        if at(recipe.telemetry.every) {
            self.report_codes(state)?;
        }
        if evaluates {
            self.evaluate(state)?;
        }
        if samples {
            self.sample(state)?;
        }
        state.progress.unfinished = false;
        if saves {
            self.save_if_possible(state, last)?;
        }
        Ok(())
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

    /// What became of the ternary codes.
    fn report_codes(&mut self, state: &State) -> Result<(), TrainError> {
        let (step, spec) = (state.progress.step, &self.session.spec);
        let report = self.telemetry.report(spec, &state.model, self.session.ranks);
        let Some(all) = report.get("all") else { return Ok(()) };
        self.dir.append(METRICS_FILE, &json!({"step": step, "ternary": report}))?;
        self.monitor.ternary(step, all);
        let mut scalars =
            vec![("ternary/zero", all.zero), ("ternary/dead_rows", all.dead_rows as f64)];
        scalars.extend(all.flipped.map(|flipped| ("ternary/flipped", flipped)));
        self.plot(step, &scalars)
    }

    fn evaluate(&mut self, state: &mut State) -> Result<(), TrainError> {
        let (session, model, step) = (self.session, state.model.valid(), state.progress.step);
        let device = session.device.clone().inner();
        let results = self.curriculum.evaluate(&model, session.desk(&device))?;
        for (name, evaluation) in &results {
            self.monitor.evaluated(step, name, *evaluation);
            let tag = format!("eval/{name}");
            self.plot(step, &[(&tag, evaluation.criterion())])?;
        }
        if results.is_empty() {
            return Ok(());
        }
        self.dir.append(METRICS_FILE, &json!({"step": step, "eval": results}))?;
        let sum: f64 = results.values().map(Evaluation::criterion).sum();
        self.keep_best(state, sum / results.len() as f64)
    }

    /// Publishes the model as the best so far when its held-out loss is the lowest.
    fn keep_best(&mut self, state: &mut State, loss: f64) -> Result<(), TrainError> {
        let step = state.progress.step;
        if state.progress.best.is_some_and(|best| best.loss <= loss) || !loss.is_finite() {
            return Ok(());
        }
        let best = Best { step, loss };
        if self.session.recipe.checkpoint.best && self.session.ranks.is_first() {
            let target = self.dir.join(BEST_DIR);
            let staged = StagedDir::beside(&target, OnExisting::Replace)?;
            checkpoint::write_model(staged.path(), self.parts(), &state.model)?;
            let note = serde_json::to_string_pretty(&best).expect("two numbers serialise");
            fs_err::write(staged.path().join("best.json"), note + "\n")?;
            staged.publish()?;
            self.monitor.message(&format!("step {step}: the best so far, saved as {BEST_DIR}"));
        }
        state.progress.best = Some(best);
        Ok(())
    }

    /// Lets the model of the first rank speak; the others wait.
    fn sample(&mut self, state: &State) -> Result<(), TrainError> {
        let session = self.session;
        let spoken = if session.ranks.is_first() { self.speak(state)? } else { Some(()) };
        session.desk(&session.device).unless_stopped(spoken)
    }

    /// `None` when interrupted.
    fn speak(&mut self, state: &State) -> Result<Option<()>, TrainError> {
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
            let ids = session.prompt_ids(prompt)?;
            let text =
                sample(&model, &session.tokenizer, &ids, settings, &|| session.interrupted());
            let Some(text) = text else { return Ok(None) };
            self.monitor.sampled(step, prompt, &text);
            self.dir
                .append(SAMPLES_FILE, &json!({"step": step, "prompt": prompt, "text": text}))?;
        }
        Ok(Some(()))
    }

    /// The first rank writes; with a sharded optimizer the others send it what they keep.
    fn save(&mut self, state: &State) -> Result<(), TrainError> {
        let Session { ranks, together, .. } = self.session;
        let Some(together) = together else { return self.write(state, &state.optimizer) };
        if !together.holds_the_same(&state.model) {
            return Err(TrainError::RanksDiffer { step: state.progress.step });
        }
        let moments = GatheredMoments::new(together, &state.optimizer);
        let written = if ranks.is_first() { self.write(state, &moments) } else { Ok(()) };
        moments.hear_out();
        agree(ranks, written)
    }

    fn write(&mut self, state: &State, moments: &dyn Moments) -> Result<(), TrainError> {
        let target = checkpoint::path_of(self.dir.path(), state.progress.step);
        let resolved = self.session.recipe.resolved_toml();
        let contents =
            Contents { folder: self.parts(), model: &state.model, moments, recipe: &resolved };
        checkpoint::save(&target, contents, &state.progress)?;
        self.monitor.saved(&target);
        let ends =
            (0..self.session.mixes.len()).map(|phase| self.session.schedule.phase_range(phase));
        let mut pinned: Vec<u64> = ends.map(|range| range.end - 1).collect();
        pinned.extend(state.resumed_from);
        self.dir.prune(&state.progress.run_id, self.session.recipe.checkpoint.keep, &pinned)
    }

    fn parts(&self) -> FolderParts<'_> {
        FolderParts {
            spec: &self.session.spec,
            tokenizer: Some(&self.session.tokenizer),
            chat: Some(&self.session.chat),
        }
    }

    pub(super) fn save_and_stop(&mut self, state: &mut State, stop: Stop) -> TrainError {
        if let Err(error) = self.settle(state) {
            return error;
        }
        let saved = checkpoint::path_of(self.dir.path(), state.progress.step);
        let needed = state.progress.step > 0 && checkpoint::verify(&saved).is_err();
        let needed = self.session.ranks.is_first() && needed;
        let needed = self.session.ranks.most(u8::from(needed)) > 0;
        match if needed { self.save(state) } else { Ok(()) } {
            Ok(()) => TrainError::Stopped(stop),
            Err(error) => error,
        }
    }

    /// The final folder and the exports, which are the first rank's to write.
    pub(crate) fn finish(&mut self, state: &State) -> Result<(), TrainError> {
        first_only(self.session.ranks, || self.publish(state)).map(|_| ())
    }

    fn publish(&mut self, state: &State) -> Result<(), TrainError> {
        let target = self.dir.join(FINAL_DIR);
        let staged = StagedDir::beside(&target, OnExisting::Replace)?;
        checkpoint::write_model(staged.path(), self.parts(), &state.model)?;
        staged.publish()?;
        self.monitor.saved(&target);
        for format in &self.session.recipe.export.formats {
            let out = self.dir.join("export").join(format.file_name());
            let request = export::Request::new(*format, &out, OnExisting::Replace);
            let model = StoredModel::open(&target)?;
            let what = format!("writing {}", format.name());
            let (monitor, signals) = (&mut *self.monitor, &self.session.signals);
            let mut watch = |done, total| monitor.progress(&what, done as u64, total as u64);
            let report = export::export(&model, &target, &request, signals, &mut watch)?;
            self.monitor.saved(&out);
            self.monitor.message(&report.to_string());
            self.monitor.message(&export::verify(&model, &out)?.to_string());
        }
        self.events.as_mut().map_or(Ok(()), EventFile::flush)?;
        self.monitor.finished();
        Ok(())
    }
}
