//! Finding the state to continue from, and refusing to continue another run's.

use std::path::{Path, PathBuf};

use crate::checkpoint::{self, StoredMoments};
use crate::model::LanguageModel;
use crate::monitor::Monitor;
use crate::recipe::{self, Class, Plan, Recipe};
use crate::train::agreement::first_only;
use crate::train::run::{Progress, Resume, State};
use crate::train::run_dir::RunDir;
use crate::train::session::Session;
use crate::train::{TrainError, run_dir};

/// What continuing elsewhere means.
const ANOTHER_DEVICE: &str = "the numbers go on within rounding of what the other device would \
                              have made of them, and not to the bit";

/// The checkpoint to continue from; `None` starts at step 1.
pub(crate) fn choose(
    dir: &RunDir,
    resume: &Resume,
    monitor: &mut dyn Monitor,
) -> Result<Option<PathBuf>, TrainError> {
    match resume {
        Resume::Never if run_dir::holds_a_run(dir.path())? => Err(holds_a_run(dir.path())),
        Resume::Never => Ok(None),
        Resume::Auto => dir.newest_verified(|reason| monitor.message(reason)),
        Resume::From(path) => {
            checkpoint::verify(path)?;
            Ok(Some(path.clone()))
        }
    }
}

/// The refusal of a directory that holds a run.
pub(crate) fn holds_a_run(path: &Path) -> TrainError {
    TrainError::Refused(format!(
        "{}: holds a run already; continue it with --resume auto or choose another --out",
        path.display()
    ))
}

/// Loads a checkpoint that verifies, unless the recipe or the data have drifted from it. The first
/// rank reads, the others are told; theirs need not see the run directory.
pub(crate) fn load(
    session: &Session,
    path: &Path,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<State, TrainError> {
    let ranks = session.ranks;
    let read = first_only(ranks, || read(session, path, allowed, monitor))?;
    let (progress, model, stored) = match read {
        Some((progress, model, stored)) => (Some(progress), Some(model), Some(stored)),
        None => (None, None, None),
    };
    let told = serde_json::to_vec(&progress).expect("the state serialises");
    let progress = serde_json::from_slice::<Option<Progress>>(&ranks.broadcast(told));
    let progress = progress.ok().flatten().expect("what the first rank has read");
    let recipe = session.recipe;
    let blank = || LanguageModel::initial(&session.spec, recipe.seed, &session.device);
    let mut model = session.prepared(model.unwrap_or_else(blank));
    let mut optimizer = session.new_optimizer();
    let inner = session.device.clone().inner();
    if let Some(together) = &session.together {
        model = together.same_model(model);
        together.read_moments(&mut optimizer, stored.as_ref(), &inner)?;
    } else if let Some(stored) = stored {
        [optimizer.first, optimizer.second] = stored.read_all(&session.spec, &inner)?;
    }
    optimizer.updates = progress.updates;
    monitor.message(&format!("continuing after step {} from {}", progress.step, path.display()));
    let resumed_from = Some(progress.step);
    Ok(State { model, optimizer, progress, resumed_from })
}

/// What a checkpoint holds, its moments unread.
fn read(
    session: &Session,
    path: &Path,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<(Progress, LanguageModel, StoredMoments), TrainError> {
    let progress: Progress = checkpoint::read_state(path)?;
    refuse_recipe_drift(session.recipe, path, allowed, monitor)?;
    refuse_data_drift(session, path, &progress, allowed)?;
    let folder = bitnet_format::StoredModel::open(path)?;
    let (model, _) = LanguageModel::read_for_training(&folder, &session.device)?;
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
            Class::Safe => {}
            _ if change.is_allowed(allowed) => {
                monitor.message(&format!("changed by --allow-change:{line}"));
                if change.key == "device" {
                    monitor.message(ANOTHER_DEVICE);
                }
            }
            Class::NeedsAllow => refused.push(format!("{line}  (--allow-change {})", change.key)),
            Class::Fatal => refused.push(format!("{line}  (cannot change within a run)")),
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let what = refused.join("\n");
    Err(TrainError::Drift(format!("{}: was made by another recipe:\n{what}", path.display())))
}

fn refuse_data_drift(
    session: &Session,
    path: &Path,
    progress: &Progress,
    allowed: &[String],
) -> Result<(), TrainError> {
    let tokenizer = blake3::hash(session.tokenizer.json()).to_hex().to_string();
    if progress.tokenizer_blake3 != tokenizer {
        let what = "was trained with another tokenizer, which cannot change within a run";
        return Err(TrainError::Drift(format!("{} [tokenizer]: {what}", path.display())));
    }
    if progress.chat_template != session.chat.identity() {
        let what = "was trained with another chat template, which cannot change within a run";
        let path = path.display();
        return Err(TrainError::Drift(format!("{path} [tokenizer.chat_template]: {what}")));
    }
    if progress.data_fingerprint != session.fingerprint && !allowed.iter().any(|key| key == "data")
    {
        let what = "the training files have changed since; --allow-change data continues anyway";
        return Err(TrainError::Drift(format!("{} [data]: {what}", path.display())));
    }
    Ok(())
}
