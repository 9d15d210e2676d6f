//! Refuses a run whose own logs would be among its data: the data would change with every step, and
//! no run could be resumed.

use bitnet_format::Shown;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::recipe::{self, DataSource, FileSet, FileSets, PathPattern, Recipe};
use crate::run_dir::{METRICS_FILE, SAMPLES_FILE};
use crate::train::open::contradiction;

/// Refuses data patterns that match a log in the run directory `out`.
pub(super) fn check(recipe: &Recipe, out: &Path) -> Result<(), TrainError> {
    let DataSource::Files { sets, validation } = &recipe.data.source else { return Ok(()) };
    let named = |sets: &FileSets, key: fn(&str) -> String| -> Vec<(String, FileSet)> {
        sets.iter().map(|(name, set)| (key(name), set.clone())).collect()
    };
    let trained = named(sets, recipe::set_key);
    for (field, set) in trained.into_iter().chain(named(validation, recipe::validation_key)) {
        for pattern in &set.files {
            if let Some(log) = logs(out).into_iter().find(|log| pattern.matches(log)) {
                return Err(contradiction(recipe, &field, what(pattern, &log)));
            }
        }
    }
    Ok(())
}

fn what(pattern: &PathPattern, log: &Path) -> String {
    format!(
        "{pattern} matches {}, which this run writes; expected a pattern or --out elsewhere",
        log.shown()
    )
}

/// The logs with a name that data can have, by every absolute name of the folder.
fn logs(out: &Path) -> Vec<PathBuf> {
    let absolute = std::path::absolute(out).ok();
    // The folder may not be there yet, but its parent often is.
    let parent = absolute.as_ref().and_then(|out| out.parent()?.canonicalize().ok());
    let linked = parent.zip(out.file_name()).map(|(parent, name)| parent.join(name));
    let folders = absolute.into_iter().chain(linked).chain(out.canonicalize().ok());
    folders.flat_map(|folder| [METRICS_FILE, SAMPLES_FILE].map(|log| folder.join(log))).collect()
}
