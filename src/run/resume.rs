//! Finds the state to continue from, and refuses to continue another run.

use bitnet_format::Shown;
use bitnet_format::adapter::{Adapter, AdapterDescription};
use std::path::{Path, PathBuf};

use super::Resume;
use crate::checkpoint::{self, CheckpointError, MANIFEST_FILE, StoredMoments};
use crate::distributed::first_only;
use crate::error::TrainError;
use crate::model::{LanguageModel, set_factors};
use crate::monitor::Monitor;
use crate::recipe::{self, Change, ChangeClass, Plan, Recipe, StageKind};
use crate::run_dir::{RunDir, holds_a_run};
use crate::train::context::{RunContext, reading};
use crate::train::state::{Progress, TrainState};

/// What a change of device means for the numbers.
const ANOTHER_DEVICE: &str = "the numbers go on within rounding of what the other device would \
                              have made of them, and not to the bit";

/// The checkpoint to continue from; `None` starts at step 1.
pub(super) fn choose(
    dir: &RunDir,
    resume: &Resume,
    monitor: &mut dyn Monitor,
) -> Result<Option<PathBuf>, TrainError> {
    match resume {
        Resume::Never if holds_a_run(dir.path())? => Err(holds_a_run_already(dir.path())),
        Resume::Never => Ok(None),
        // Damaged checkpoints are passed over with a message; the next older one stands in.
        Resume::Auto => dir.newest_verified(|reason| monitor.message(reason)),
        Resume::From(path) => {
            require_checkpoint(path)?;
            checkpoint::verify(path)?;
            // A checkpoint of another run would continue its steps under this run's logs.
            dir.refuse_stranger(path)?;
            Ok(Some(path.clone()))
        }
    }
}

/// Refuses what is no checkpoint at all: a file, a run, a step that was never saved.
fn require_checkpoint(path: &Path) -> Result<(), CheckpointError> {
    if path.join(MANIFEST_FILE).is_file() {
        return Ok(());
    }
    let what = "is no checkpoint; expected a directory such as step-000100 in a run".to_owned();
    Err(CheckpointError::Broken { path: path.to_owned(), what })
}

/// The refusal of a directory that holds a run.
pub(super) fn holds_a_run_already(path: &Path) -> TrainError {
    TrainError::Refused(format!(
        "{}: holds a run already; continue it with --resume auto or choose another --out",
        path.shown()
    ))
}

