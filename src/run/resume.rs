//! Finds the state to continue from, and refuses to continue another run.

use std::path::{Path, PathBuf};

use super::Resume;
use crate::checkpoint::{self, StoredMoments};
use crate::distributed::first_only;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::Monitor;
use crate::recipe::{self, ChangeClass, Plan, Recipe};
use crate::run_dir::{RunDir, holds_a_run};
use crate::train::context::RunContext;
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
        Resume::Auto => dir.newest_verified(|reason| monitor.message(reason)),
        Resume::From(path) => {
            checkpoint::verify(path)?;
            Ok(Some(path.clone()))
        }
    }
}

/// The refusal of a directory that holds a run.
pub(super) fn holds_a_run_already(path: &Path) -> TrainError {
    TrainError::Refused(format!(
        "{}: holds a run already; continue it with --resume auto or choose another --out",
        path.display()
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
    let read = first_only(comm, || read(context, path, allowed, monitor))?;
    let (progress, model, stored) = match read {
        Some((progress, model, stored)) => (Some(progress), Some(model), Some(stored)),
        None => (None, None, None),
    };
    let bytes = serde_json::to_vec(&progress).expect("the state serialises");
    let progress = serde_json::from_slice::<Option<Progress>>(&comm.broadcast(bytes));
    let progress = progress.ok().flatten().expect("rank 0 sent what it read");
    let model = model.map_or_else(|| context.blank_model(), |model| context.prepared(model));
    let mut optimizer = context.new_optimizer();
    let stepper = &context.stepper;
    let model = stepper.load(&context.spec, model, &mut optimizer, stored.as_ref())?;
    optimizer.updates = progress.updates;
    monitor.message(&format!("continuing after step {} from {}", progress.step, path.display()));
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
    refuse_recipe_drift(context.recipe, path, allowed, monitor)?;
    refuse_data_drift(context, path, &progress, allowed)?;
    let folder = bitnet_format::StoredModel::open(path)?;
    let (model, _) = LanguageModel::read_for_training(&folder, &context.device)?;
    Ok((progress, model, StoredMoments::open(path)?))
}

fn refuse_recipe_drift(
    recipe: &Recipe,
    path: &Path,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    let Plan::Single(stored) = recipe::load(&path.join(checkpoint::RECIPE_FILE), &[])? else {
        let what = format!("{}: holds no recipe of one run", path.display());
        return Err(TrainError::Drift(what));
    };
    let mut refused = Vec::new();
    for change in stored.diff(recipe) {
        let line = format!("  {}: {} -> {}", change.key, change.old, change.new);
        match change.class {
            ChangeClass::Safe => {}
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
    Err(TrainError::Drift(format!("{}: was made by another recipe:\n{what}", path.display())))
}

fn refuse_data_drift(
    context: &RunContext,
    path: &Path,
    progress: &Progress,
    allowed: &[String],
) -> Result<(), TrainError> {
    if progress.tokenizer_blake3 != context.tokenizer_hash() {
        let what = "was trained with another tokenizer, which cannot change within a run";
        return Err(TrainError::Drift(format!("{} [tokenizer]: {what}", path.display())));
    }
    if progress.chat_template != context.chat.identity() {
        let what = "was trained with another chat template, which cannot change within a run";
        let path = path.display();
        return Err(TrainError::Drift(format!("{path} [tokenizer.chat_template]: {what}")));
    }
    if progress.data_fingerprint != context.fingerprint && !allowed.iter().any(|key| key == "data")
    {
        let what = "the training files have changed since; --allow-change data continues anyway";
        return Err(TrainError::Drift(format!("{} [data]: {what}", path.display())));
    }
    Ok(())
}
