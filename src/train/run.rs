//! A run from its options to its summary: lock, prepare, find the state to start from, fold, finish.
//! Training is a fold over model, optimizer, step and position (`training`); resuming loads these
//! four and continues the same fold.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_format::ModelSpec;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_text::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::data::{Position, Row};
use crate::device;
use crate::export;
use crate::model::LanguageModel;
use crate::monitor::{EventFile, Monitor, RunInfo};
use crate::platform::Signals;
use crate::ranks::{Hosts, Ranks};
use crate::recipe::{Recipe, Stage};
use crate::train::agreement::{Term, agree, first_only, require_same};
use crate::train::curriculum::Curriculum;
use crate::train::guard::SpikeWindow;
use crate::train::inputs::{contradiction, known_spec};
use crate::train::run_dir::{
    EVENTS_DIR, FINAL_DIR, METRICS_FILE, RESOLVED_FILE, RunDir, SAMPLES_FILE,
};
use crate::train::session::{Crew, Session};
use crate::train::telemetry::Telemetry;
use crate::train::together::Together;
use crate::train::training::{Training, Unsettled, next_loss};
use crate::train::{AdamW, TrainError, resume, run_dir, session};

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
    /// Who else trains this model; `Ranks::alone()` for nobody.
    pub ranks: Ranks,
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
    /// Those of the first rank; checkpoints of older versions do not have it.
    #[serde(default)]
    pub(crate) own_tokens: u64,
    pub(crate) updates: u64,
    pub(crate) position: Position,
    pub(crate) skipped_in_a_row: u32,
    pub(crate) skipped: u32,
    /// Whether a signal cut off what was due after this step: evaluation, samples.
    pub(crate) unfinished: bool,
    /// The evaluation with the lowest loss.
    pub(crate) best: Option<Best>,
    pub(crate) spikes: SpikeWindow,
    pub(crate) data_fingerprint: String,
    pub(crate) tokenizer_blake3: String,
    pub(crate) chat_template: String,
}

/// The evaluation of a run with the lowest loss.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    /// Mean over the held-out sets: nats a token, or loss a pair.
    pub(crate) loss: f64,
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
    let ranks = &options.ranks;
    check(recipe, ranks)?;
    require_same(ranks, &recipe_terms(recipe))?;
    let opened = first_only(ranks, || open_dir(options, monitor))?;
    let (dir, start) = opened.unwrap_or_else(|| (RunDir::of_another(&options.out), None));
    let start = start_of_all(ranks, &dir, start)?;
    let kept_tokenizer = start.tokenizer.as_deref();
    let crew = Crew { signals: &options.signals, ranks, kept_tokenizer };
    let (session, mut curriculum) = open_to_train(recipe, crew, monitor)?;
    let state = match &start.checkpoint {
        Some(checkpoint) => resume::load(&session, checkpoint, &options.allow_change, monitor)?,
        None => agree(ranks, fresh(&session, monitor))?,
    };
    if session.together.is_some() && start.checkpoint.is_none() {
        require_same(ranks, &[Together::term_of(&state.model)])?;
    }
    if state.progress.step >= session.steps && start.finished {
        monitor.message(&format!("{}: this run is finished", options.out.display()));
        return Ok(summary(&session, &dir, None));
    }
    agree(ranks, curriculum.describe())?.iter().for_each(|line| monitor.message(line));
    curriculum.begin(&session, monitor)?;
    let events = first_only(ranks, || begin(&session, &dir, options, &state, monitor))?;
    let limit = recipe.train.max_minutes;
    let mut training = Training {
        session: &session,
        curriculum,
        dir: &dir,
        monitor,
        events,
        telemetry: Telemetry::default(),
        last_loss: None,
        failed_saves: 0,
        unsettled: Unsettled::none(),
        deadline: limit.map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0)),
    };
    let state = training.fold(state)?;
    training.finish(&state)?;
    let last_loss = training.last_loss;
    Ok(summary(&session, &dir, last_loss))
}

/// Where all ranks begin.
#[derive(Serialize, Deserialize)]
struct Start {
    /// The checkpoint to continue from, a path of the first rank's.
    checkpoint: Option<PathBuf>,
    /// Its tokenizer.
    tokenizer: Option<Vec<u8>>,
    /// Whether the run was brought to its end before.
    finished: bool,
}

