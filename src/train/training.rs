//! The fold itself: step after step, with what is due in between, until the last step or a signal.
//!
//! A step is made, and then it is settled: looked at, logged, counted. On the CPU one follows the
//! other at once; a device that would have to wait for that makes a few steps first.

use std::time::{Duration, Instant};

use bitnet_format::StoredModel;
use bitnet_format::staged::{OnExisting, StagedDir};
use burn::module::Module;
use serde_json::json;

use crate::checkpoint::{self, Contents, FolderParts, Moments};
use crate::data::Place;
use crate::device::runs_own_operations;
use crate::export;
use crate::monitor::{Evaluation, EventFile, Monitor, StepRecord};
use crate::platform::Stop;
use crate::ranks::Ranks;
use crate::train::agreement::{agree, any_stop, first_only};
use crate::train::curriculum::{Curriculum, Draw, Lesson};
use crate::train::run::{Best, Progress, State};
use crate::train::run_dir::{BEST_DIR, FINAL_DIR, METRICS_FILE, RunDir, SAMPLES_FILE};
use crate::train::sample::{SampleSettings, sample};
use crate::train::session::Session;
use crate::train::telemetry::Telemetry;
use crate::train::together::GatheredMoments;
use crate::train::{Accumulated, MadeStep, Rates, Skip, StepReport, TrainError};

/// Checkpoints in a row that may fail for want of space before the run gives up.
const MAX_FAILED_SAVES: u32 = 3;
/// How far the very first loss may lie from what it must be.
const FIRST_LOSS_TOLERANCE: f32 = 1e-6;
/// The same where a product may depend on how many rows it has, and one rounding moves a level.
const FIRST_LOSS_TOLERANCE_ELSEWHERE: f32 = 1e-2;
/// Steps that a device makes before the host looks at them.
const UNSETTLED_STEPS: usize = 8;

/// The loop with its surroundings.
pub(crate) struct Training<'a> {
    pub(crate) session: &'a Session<'a>,
    pub(crate) curriculum: Box<dyn Curriculum>,
    pub(crate) dir: &'a RunDir,
    pub(crate) monitor: &'a mut dyn Monitor,
    /// The first rank's; the others draw no curves.
    pub(crate) events: Option<EventFile>,
    pub(crate) telemetry: Telemetry,
    pub(crate) last_loss: Option<f32>,
    pub(crate) failed_saves: u32,
    pub(crate) unsettled: Unsettled,
    pub(crate) deadline: Option<Instant>,
}

/// What somebody asked a run for, on whichever rank.
struct Asked {
    stop: Option<Stop>,
    save: bool,
}

/// Steps that were made and not looked at.
pub(crate) struct Unsettled {
    steps: Vec<Unread>,
    since: Instant,
}

/// One of them.
struct Unread {
    step: u64,
    /// Trained targets of the run so far.
    tokens: u64,
    /// The same of this rank.
    own_tokens: u64,
    rates: Rates,
    made: MadeStep,
    /// The documents it was made of.
    places: Vec<Place>,
}

impl Unsettled {
    pub(crate) fn none() -> Self {
        Self { steps: Vec::new(), since: Instant::now() }
    }
}

