//! Whether a run's files will fit on the disk.

use std::io::{Error, ErrorKind};
use std::path::Path;

use bitnet_format::Shown;
use bitnet_format::figures;

use crate::checkpoint;
use crate::error::TrainError;
use crate::estimate::{RankWorkload, checkpoint_files};
use crate::platform::free_space;
use crate::recipe::Recipe;
use crate::run_dir::{BEST_DIR, EXPORT_DIR, FINAL_DIR};
use crate::train::context::RunContext;

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
        let RunContext { recipe, spec, frozen, steps, .. } = context;
        let files = checkpoint_files(spec, frozen, RankWorkload::of(recipe, 1));
        Self::new(recipe, *steps, spec.parameters() as u64, files)
    }

    /// Of a checkpoint whose model and optimizer take that many bytes.
    fn new(recipe: &Recipe, steps: u64, parameters: u64, [model, optimizer]: [u64; 2]) -> Self {
        // There is at most one a step.
        let keep = steps.min(recipe.checkpoint.keep as u64);
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

/// Refuses a run that has come to this step and will not fit on the disk of its directory, which need not
/// be there.
pub(super) fn require(context: &RunContext, dir: &Path, step: u64) -> Result<(), TrainError> {
    let exists = dir.ancestors().find(|folder| folder.is_dir());
    // A path of one name lies in the working directory.
    let Some(free) = free_space(exists.unwrap_or(Path::new("."))) else { return Ok(()) };
    let space = DiskSpace::of(context);
    let results = [FINAL_DIR, BEST_DIR, EXPORT_DIR].iter().map(|name| size(&dir.join(name))).sum();
    let mut needed = space.results(results);
    if step < context.steps {
        let there = if dir.is_dir() { checkpoint::list(dir)? } else { Vec::new() };
        needed += space.checkpoints(there.iter().map(|(_, path)| size(path)).sum());
    }
    if free >= needed {
        return Ok(());
    }
    let what = format!(
        "{}: {} are free; checkpoints ({} each, {} stay) and export need {} more than is there. \
         Lower checkpoint.keep",
        dir.shown(),
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
    use crate::recipe::{self, Plan};

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
    fn the_best_model_and_each_export_take_room_and_no_more_checkpoints_than_steps() {
        let short = "stage = \"sft\"\nmodel.init = \"base\"\ndata.train = [\"a.jsonl\"]\n\
                     data.seq_len = 8\ntrain = { steps = 9, batch = 1 }\n";
        let space = |words: &str, steps| {
            let text = format!("{short}{words}");
            let Plan::Single(recipe) = recipe::load_text(&text, Path::new("r.toml"), &[]).unwrap()
            else {
                panic!("one stage")
            };
            DiskSpace::new(&recipe, steps, 1000, [2000, 8000])
        };
        let plain = space("checkpoint.keep = 3", 50);
        assert_eq!((plain.checkpoint, plain.keep, plain.results), (10_000, 3, 2000));
        assert_eq!(space("checkpoint.keep = 3", 2).keep, 2);
        let more = "checkpoint.best = true\nexport.formats = [\"hf-packed\", \"gguf-i2_s\"]";
        assert_eq!(space(more, 50).results, 2 * 2000 + 2 * 2 * 1000);
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
