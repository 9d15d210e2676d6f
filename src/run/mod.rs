//! A run from its options to its summary: lock the directory, open what the recipe names, find the
//! state to start from, train, publish.

mod conversion;
mod dry_run;
mod own_files;
mod page;
mod pipeline;
mod resume;
mod space;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_format::Shown;
use bitnet_format::figures::significant;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::staged::{OnExisting, write_file};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use conversion::{MeasuredModel, SetLosses, held_out_losses};
pub use dry_run::{KnownRun, Preview, dry_run, known_run, preview};
pub use pipeline::{PipelineStage, later_steps, pipeline};

use crate::admission::{MemoryDemand, Settings, require_memory};
use crate::device;
use crate::distributed::{
    Comm, Hosts, KeyValue, all_ok, assert_equal_across_ranks, first_only, parameter_hash,
};
use crate::error::TrainError;
use crate::estimate::{RankLayout, energy, energy_in_words, memory};
use crate::exporter;
use crate::monitor::{Monitor, RunInfo, TrackedFiles, TrackedRun, Trackers};
use crate::platform::{self, Signals};
use crate::recipe::{ExportFormat, Recipe, StageKind};
use crate::run_dir::{
    COMMAND_FILE, EVENTS_DIR, FINAL_DIR, METRICS_FILE, MLFLOW_DIR, RESOLVED_FILE, RunDir,
    SAMPLES_FILE, holds_a_run, refuse_others,
};
use crate::run_record::{Published, RunFacts};
use crate::train::context::RunContext;
use crate::train::open::{Opener, contradiction, open};
use crate::train::state::TrainState;
use crate::train::waiting_lines::write_missing;
use crate::train::{Callbacks, RunLog, Trainer, stage};

/// Where a run continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Start anew; a directory with a run in it is refused.
    Never,
    /// The newest checkpoint that verifies, or step 1 when there is none.
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
    /// Whether to train in a directory that holds other things and no run, beside them, and where
    /// memory seems too small.
    pub force: bool,
    /// The command line, added to `command.txt`.
    pub command: String,
    /// Signals to obey; `Signals::default()` obeys none.
    pub signals: Signals,
    /// The ranks that train this model; [`Comm::single`] for one process.
    pub comm: Comm,
}

/// The results of a run.
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

/// Trains a model as the recipe says, from the first step or from where it stopped. A run that has
/// made its last step and lacks its final folder or an export gets what is missing.
///
/// # Errors
/// Every way a run can end early, each with its exit code; what was saved stays valid.
pub fn run(
    recipe: &Recipe,
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<Summary, TrainError> {
    let comm = &options.comm;
    check_across_ranks(recipe, comm)?;
    all_ok(comm, own_files::check(recipe, &options.out))?;
    // Only rank 0 sees the run directory: on a cluster the others may not share its disk.
    let opened = first_only(comm, || open_dir(options, monitor))?;
    let (dir, checkpoint) = opened.unwrap_or_else(|| (RunDir::unlocked(&options.out), None));
    let made = run_in(&dir, checkpoint, recipe, options, monitor);
    if comm.is_first() && recipe.report.html && page::is_due(&made) {
        page::write(&dir, monitor);
    }
    made.map_err(|error| if dir.has_vanished() { dir.vanished(error) } else { error })
}

fn run_in(
    dir: &RunDir,
    checkpoint: Option<PathBuf>,
    recipe: &Recipe,
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<Summary, TrainError> {
    let comm = &options.comm;
    // The order from here on is what makes a resumed run the same run:
    //
    //    1. what to continue from           rank 0 decides, all learn it
    //    2. open what the recipe names      with the checkpoint's own tokenizer
    //    3. all ranks found the same        or nothing starts
    //    4. load, or make, the state        drift from the stored run is refused
    //    5. claim the directory, mend logs  only now is anything written
    //    6. the loop
    let start = Start::broadcast(comm, dir, checkpoint)?;
    let kept_tokenizer = start.tokenizer.as_deref();
    let allowed = &options.allow_change;
    let opener = Opener { signals: &options.signals, comm, kept_tokenizer, allowed };
    let (context, mut stage) = open_on_all_ranks(recipe, opener, monitor)?;
    admit(&context, options.force)?;
    let state = match &start.checkpoint {
        Some(checkpoint) => resume::load(&context, checkpoint, &options.allow_change, monitor)?,
        None => fresh_on_all_ranks(&context, monitor)?,
    };
    let trained = state.is_trained(context.steps);
    // A run killed after its last step but before its exports comes here with `trained` and without
    // all of them: it trains no more and only finishes.
    if trained && start.has_published(&context, &state) {
        monitor.message(&format!("{}: this run is finished", options.out.shown()));
        return Ok(summary(&context, dir, None));
    }
    if !trained {
        begin_stage(&context, stage.as_mut(), monitor)?;
    }
    let trackers = first_only(comm, || begin(&context, dir, options, &state, monitor))?;
    let callbacks = Callbacks::new(&context, RunLog::new(dir, monitor, trackers));
    let limit = recipe.train.max_minutes;
    let deadline = limit.map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0));
    let mut trainer = Trainer { context: &context, stage, callbacks, deadline };
    let state = if trained { state } else { trainer.train(state)? };
    trainer.callbacks.finish(&state)?;
    if !trained {
        trainer.callbacks.message(&energy_line(&context, trainer.callbacks.energy()));
    }
    let last_loss = trainer.callbacks.last_loss;
    Ok(summary(&context, dir, last_loss))
}