/// Opens the run directory and finds what to continue from.
fn open_dir(
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<(RunDir, Option<PathBuf>), TrainError> {
    let dir = RunDir::open(&options.out)?;
    let start = resume::choose(&dir, &options.resume, monitor)?;
    Ok((dir, start))
}

/// What the first rank has found, told to all.
fn start_of_all(
    ranks: &Ranks,
    dir: &RunDir,
    checkpoint: Option<PathBuf>,
) -> Result<Start, TrainError> {
    let start = first_only(ranks, || {
        let tokenizer = checkpoint.as_ref().map(|path| fs_err::read(path.join(TOKENIZER_FILE)));
        let finished = dir.join(FINAL_DIR).exists();
        Ok(Start { tokenizer: tokenizer.transpose()?, checkpoint, finished })
    })?;
    let told = serde_json::to_vec(&start).expect("a start serialises");
    let told = serde_json::from_slice::<Option<Start>>(&ranks.broadcast(told));
    Ok(told.ok().flatten().expect("what the first rank has found"))
}

/// What ranks must agree on before anything is opened.
fn recipe_terms(recipe: &Recipe) -> Vec<Term> {
    let version = ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let device = ("kind of device".to_owned(), device::family(&recipe.device).to_owned());
    recipe.settings().into_iter().chain([version, device]).collect()
}

/// What can be said of a recipe without opening anything: whether there is work for all ranks.
///
/// # Errors
/// Names the key.
pub fn check(recipe: &Recipe, ranks: &Ranks) -> Result<(), TrainError> {
    agree(ranks, check_batch(recipe, ranks.count()))
}

/// Refuses a batch that does not give work to so many ranks.
///
/// # Errors
/// Names the key.
pub fn check_batch(recipe: &Recipe, ranks: usize) -> Result<(), TrainError> {
    let batch = recipe.train.batch;
    if batch >= ranks {
        return Ok(());
    }
    let what = format!("is {batch}; expected at least one for each of the {ranks} ranks");
    Err(contradiction(recipe, "train.batch", what))
}

/// Refuses a directory that holds a run.
///
/// # Errors
/// When it does.
pub fn refuse_existing(out: &Path) -> Result<(), TrainError> {
    if out.exists() && run_dir::holds_a_run(out)? {
        return Err(resume::holds_a_run(out));
    }
    Ok(())
}

/// Does everything up to the first optimizer step that a run would make, in a scratch directory,
/// and leaves nothing behind but the caches of data.
///
/// # Errors
/// As [`run`].
pub fn rehearse(
    recipe: &Recipe,
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<Summary, TrainError> {
    let ranks = &options.ranks;
    check(recipe, ranks)?;
    require_same(ranks, &recipe_terms(recipe))?;
    first_only(ranks, || match options.resume {
        Resume::Never => refuse_existing(&options.out),
        _ => Ok(()),
    })?;
    let crew = Crew::anew(&options.signals, ranks);
    let (session, mut curriculum) = open_to_train(recipe, crew, monitor)?;
    agree(ranks, curriculum.describe())?.iter().for_each(|line| monitor.message(line));
    curriculum.begin(&session, monitor)?;
    let state = agree(ranks, fresh(&session, monitor))?;
    let loss = next_loss(&session, curriculum.as_mut(), &state)?;
    monitor.message(&format!(
        "dry run: {} parameters, {} steps; the first step's loss is {loss:.4}; nothing was written",
        session.spec.parameters(),
        session.steps
    ));
    let out = options.out.clone();
    Ok(Summary { out, steps: session.steps, last_loss: Some(loss), exports: Vec::new() })
}

/// The first rows of each set as the model would see them.
#[derive(Debug)]
pub struct Preview {
    /// What became of the documents, a line or more a set.
    pub statistics: Vec<String>,
    /// Rows with a name; padding included.
    pub rows: Vec<(String, Row)>,
    /// What their ids mean.
    pub tokenizer: Tokenizer,
}

/// Prepares the data of a recipe and shows the first `count` items of each set.
///
/// # Errors
/// As [`run`], up to the data.
pub fn preview(
    recipe: &Recipe,
    count: usize,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Preview, TrainError> {
    let ranks = Ranks::alone();
    let (session, mut curriculum) = open(recipe, Crew::anew(signals, &ranks), monitor)?;
    let mut rows = Vec::new();
    let sets: std::collections::BTreeSet<_> =
        session.mixes.iter().flat_map(|mix| mix.sets.iter().map(|(set, _)| set)).collect();
    for set in sets {
        rows.extend(curriculum.preview(set, count as u64)?);
    }
    let statistics = curriculum.describe()?;
    Ok(Preview { statistics, rows, tokenizer: session.tokenizer })
}

/// What is known of a run before it is made.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Steps of the whole run.
    pub steps: u64,
    /// The model, where it can be known.
    pub spec: Option<ModelSpec>,
}

/// Finds the number of steps and the model of a recipe; data is read only where epochs are counted.
/// `before` is the model of the stage before in a pipeline, whose folder need not exist yet. `None`
/// when epochs of data are counted that cannot be tokenised yet.
///
/// # Errors
/// As [`run`], up to the data.
pub fn shape(
    recipe: &Recipe,
    before: Option<&ModelSpec>,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Option<Shape>, TrainError> {
    if let Some(steps) = session::known_steps(recipe) {
        let spec = known_spec(recipe)?.or_else(|| before.cloned());
        return Ok(Some(Shape { steps, spec }));
    }
    if before.is_some() {
        return Ok(None);
    }
    let ranks = Ranks::alone();
    let (session, _) = open(recipe, Crew::anew(signals, &ranks), monitor)?;
    Ok(Some(Shape { steps: session.steps, spec: Some(session.spec) }))
}

/// What a recipe names, to train with it: all ranks find the same, and what is due at the end of the
/// run can be made.
fn open_to_train<'a>(
    recipe: &'a Recipe,
    crew: Crew<'a>,
    monitor: &mut dyn Monitor,
) -> Result<(Session<'a>, Box<dyn Curriculum>), TrainError> {
    let ranks = crew.ranks;
    let (session, curriculum) = agree(ranks, open(recipe, crew, monitor))?;
    require_same(ranks, &session.terms())?;
    agree(ranks, export::check_formats(recipe, &session.spec))?;
    Ok((session, curriculum))
}

/// What a recipe names; a rank may fail here alone.
fn open<'a>(
    recipe: &'a Recipe,
    crew: Crew<'a>,
    monitor: &mut dyn Monitor,
) -> Result<(Session<'a>, Box<dyn Curriculum>), TrainError> {
    let hosts = Hosts::ask(crew.ranks, crate::platform::cores());
    Session::prepare(recipe, &hosts, crew, monitor)
}

fn summary(session: &Session, dir: &RunDir, last_loss: Option<f32>) -> Summary {
    let path = |format: &str| dir.join("export").join(format);
    let formats = session.recipe.export.formats.iter().map(|format| format.name().to_owned());
    let exports = formats.map(|format| (format.clone(), path(&format))).collect();
    Summary { out: dir.path().to_owned(), steps: session.steps, last_loss, exports }
}

fn fresh(session: &Session, monitor: &mut dyn Monitor) -> Result<State, TrainError> {
    let model = session.initial_model(monitor)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let key = format!("{:?} {}", now.unwrap_or_default(), std::process::id());
    let progress = Progress {
        run_id: blake3::hash(key.as_bytes()).to_hex()[..16].to_owned(),
        step: 0,
        tokens: 0,
        own_tokens: 0,
        updates: 0,
        position: Position::default(),
        skipped_in_a_row: 0,
        skipped: 0,
        unfinished: false,
        best: None,
        spikes: SpikeWindow::default(),
        data_fingerprint: session.fingerprint.clone(),
        tokenizer_blake3: blake3::hash(session.tokenizer.json()).to_hex().to_string(),
        chat_template: session.chat.identity(),
    };
    Ok(State { optimizer: session.new_optimizer(), model, progress, resumed_from: None })
}

/// Writes what a run directory holds before the first step, and begins its curves.
fn begin(
    session: &Session,
    dir: &RunDir,
    options: &RunOptions,
    state: &State,
    monitor: &mut dyn Monitor,
) -> Result<EventFile, TrainError> {
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
        batch: match recipe.stage {
            Stage::Dpo => format!("{} pairs", recipe.train.batch),
            _ => format!("{} rows of {}", recipe.train.batch, recipe.data.seq_len),
        },
        ranks: session.ranks.count(),
    });
    Ok(EventFile::create(&dir.join(EVENTS_DIR))?)
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

/// Where the final folder of a run lies.
pub fn final_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(FINAL_DIR)
}
