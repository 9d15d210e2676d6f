//! The training loop: a fold over model, optimizer, step and position. Resuming loads these four
//! and continues the same fold.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_format::folder::{ModelFolder, TOKENIZER_FILE};
use bitnet_format::staged::{OnExisting, StagedDir, write_file};
use burn::module::Module;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{self, Contents, FolderParts};
use crate::data::{Loader, Position};
use crate::export;
use crate::model::LanguageModel;
use crate::monitor::{Monitor, RunInfo, StepRecord};
use crate::platform::{Signals, Stop};
use crate::recipe::Recipe;
use crate::train::evaluate::{batch_of, likelihood};
use crate::train::run_dir::{FINAL_DIR, METRICS_FILE, RESOLVED_FILE, RunDir, SAMPLES_FILE};
use crate::train::sample::{SampleSettings, sample};
use crate::train::session::{Session, refuse_unbuilt};
use crate::train::{Accumulated, AdamW, CrossEntropy, Rates, StepReport, TrainError, resume};

/// Non-finite steps in a row after which a run gives up.
const MAX_SKIPPED_IN_A_ROW: u32 = 3;
/// Non-finite steps of a run after which it gives up.
const MAX_SKIPPED: u32 = 20;
/// Checkpoints in a row that may fail for want of space before the run gives up.
const MAX_FAILED_SAVES: u32 = 3;

/// Where a run continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Start anew; a directory with a run in it is refused.
    Never,
    /// The newest checkpoint that verifies, or step 1 where there is none.
    Auto,
    /// This checkpoint and no other.
    From(PathBuf),
}

/// How a recipe is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The run directory.
    pub out: PathBuf,
    /// Where to continue.
    pub resume: Resume,
    /// Keys of the recipe that may differ from the run on disk.
    pub allow_change: Vec<String>,
    /// The command line, kept in `command.txt`.
    pub command: String,
    /// Signals to obey; `Signals::default()` obeys none.
    pub signals: Signals,
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The run directory.
    pub out: PathBuf,
    /// Steps of the whole run.
    pub steps: u64,
    /// Loss of the last step made, if one was.
    pub last_loss: Option<f32>,
    /// What was exported: format and path.
    pub exports: Vec<(String, PathBuf)>,
}

/// The part of the state that is small: `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) run_id: String,
    pub(crate) step: u64,
    pub(crate) tokens: u64,
    pub(crate) updates: u64,
    pub(crate) position: Position,
    pub(crate) skipped_in_a_row: u32,
    pub(crate) skipped: u32,
    /// Whether a signal cut off what was due after this step: evaluation, samples.
    pub(crate) unfinished: bool,
    pub(crate) data_fingerprint: String,
    pub(crate) tokenizer_blake3: String,
}

/// What the loop folds over.
pub(crate) struct State {
    pub(crate) model: LanguageModel,
    pub(crate) optimizer: AdamW,
    pub(crate) progress: Progress,
    /// The checkpoint this state was read from.
    pub(crate) resumed_from: Option<u64>,
}