/// Where all ranks begin; what rank 0 found in the run directory.
#[derive(Serialize, Deserialize)]
struct Start {
    /// The checkpoint to continue from, a path of rank 0's.
    checkpoint: Option<PathBuf>,
    /// Its tokenizer.
    tokenizer: Option<Vec<u8>>,
    /// What is there of a trained model.
    published: Published,
}

impl Start {
    fn broadcast(
        comm: &Comm,
        dir: &RunDir,
        checkpoint: Option<PathBuf>,
    ) -> Result<Self, TrainError> {
        let start = first_only(comm, || {
            let tokenizer = checkpoint.as_ref().map(|path| fs_err::read(path.join(TOKENIZER_FILE)));
            let published = dir.published();
            Ok(Self { tokenizer: tokenizer.transpose()?, checkpoint, published })
        })?;
        let bytes = serde_json::to_vec(&start).expect("a start serialises");
        let start = serde_json::from_slice::<Option<Self>>(&comm.broadcast(bytes));
        Ok(start.ok().flatten().expect("rank 0 sent what it found"))
    }

    /// Whether everything that the recipe asks for is there, made of this state.
    fn has_published(&self, context: &RunContext, state: &TrainState) -> bool {
        let progress = &state.progress;
        let published = self.published.clone().of_step(&progress.run_id, progress.step);
        let there = |format: &ExportFormat| published.exports.iter().any(|it| it == format.name());
        published.of.is_some() && context.recipe.export.formats.iter().all(there)
    }
}

/// Opens the run directory and finds what to continue from.
fn open_dir(
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<(RunDir, Option<PathBuf>), TrainError> {
    let dir = RunDir::open(&options.out, options.force)?;
    let start = resume::choose(&dir, &options.resume, monitor)?;
    Ok((dir, start))
}

/// Checks what can be checked without opening anything: that all ranks have the same recipe, and
/// that the batch has work for all of them.
fn check_across_ranks(recipe: &Recipe, comm: &Comm) -> Result<(), TrainError> {
    check(recipe, comm)?;
    let version = ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let device = ("kind of device".to_owned(), device::family(&recipe.device).to_owned());
    let settings: Vec<KeyValue> = recipe.settings().into_iter().chain([version, device]).collect();
    assert_equal_across_ranks(comm, &settings)
}

/// Checks that a recipe has work for all ranks.
///
/// # Errors
/// Names the key.
pub fn check(recipe: &Recipe, comm: &Comm) -> Result<(), TrainError> {
    all_ok(comm, check_batch(recipe, comm.world_size()))
}

/// Refuses a batch that does not give work to every rank.
///
/// # Errors
/// Names the key.
pub fn check_batch(recipe: &Recipe, world_size: usize) -> Result<(), TrainError> {
    // Batches grow during warm-up, so the first is the smallest.
    let least = recipe.train.batches().at(1);
    if least >= world_size {
        return Ok(());
    }
    let key = if least < recipe.train.batch { "train.batch_warmup.start" } else { "train.batch" };
    let what = format!("is {least}; expected at least one for each of the {world_size} ranks");
    Err(contradiction(recipe, key, what))
}

/// Refuses a directory that holds a run, unless it is to be continued.
///
/// # Errors
/// When it does.
pub fn refuse_existing(out: &Path) -> Result<(), TrainError> {
    if out.exists() && holds_a_run(out)? {
        return Err(resume::holds_a_run_already(out));
    }
    Ok(())
}

/// Refuses a directory for runs that holds other things than logs and `known`; `force` allows what
/// no run overwrites.
///
/// # Errors
/// Names one of the things.
pub fn refuse_foreign(out: &Path, known: &[String], force: bool) -> Result<(), TrainError> {
    refuse_others(out, known, force)
}

/// Opens what a recipe names. All ranks find the same, and the exports at the end can be made.
fn open_on_all_ranks<'a>(
    recipe: &'a Recipe,
    opener: Opener<'a>,
    monitor: &mut dyn Monitor,
) -> Result<(RunContext<'a>, Box<dyn stage::Stage>), TrainError> {
    let comm = opener.comm;
    let (context, stage) = all_ok(comm, open(recipe, opener, monitor))?;
    assert_equal_across_ranks(comm, &context.key_values())?;
    all_ok(comm, exporter::check_formats(recipe, &context.spec))?;
    Ok((context, stage))
}

/// What a trained token has cost: measured, or an estimate that says so.
fn energy_line(context: &RunContext, measured: Option<(f64, String)>) -> String {
    if let Some((joules, source)) = measured {
        return format!("energy: {} J/token, measured on {source}", significant(joules));
    }
    let (recipe, ranks) = (context.recipe, context.comm.world_size());
    let (load, layout) = (context.workload(), RankLayout::of(recipe, ranks));
    let memory = memory(&context.spec, &context.frozen, load, layout, &context.device);
    energy_in_words(energy(&context.spec, recipe.train.precision, load, &memory))
}

