//! Refuses a run whose own logs would be among its data: the data would change with every step, and
//! no run could be resumed.

use bitnet_format::Shown;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::recipe::{self, DataSource, PathPattern, Recipe};
use crate::run_dir::{METRICS_FILE, SAMPLES_FILE};
use crate::train::open::contradiction;

/// Refuses data patterns that match a log in the run directory `out`.
pub(super) fn check(recipe: &Recipe, out: &Path) -> Result<(), TrainError> {
    let DataSource::Files { sets, validation } = &recipe.data.source else { return Ok(()) };
    let trained = sets.iter().map(|(name, set)| (recipe::set_key(name), set));
    let held_out = validation.iter().map(|(name, set)| (recipe::validation_key(name), set));
    for (field, set) in trained.chain(held_out) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Plan;

    #[test]
    fn a_pattern_that_matches_a_log_is_named_by_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.toml");
        let text = format!(
            "stage = \"pretrain\"\n[model]\nconfig = {config:?}\n[tokenizer]\ntrain = {{ vocab_size = 300 }}\n\
             [data]\nseq_len = 8\n[data.sets]\nweb = [\"web/*.jsonl\"]\n[data.validation]\n\
             held = [\"held/*.jsonl\"]\n[train]\nsteps = 2\nbatch = 1\n[[phase]]\nname = \"main\"\nshare = 1.0\n\
             data = {{ web = 1.0 }}\n"
        );
        fs_err::write(&path, text).unwrap();
        let Plan::Single(recipe) = recipe::load(&path, &[]).unwrap() else { panic!() };
        for (out, field) in [("web", "data.sets.web"), ("held", "data.validation.held")] {
            let refused = check(&recipe, &dir.path().join(out)).unwrap_err().to_string();
            assert!(refused.contains(&format!("[{field}]")), "{refused}");
        }
        check(&recipe, &dir.path().join("runs")).unwrap();
    }
}