impl Training<'_> {
    pub(crate) fn fold(&mut self, mut state: State) -> Result<State, TrainError> {
        let asked = self.asked();
        if state.progress.unfinished {
            self.after_step(&mut state, asked.save)?;
        }
        if let Some(stop) = asked.stop {
            return Err(self.save_and_stop(&mut state, stop));
        }
        while state.progress.step < self.session.steps {
            state = match self.step(state)? {
                Ok(next) => next,
                Err((mut state, stop)) => return Err(self.save_and_stop(&mut state, stop)),
            };
            let asked = self.asked();
            self.after_step(&mut state, asked.save)?;
            let last = state.progress.step == self.session.steps;
            if let (Some(stop), false) = (asked.stop, last) {
                return Err(self.save_and_stop(&mut state, stop));
            }
        }
        Ok(state)
    }

    /// What signals, files and the clock ask for; all ranks hear the same.
    fn asked(&self) -> Asked {
        let Session { signals, ranks, .. } = self.session;
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let stop = signals.stop().or(late.then_some(Stop::Terminate));
        let save = signals.take_save() || self.dir.take_save_request();
        if ranks.is_alone() {
            return Asked { stop, save };
        }
        Asked { stop: any_stop(ranks, stop), save: ranks.most(u8::from(save)) > 0 }
    }

    /// What is due after a step; a signal in the middle of it ends the run, with the state saved.
    fn after_step(&mut self, state: &mut State, save: bool) -> Result<(), TrainError> {
        state.progress.unfinished = true;
        match self.between_steps(state, save) {
            Err(TrainError::Stopped(stop)) => Err(self.save_and_stop(state, stop)),
            result => result,
        }
    }

    /// One step; gives the state back unchanged when a signal arrived before the update.
    fn step(&mut self, mut state: State) -> Result<Result<State, (State, Stop)>, TrainError> {
        let session = self.session;
        if self.unsettled.steps.is_empty() {
            self.unsettled.since = Instant::now();
        }
        let step = state.progress.step + 1;
        let Lesson { sum, next, places } =
            match next_lesson(session, self.curriculum.as_mut(), &state) {
                Err(TrainError::Stopped(stop)) => return Ok(Err((state, stop))),
                lesson => lesson?,
            };
        check_first_loss(session, self.curriculum.as_ref(), step, &sum)?;
        let (rates, guard) = (rates_at(session, step), &session.recipe.guard);
        let settings = session.step_settings(state.progress.spikes.limits(guard));
        let (model, optimizer) = (state.model, &mut state.optimizer);
        let (model, made) = match &session.together {
            None => sum.make(model, optimizer, settings, rates),
            Some(together) => together.make(sum, model, optimizer, settings, rates),
        };
        state.model = model;
        let progress = &mut state.progress;
        progress.position = next;
        progress.step = step;
        progress.tokens += made.tokens();
        progress.own_tokens += made.own_tokens();
        let (tokens, own_tokens) = (progress.tokens, progress.own_tokens);
        self.unsettled.steps.push(Unread { step, tokens, own_tokens, rates, made, places });
        if self.unsettled.steps.len() >= self.patience() {
            self.settle(&mut state)?;
        }
        Ok(Ok(state))
    }

    /// Steps that may stay unread: none where reading costs nothing or limits depend on it.
    fn patience(&self) -> usize {
        let session = self.session;
        let at_once = runs_own_operations(&session.device)
            || session.together.is_some()
            || session.recipe.guard.spike_sigma != 0.0;
        if at_once { 1 } else { UNSETTLED_STEPS }
    }

    /// Looks at the steps that were made: logs them, counts what was left out, gives up on a run
    /// that diverges.
    fn settle(&mut self, state: &mut State) -> Result<(), TrainError> {
        let steps = std::mem::take(&mut self.unsettled.steps);
        let count = steps.len() as u32;
        let optimizer = &mut state.optimizer;
        let reports: Vec<_> =
            steps.iter().map(|unread| unread.made.clone().report(optimizer)).collect();
        let took = self.unsettled.since.elapsed() / count.max(1);
        for (unread, report) in steps.iter().zip(&reports) {
            self.account(&mut state.progress, unread, report, took)?;
        }
        state.progress.updates = state.optimizer.updates;
        give_up_on_divergence(self.session, &state.progress)
    }

    fn account(
        &mut self,
        progress: &mut Progress,
        unread: &Unread,
        report: &StepReport,
        took: Duration,
    ) -> Result<(), TrainError> {
        progress.spikes.push(&self.session.recipe.guard, report.loss, report.grad_norm);
        count_skips(progress, report);
        let mut record = record(self.session, unread, report, took);
        if report.skipped.is_some() {
            record.rows = places_of_all(self.session.ranks, &unread.places);
        }
        self.log_step(&record)?;
        self.last_loss = Some(report.loss);
        if let Some(skip) = report.skipped {
            let why = if skip == Skip::Spike { "a spike" } else { "not finite" };
            let (step, rows) = (unread.step, record.rows.join(" "));
            self.monitor.message(&format!("step {step} left out ({why}); its documents: {rows}"));
        }
        Ok(())
    }

    fn log_step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        self.dir.append(METRICS_FILE, record)?;
        self.monitor.step(record);
        let own = [
            ("train/loss", f64::from(record.loss)),
            ("train/learning_rate", record.lr),
            ("train/weight_decay", record.weight_decay),
            ("train/grad_norm", record.grad_norm),
            ("train/tokens_per_second", record.tokens_per_second),
        ];
        let names: Vec<_> = record.metrics.keys().map(|name| format!("train/{name}")).collect();
        let more = names.iter().map(String::as_str).zip(record.metrics.values().copied());
        let scalars: Vec<_> = own.into_iter().chain(more).collect();
        self.plot(record.step, &scalars)
    }

    /// Adds points to the curves.
    fn plot(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), TrainError> {
        match &mut self.events {
            Some(events) => Ok(events.scalars(step, scalars)?),
            None => Ok(()),
        }
    }

    /// Evaluation, samples and checkpoint where they are due; stopped when a signal cut them off.
    fn between_steps(&mut self, state: &mut State, asked: bool) -> Result<(), TrainError> {
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

    fn save_and_stop(&mut self, state: &mut State, stop: Stop) -> TrainError {
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

/// The gradients of the step that follows `state`.
fn next_lesson(
    session: &Session,
    curriculum: &mut dyn Curriculum,
    state: &State,
) -> Result<Lesson, TrainError> {
    let (train, position) = (&session.recipe.train, &state.progress.position);
    let phase = session.schedule.phase_of(state.progress.step + 1);
    let (mix, batch, micro_batch) = (&session.mixes[phase], train.batch, train.micro_batch);
    let draw = Draw { phase, mix, position, batch, micro_batch };
    curriculum.lesson(&state.model, draw, session.desk(&session.device))
}

/// The loss of the step that follows `state`, checked; changes nothing.
pub(crate) fn next_loss(
    session: &Session,
    curriculum: &mut dyn Curriculum,
    state: &State,
) -> Result<f32, TrainError> {
    let lesson = next_lesson(session, curriculum, state)?;
    check_first_loss(session, curriculum, state.progress.step + 1, &lesson.sum)?;
    Ok(lesson.sum.loss())
}

/// A preference run starts from its reference: anything but ln 2 would mean that the two are not
/// the same model, or not computed alike.
fn check_first_loss(
    session: &Session,
    curriculum: &dyn Curriculum,
    step: u64,
    sum: &Accumulated,
) -> Result<(), TrainError> {
    match curriculum.first_loss() {
        Some(expected) if step == 1 => {
            let found = sum.loss();
            let tolerance = if runs_own_operations(&session.device) {
                FIRST_LOSS_TOLERANCE
            } else {
                FIRST_LOSS_TOLERANCE_ELSEWHERE
            };
            let close = (found - expected).abs() <= tolerance;
            if close { Ok(()) } else { Err(TrainError::ReferenceDiffers { found, expected }) }
        }
        _ => Ok(()),
    }
}

/// The documents of a step, as every rank names its own.
fn places_of_all(ranks: &Ranks, own: &[Place]) -> Vec<String> {
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    let own = serde_json::to_vec(&own).expect("names serialise");
    let read = |bytes: Vec<u8>| -> Vec<String> {
        serde_json::from_slice(&bytes).expect("names of our own")
    };
    ranks.gather(&own).into_iter().flat_map(read).collect()
}

fn rates_at(session: &Session, step: u64) -> Rates {
    let rates = session.schedule.at(step);
    Rates { learning_rate: rates.learning_rate, weight_decay: rates.weight_decay }
}

fn count_skips(progress: &mut Progress, report: &StepReport) {
    match report.skipped {
        Some(Skip::NotFinite) => {
            progress.skipped_in_a_row += 1;
            progress.skipped += 1;
        }
        Some(Skip::Spike) => {}
        None => progress.skipped_in_a_row = 0,
    }
}

fn give_up_on_divergence(session: &Session, progress: &Progress) -> Result<(), TrainError> {
    let guard = &session.recipe.guard;
    let (step, in_a_row, total) = (progress.step, progress.skipped_in_a_row, progress.skipped);
    if in_a_row >= guard.max_skipped_in_a_row || total >= guard.max_skipped {
        return Err(TrainError::Diverged { step, in_a_row, total });
    }
    Ok(())
}

fn record(session: &Session, unread: &Unread, report: &StepReport, took: Duration) -> StepRecord {
    let Unread { step, tokens, own_tokens, rates, .. } = *unread;
    let phase = session.schedule.phase_of(step);
    StepRecord {
        step,
        phase: session.recipe.phases[phase].name.clone(),
        tokens,
        loss: report.loss,
        loss_bits: format!("{:08x}", report.loss.to_bits()),
        lr: rates.learning_rate,
        weight_decay: rates.weight_decay,
        grad_norm: report.grad_norm,
        tokens_per_second: report.tokens as f64 / took.as_secs_f64(),
        skipped: report.skipped.is_some(),
        ranks: session.ranks.count(),
        tokens_this_rank: own_tokens,
        metrics: report.metrics.iter().copied().collect(),
        rows: Vec::new(),
    }
}