/// Trains a model as the recipe says, from the first step or from where it stopped.
///
/// # Errors
/// Every way a run can end early, each with its exit code; what was saved stays valid.
pub fn run(
    recipe: &Recipe,
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<Summary, TrainError> {
    refuse_unbuilt(recipe)?;
    export::check_formats(recipe)?;
    let dir = RunDir::open(&options.out)?;
    let start = resume::choose(&dir, &options.resume, monitor)?;
    let kept = start.as_ref().map(|checkpoint| checkpoint.join(TOKENIZER_FILE));
    let (session, loader) = Session::prepare(recipe, kept, &options.signals, monitor)?;
    let state = match &start {
        Some(checkpoint) => resume::load(&session, checkpoint, &options.allow_change, monitor)?,
        None => fresh(&session)?,
    };
    if state.progress.step >= session.steps && dir.join(FINAL_DIR).exists() {
        monitor.message(&format!("{}: this run is finished", options.out.display()));
        return Ok(summary(&session, &dir, None));
    }
    begin(&session, &dir, options, &state, monitor)?;
    let mut training = Training {
        session: &session,
        loader,
        dir: &dir,
        monitor,
        last_loss: None,
        failed_saves: 0,
    };
    let state = training.fold(state)?;
    training.finish(&state)?;
    let last_loss = training.last_loss;
    Ok(summary(&session, &dir, last_loss))
}

fn summary(session: &Session, dir: &RunDir, last_loss: Option<f32>) -> Summary {
    let path = |format: &str| dir.join("export").join(format);
    let formats = session.recipe.export.formats.iter().map(|format| format.name().to_owned());
    let exports = formats.map(|format| (format.clone(), path(&format))).collect();
    Summary { out: dir.path().to_owned(), steps: session.steps, last_loss, exports }
}

fn fresh(session: &Session) -> Result<State, TrainError> {
    let model = session.initial_model()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let key = format!("{:?} {}", now.unwrap_or_default(), std::process::id());
    let progress = Progress {
        run_id: blake3::hash(key.as_bytes()).to_hex()[..16].to_owned(),
        step: 0,
        tokens: 0,
        updates: 0,
        position: Position::default(),
        skipped_in_a_row: 0,
        skipped: 0,
        unfinished: false,
        data_fingerprint: session.fingerprint.clone(),
        tokenizer_blake3: blake3::hash(session.tokenizer.json()).to_hex().to_string(),
    };
    Ok(State { optimizer: session.new_optimizer(), model, progress, resumed_from: None })
}

/// Writes what a run directory holds before the first step.
fn begin(
    session: &Session,
    dir: &RunDir,
    options: &RunOptions,
    state: &State,
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    dir.remove_leftovers()?;
    dir.mend(METRICS_FILE)?;
    dir.mend(SAMPLES_FILE)?;
    require_space(session, dir)?;
    let resolved = session.recipe.resolved_toml();
    write_file(&dir.join(RESOLVED_FILE), resolved.as_bytes(), OnExisting::Replace)?;
    let command = format!("{}\n", options.command);
    write_file(&dir.join("command.txt"), command.as_bytes(), OnExisting::Replace)?;
    let step = state.progress.step;
    if dir.join(METRICS_FILE).exists() {
        dir.append(METRICS_FILE, &json!({"event": "resume", "from_step": step}))?;
    }
    let recipe = session.recipe;
    monitor.started(&RunInfo {
        name: recipe.name.clone(),
        parameters: session.spec.parameters(),
        steps: session.steps,
        first_step: step + 1,
        tokens_per_step: recipe.train.batch * recipe.data.seq_len,
    });
    Ok(())
}

/// Refuses a run whose checkpoints will not fit on the disk (model and two moments in f32, the
/// final folder and an export beside `keep + 1` checkpoints).
fn require_space(session: &Session, dir: &RunDir) -> Result<(), TrainError> {
    let model = 4 * session.spec.parameters() as u64;
    let needed = (session.recipe.checkpoint.keep as u64 + 1) * 3 * model + 2 * model;
    match crate::platform::free_space(dir.path()) {
        Some(free) if free < needed => Err(TrainError::Io(std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            format!(
                "{}: {:.1} MB are free; checkpoints and export need {:.1} MB. Lower checkpoint.keep",
                dir.path().display(),
                free as f64 / 1e6,
                needed as f64 / 1e6
            ),
        ))),
        _ => Ok(()),
    }
}

/// The loop with its surroundings.
struct Training<'a> {
    session: &'a Session<'a>,
    loader: Loader,
    dir: &'a RunDir,
    monitor: &'a mut dyn Monitor,
    last_loss: Option<f32>,
    failed_saves: u32,
}

impl Training<'_> {
    fn fold(&mut self, mut state: State) -> Result<State, TrainError> {
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
    fn finish(&mut self, state: &State) -> Result<(), TrainError> {
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

/// Where the final folder of a run lies.
pub fn final_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(FINAL_DIR)
}