/// Loads a checkpoint that verifies, unless the recipe or the data differ from the run's. Rank 0
/// reads and sends; the other ranks need not see the run directory.
pub(super) fn load(
    context: &RunContext,
    path: &Path,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<TrainState, TrainError> {
    let comm = context.comm;
    // A state is model, moments and `Progress`. Nothing else is needed: random numbers are keyed by
    // seed and step, and the position of the data is part of `Progress`.
    let read = first_only(comm, || read(context, path, allowed, monitor))?;
    let (progress, model, stored) = match read {
        Some((progress, model, stored)) => (Some(progress), Some(model), Some(stored)),
        None => (None, None, None),
    };
    let bytes = serde_json::to_vec(&progress).expect("the state serialises");
    let progress = serde_json::from_slice::<Option<Progress>>(&comm.broadcast(bytes));
    let progress = progress.ok().flatten().expect("rank 0 sent what it read");
    let model = match model {
        Some(model) => context.prepared(model),
        // What is trained comes from rank 0; the model under an adapter is each rank's own.
        None if context.adapter.is_some() => context.initial_model(monitor)?,
        None => context.blank_model(),
    };
    let mut optimizer = context.new_optimizer();
    let stepper = &context.stepper;
    let model = stepper.load(model, &mut optimizer, stored.as_ref())?;
    // AdamW's bias correction counts updates, which are fewer than steps where steps were skipped.
    optimizer.updates = progress.updates;
    optimizer.last_squares.clone_from(&progress.last_squares);
    monitor.message(&format!("continuing after step {} from {}", progress.step, path.shown()));
    let resumed_from = Some(progress.step);
    Ok(TrainState { model, optimizer, progress, resumed_from })
}

/// The contents of a checkpoint, with its moments unread.
fn read(
    context: &RunContext,
    path: &Path,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<(Progress, LanguageModel, StoredMoments), TrainError> {
    let progress: Progress = checkpoint::read_state(path)?;
    // All refusals come before model and moments are read.
    refuse_late_step(context, path, progress.step)?;
    refuse_recipe_drift(context, path, &progress, allowed, monitor)?;
    refuse_data_drift(context, path, &progress, allowed)?;
    if let Some(adapter) = &context.adapter {
        refuse_base_drift(path, &progress, &adapter.description)?;
        let stored = Adapter::open(path, &context.spec)?;
        let model = set_factors(context.initial_model(monitor)?, &stored);
        return Ok((progress, model, StoredMoments::open(path)?));
    }
    let folder = bitnet_format::StoredModel::open(path)?;
    let storage = context.storage();
    let (spec, mut watch) = (folder.spec(), reading(path, monitor));
    let read = LanguageModel::read_to_start;
    let read = read(&folder, spec, &context.device, storage, &mut watch)?;
    drop(watch);
    Ok((progress, read.model, StoredMoments::open(path)?))
}

/// A checkpoint of an adapter holds no model: the one it belongs to must be there still.
fn refuse_base_drift(
    path: &Path,
    progress: &Progress,
    adapter: &AdapterDescription,
) -> Result<(), TrainError> {
    if progress.init_blake3 == adapter.base_hash {
        return Ok(());
    }
    let what = "the files of the model that the adapter changes are not those it was trained on";
    let (path, base) = (path.shown(), &adapter.base_path);
    Err(TrainError::Drift(format!("{path} [model.init]: {what}: {base}")))
}

fn refuse_late_step(context: &RunContext, path: &Path, step: u64) -> Result<(), TrainError> {
    if step <= context.steps {
        return Ok(());
    }
    let what =
        format!("is of step {step}; expected at most step {}, the run's last", context.steps);
    Err(CheckpointError::Broken { path: path.to_owned(), what }.into())
}

/// Compares the recipe of a checkpoint with that of the run. What a key names may lie elsewhere now:
/// where the contents are known to be the same, another path is not a change.
fn refuse_recipe_drift(
    context: &RunContext,
    path: &Path,
    progress: &Progress,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    let stored = stored_recipe(context.recipe, path)?;
    let mut refused = Vec::new();
    // Three classes of keys: those that leave the steps the same (when to evaluate), those after
    // which training differs (a learning rate: with --allow-change), and those that the checkpoint
    // would not fit (the shape).
    for change in stored.diff(context.recipe) {
        let line = format!("  {}: {} -> {}", change.key, change.old, change.new);
        match change.class {
            ChangeClass::Safe => {}
            _ if only_moved(context, progress, &change)? => {}
            _ if change.is_allowed(allowed) => {
                monitor.message(&format!("changed by --allow-change:{line}"));
                if change.key == "device" {
                    monitor.message(ANOTHER_DEVICE);
                }
            }
            ChangeClass::NeedsAllow => {
                refused.push(format!("{line}  (--allow-change {})", change.key));
            }
            ChangeClass::Fatal => refused.push(format!("{line}  (cannot change within a run)")),
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let what = refused.join("\n");
    Err(TrainError::Drift(format!("{}: was made by another recipe:\n{what}", path.shown())))
}

/// The recipe in a checkpoint. Its template may lie elsewhere now; [`refuse_data_drift`] compares
/// the contents.
fn stored_recipe(recipe: &Recipe, path: &Path) -> Result<Recipe, TrainError> {
    const TEMPLATE: &str = "tokenizer.chat_template";
    // The stored path may be gone, and reading a recipe checks that its files exist.
    let template = recipe.settings().get(TEMPLATE).map(|value| format!("{TEMPLATE}={value}"));
    let words: Vec<String> = template.into_iter().collect();
    match recipe::load(&path.join(checkpoint::RECIPE_FILE), &words)? {
        Plan::Single(stored) => Ok(stored),
        Plan::Pipeline(_) => {
            let what = format!("{}: holds no recipe of one run", path.shown());
            Err(TrainError::Drift(what))
        }
    }
}

/// Whether a key names another path with the same contents.
fn only_moved(
    context: &RunContext,
    progress: &Progress,
    change: &Change,
) -> Result<bool, TrainError> {
    let named = |value: &str| value != "unset";
    if !named(&change.old) || !named(&change.new) {
        return Ok(false);
    }
    let sets = change.key.starts_with("data.sets.");
    Ok(match change.key.as_str() {
        // Another tokenizer is refused by its hash.
        "tokenizer.path" => true,
        "model.init" => {
            progress.init_blake3.is_some() && progress.init_blake3 == context.hash_init()?
        }
        key => (sets || key == "data.train") && progress.data_fingerprint == context.fingerprint,
    })
}

fn refuse_data_drift(
    context: &RunContext,
    path: &Path,
    progress: &Progress,
    allowed: &[String],
) -> Result<(), TrainError> {
    if progress.tokenizer_blake3 != context.tokenizer_hash() {
        let what = "was trained with another tokenizer, which cannot change within a run";
        return Err(TrainError::Drift(format!("{} [tokenizer]: {what}", path.shown())));
    }
    if progress.chat_template != context.chat.identity() {
        let what = "was trained with another chat template, which cannot change within a run";
        let path = path.shown();
        return Err(TrainError::Drift(format!("{path} [tokenizer.chat_template]: {what}")));
    }
    // The reference of preference training is the model that the run began with.
    let is_reference = context.recipe.stage == StageKind::Dpo;
    if is_reference
        && progress.init_blake3.is_some()
        && progress.init_blake3 != context.hash_init()?
    {
        let what = "the files of the reference model are not those the run began with";
        return Err(TrainError::Drift(format!("{} [model.init]: {what}", path.shown())));
    }
    if progress.data_fingerprint != context.fingerprint && !allowed.iter().any(|key| key == "data")
    {
        let what = "the training files have changed since; --allow-change data continues anyway";
        return Err(TrainError::Drift(format!("{} [data]: {what}", path.shown())));
    }
    Ok(())
}