/// Refuses a run that cannot fit into the memory of each machine.
fn admit(context: &RunContext, force: bool) -> Result<(), TrainError> {
    if force {
        return Ok(());
    }
    let (recipe, comm) = (context.recipe, context.comm);
    let ranks = comm.world_size();
    let demand = MemoryDemand {
        frozen: &context.frozen,
        spec: &context.spec,
        load: context.workload(),
        ranks: RankLayout::of(recipe, ranks),
        here: Hosts::gather(comm, platform::cores()).local_world_size(),
        device: &context.device,
        settings: Settings::Recipe,
    };
    all_ok(comm, require_memory(demand))
}

/// The state of step 0, with the same parameters on all ranks.
fn fresh_on_all_ranks(
    context: &RunContext,
    monitor: &mut dyn Monitor,
) -> Result<TrainState, TrainError> {
    let state = all_ok(context.comm, TrainState::fresh(context, monitor))?;
    if context.comm.world_size() > 1 {
        let hash = parameter_hash(&state.model).to_hex().to_string();
        let key_value = ("parameters of the first step".to_owned(), hash);
        assert_equal_across_ranks(context.comm, &[key_value])?;
    }
    Ok(state)
}

/// Shows the statistics of the data and prepares the stage.
fn begin_stage(
    context: &RunContext,
    stage: &mut dyn stage::Stage,
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    all_ok(context.comm, stage.describe())?.iter().for_each(|line| monitor.message(line));
    stage.begin(context, monitor)
}

fn summary(context: &RunContext, dir: &RunDir, last_loss: Option<f32>) -> Summary {
    let formats = &context.recipe.export.formats;
    let exports = formats.iter().map(|&it| (it.name().to_owned(), dir.export_path(it))).collect();
    Summary { out: dir.path().to_owned(), steps: context.steps, last_loss, exports }
}

/// Writes what a run directory holds before the first step, and starts its curves.
fn begin(
    context: &RunContext,
    dir: &RunDir,
    options: &RunOptions,
    state: &TrainState,
    monitor: &mut dyn Monitor,
) -> Result<Trackers, TrainError> {
    // But for its lock, nothing was written into the directory before this line.
    dir.claim(&state.progress.run_id, state.is_trained(context.steps))?;
    let (device, ranks) = (&context.recipe.device, context.comm.world_size());
    let parameters = context.spec.parameters() as u64;
    dir.note_facts(RunFacts::here(context.steps, parameters, device, ranks))?;
    // A kill may have cut the last line in half; the half is removed before lines are appended.
    dir.mend(METRICS_FILE)?;
    dir.mend(SAMPLES_FILE)?;
    // After mending and before the first step: a full disk is better known now than after an hour.
    space::require(context, dir.path(), state.progress.step)?;
    let resolved = context.recipe.resolved_toml();
    write_file(&dir.join(RESOLVED_FILE), resolved.as_bytes(), OnExisting::Replace)?;
    dir.append_line(COMMAND_FILE, &options.command)?;
    // Lines that a full disk kept out of the logs travelled in the checkpoint.
    write_missing(dir, &state.progress.unwritten)?;
    let step = state.progress.step;
    // Readers drop all lines after `from_step` that stand before this mark: those steps are made
    // again.
    if dir.join(METRICS_FILE).exists() {
        dir.append(METRICS_FILE, &json!({"event": "resume", "from_step": step}))?;
    }
    if step < context.steps {
        monitor.started(&run_info(context, step));
    }
    let mut trackers = trackers(context, dir, state)?;
    trackers.text("recipe", step, &resolved)?;
    Ok(trackers)
}

fn trackers(
    context: &RunContext,
    dir: &RunDir,
    state: &TrainState,
) -> Result<Trackers, TrainError> {
    let recipe = context.recipe;
    let report = &recipe.report;
    let files = TrackedFiles {
        events: &dir.join(EVENTS_DIR),
        mlflow: &dir.join(MLFLOW_DIR),
        log: &dir.join(METRICS_FILE),
        resumed_from: state.resumed_from,
    };
    let (id, settings) = (&state.progress.run_id, &recipe.settings());
    let run = TrackedRun { name: &recipe.name, id, settings };
    Ok(Trackers::open(&report.track, report.command.as_deref(), files, run)?)
}

fn run_info(context: &RunContext, step: u64) -> RunInfo {
    let recipe = context.recipe;
    RunInfo {
        name: recipe.name.clone(),
        parameters: context.spec.parameters(),
        steps: context.steps,
        first_step: step + 1,
        batch: match recipe.stage {
            StageKind::Dpo => format!("{} pairs", recipe.train.batch),
            _ => format!("{} rows of {}", recipe.train.batch, recipe.data.seq_len),
        },
        ranks: context.comm.world_size(),
    }
}

/// The final folder of a run.
pub fn final_dir(run_dir: &Path) -> PathBuf {
    run_dir.join(FINAL_DIR)
}
