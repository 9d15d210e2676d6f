//! Whether a run's files will fit on the disk.

use std::io::{Error, ErrorKind};
use std::path::Path;

use bitnet_format::Shown;
use bitnet_format::figures;

use crate::checkpoint;
use crate::error::TrainError;
use crate::estimate::{RankWorkload, checkpoint_files};
use crate::platform::free_space;
use crate::run_dir::{BEST_DIR, EXPORT_DIR, FINAL_DIR, RunDir};
use crate::train::context::RunContext;
use crate::train::state::TrainState;

/// What a run needs, less what it has written already.
struct DiskSpace {
    /// A checkpoint.
    checkpoint: u64,
    /// Checkpoints that stay.
    keep: u64,
    /// The final folder, that of the best model and the exports.
    results: u64,
}

impl DiskSpace {
    fn of(context: &RunContext) -> Self {
        let (recipe, parameters) = (context.recipe, context.spec.parameters() as u64);
        let load = RankWorkload::of(recipe, 1);
        let [model, optimizer] = checkpoint_files(&context.spec, &context.frozen, load);
        // There is at most one a step.
        let keep = context.steps.min(recipe.checkpoint.keep as u64);
        // No format has more than bf16's two bytes a weight.
        let exports = 2 * parameters * recipe.export.formats.len() as u64;
        // The best model is another folder beside the last one.
        let models = if recipe.checkpoint.best { 2 } else { 1 };
        Self { checkpoint: model + optimizer, keep, results: models * model + exports }
    }

    /// One checkpoint more than stay; those that are there make room for new ones.
    fn checkpoints(&self, there: u64) -> u64 {
        let stay = self.checkpoint.saturating_mul(self.keep);
        stay.saturating_add(self.checkpoint) - there.min(stay)
    }

    /// What is missing of the results.
    fn results(&self, there: u64) -> u64 {
        self.results.saturating_sub(there)
    }
}

/// Refuses a run that will not fit on the disk.
pub(super) fn require(
    context: &RunContext,
    dir: &RunDir,
    state: &TrainState,
) -> Result<(), TrainError> {
    let Some(free) = free_space(dir.path()) else { return Ok(()) };
    let space = DiskSpace::of(context);
    let results = [FINAL_DIR, BEST_DIR, EXPORT_DIR].iter().map(|name| size(&dir.join(name))).sum();
    let mut needed = space.results(results);
    if state.progress.step < context.steps {
        let there = checkpoint::list(dir.path())?.iter().map(|(_, path)| size(path)).sum();
        needed += space.checkpoints(there);
    }
    if free >= needed {
        return Ok(());
    }
    let what = format!(
        "{}: {} are free; checkpoints ({} each, {} stay) and export need {} more than is there. \
         Lower checkpoint.keep",
        dir.path().shown(),
        figures::size(free),
        figures::size(space.checkpoint),
        space.keep,
        figures::size(needed)
    );
    Err(TrainError::Io(Error::new(ErrorKind::StorageFull, what)))
}

/// Bytes of a file, or of all files in a folder; 0 where there is none.
fn size(path: &Path) -> u64 {
    // A link is not followed: what it names may lie on another disk, or around it.
    let Ok(meta) = path.symlink_metadata() else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let Ok(entries) = fs_err::read_dir(path) else { return 0 };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_space_in_use_already_is_not_needed_again() {
        let space = DiskSpace { checkpoint: 300, keep: 3, results: 200 };
        assert_eq!((space.checkpoints(0), space.results(0)), (1200, 200));
        assert_eq!(space.checkpoints(900), 300, "one more, then the oldest goes");
        assert_eq!(space.checkpoints(2000), 300, "what is pinned stays and makes no room");
        assert_eq!((space.results(150), space.results(900)), (50, 0));
        let most = DiskSpace { checkpoint: 3 << 40, keep: u64::from(u32::MAX), results: 0 };
        assert!(most.checkpoints(0) > 1 << 60);
    }

    #[test]
    fn the_size_of_a_folder_is_that_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("a")).unwrap();
        fs_err::write(dir.path().join("a/b"), [0; 30]).unwrap();
        fs_err::write(dir.path().join("c"), [0; 12]).unwrap();
        assert_eq!(size(dir.path()), 42);
        assert_eq!(size(&dir.path().join("missing")), 0);
    }
}
