//! The run directory: one writer, an append-only log, checkpoints that are found and pruned.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_format::adapter::{ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE};
use bitnet_format::staged::retire;
use bitnet_format::tensors::TensorFile;
use bitnet_format::{Shown, StoredModel};
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::{self, CheckpointError};
use crate::data::FileLock;
use crate::error::TrainError;
use crate::leftovers;
use crate::platform::file_identity;
use crate::recipe::ExportFormat;
use crate::run_record::{Published, RECORD_FILE, RunFacts, RunRecord};

/// The log of a run, one JSON object a line.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
/// Samples written while training, one JSON object a line.
pub(crate) const SAMPLES_FILE: &str = "samples.jsonl";
/// The command lines that started and continued the run, one a line.
pub(crate) const COMMAND_FILE: &str = "command.txt";
/// The recipe with every default.
pub(crate) use crate::checkpoint::RECIPE_FILE as RESOLVED_FILE;
/// The model of the last step as a Hugging Face folder.
pub(crate) const FINAL_DIR: &str = "final";
/// The model with the lowest held-out loss, as such a folder.
pub(crate) const BEST_DIR: &str = "best";
/// The exported models.
pub(crate) const EXPORT_DIR: &str = "export";
/// The page of the run.
pub(crate) const PAGE_FILE: &str = "report.html";
/// `TensorBoard`'s event files.
pub(crate) const EVENTS_DIR: &str = "tensorboard";
/// The store of `MLflow`.
pub(crate) const MLFLOW_DIR: &str = "mlruns";
/// Touch this file to have a checkpoint made.
const SAVE_NOW_FILE: &str = "SAVE_NOW";
/// What a bug leaves.
const CRASH_FILE: &str = "crash.json";
/// Held by the process that writes here.
const LOCK_FILE: &str = "run.lock";

/// What a run writes under these names replaces or continues what is there.
// Event files and MLflow's runs are not among them: each gets a name of its own.
const WRITTEN: [&str; 10] = [
    METRICS_FILE,
    SAMPLES_FILE,
    RESOLVED_FILE,
    COMMAND_FILE,
    RECORD_FILE,
    CRASH_FILE,
    PAGE_FILE,
    FINAL_DIR,
    BEST_DIR,
    EXPORT_DIR,
];

/// An open run directory, locked against other processes while this value lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: Option<FileLock>,
    /// Device and inode of the directory when it was locked.
    identity: Option<(u64, u64)>,
}

impl RunDir {
    /// Creates the directory where needed and takes its lock.
    ///
    /// # Errors
    /// When another process holds it, or it holds other things (see [`refuse_others`]).
    pub(crate) fn open(path: &Path, force: bool) -> Result<Self, TrainError> {
        refuse_others(path, &[], force)?;
        fs_err::create_dir_all(path)?;
        match FileLock::try_exclusive(&path.join(LOCK_FILE))? {
            Ok(lock) => {
                let (path, identity) = (path.to_owned(), file_identity(path));
                Ok(Self { path, lock: Some(lock), identity })
            }
            Err(holder) => Err(TrainError::Refused(format!(
                "{}: another process trains here ({holder}); wait for it or choose another --out",
                path.shown()
            ))),
        }
    }

    /// The directory on a rank that is not 0, or of a dry run: never touched, and writes to it do nothing.
    pub(crate) fn unlocked(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None, identity: None }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or directory in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the directory that of run `run_id`, without what a killed process left half-written. A
    /// run that is not `trained` yet will publish another model: what was published before counts no
    /// more.
    pub(crate) fn claim(&self, run_id: &str, trained: bool) -> Result<(), TrainError> {
        // The lock is held, so none of the processes that the record names still writes.
        let mut record = RunRecord::read(&self.path).unwrap_or_default();
        leftovers::clean(&self.path, &record.writers, &WRITTEN)?;
        record.writers = vec![std::process::id()];
        run_id.clone_into(&mut record.run_id);
        if !trained {
            record.published = Published::default();
        }
        record.write(&self.path)
    }

    /// What the record says was published, as far as it is still there under its final name and whole: a
    /// model opens only where its files have all that their headers promise.
    pub(crate) fn published(&self) -> Published {
        let mut published = RunRecord::read(&self.path).unwrap_or_default().published;
        if !is_whole(&self.join(FINAL_DIR)) {
            published = Published::default();
        }
        published.exports.retain(|name| {
            let format = name.parse::<ExportFormat>();
            format.is_ok_and(|format| is_whole(&self.export_path(format)))
        });
        published
    }

    /// Notes what trains, and where.
    pub(crate) fn note_facts(&self, facts: RunFacts) -> Result<(), TrainError> {
        let record = RunRecord::read(&self.path).unwrap_or_default();
        RunRecord { facts: Some(facts), ..record }.write(&self.path)
    }

    /// Notes what has been published.
    pub(crate) fn note_published(&self, published: Published) -> Result<(), TrainError> {
        let record = RunRecord::read(&self.path).unwrap_or_default();
        RunRecord { published, ..record }.write(&self.path)
    }

    /// Whether somebody took the directory away, even if there is another of its name.
    pub(crate) fn has_vanished(&self) -> bool {
        self.lock.is_some() && (!self.path.is_dir() || file_identity(&self.path) != self.identity)
    }

    /// Refuses to write into a directory that is no longer ours.
    pub(crate) fn require(&self) -> Result<(), TrainError> {
        if !self.has_vanished() {
            return Ok(());
        }
        let what = format!("{}: is not where it was", self.path.shown());
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, what).into())
    }

    /// What an error means once the directory is gone.
    pub(crate) fn vanished(&self, error: TrainError) -> TrainError {
        TrainError::Vanished { dir: self.path.clone(), error: Box::new(error) }
    }

    /// Where an export goes.
    pub(crate) fn export_path(&self, format: ExportFormat) -> PathBuf {
        self.join(EXPORT_DIR).join(format.file_name())
    }

    /// Appends one line in one write, so that a kill tears at most the last one ([`RunDir::mend`]).
    pub(crate) fn append<S: Serialize>(&self, file: &str, record: &S) -> Result<(), TrainError> {
        self.append_line(file, &serde_json::to_string(record).expect("our own records serialise"))
    }

    /// Appends a line of text, in one write.
    pub(crate) fn append_line(&self, file: &str, line: &str) -> Result<(), TrainError> {
        if self.lock.is_none() {
            return Ok(());
        }
        self.require()?;
        let mut log = fs_err::OpenOptions::new().create(true).append(true).open(self.join(file))?;
        let length = log.metadata()?.len();
        // One write of a whole line: a kill can tear the last line only, which `mend` removes.
        let written = log.write_all(format!("{line}\n").as_bytes());
        // A full disk takes a part of a line, and the next one would be joined to it.
        if written.is_err() && log.metadata()?.len() > length {
            log.file().set_len(length)?;
        }
        Ok(written?)
    }

    /// Cuts a torn last line off a log, which is read from its end.
    pub(crate) fn mend(&self, file: &str) -> Result<(), TrainError> {
        let path = self.join(file);
        if !path.exists() {
            return Ok(());
        }
        if !path.is_file() {
            return Err(TrainError::Refused(format!("{}: is not a file", path.shown())));
        }
        let mut log = fs_err::OpenOptions::new().read(true).write(true).open(&path)?;
        let length = log.metadata()?.len();
        let whole = end_of_last_line(&mut log, length)?;
        if whole < length {
            log.file_mut().set_len(whole)?;
        }
        Ok(())
    }

    /// Whether somebody touched `SAVE_NOW`; the file is taken away.
    pub(crate) fn take_save_request(&self) -> bool {
        // To remove it is to ask: there is no moment at which a second touch could be lost.
        self.lock.is_some() && fs_err::remove_file(self.join(SAVE_NOW_FILE)).is_ok()
    }

    /// Removes all but the newest `keep` checkpoints of this run, and never one in `pinned`.
    pub(crate) fn prune(
        &self,
        run_id: &str,
        keep: usize,
        pinned: &[u64],
    ) -> Result<(), TrainError> {
        let mut ours: Vec<(u64, PathBuf)> = checkpoint::list(&self.path)?;
        // Checkpoints of other runs, copied here by hand, are neither counted nor removed.
        ours.retain(|(_, dir)| is_of_run(dir, run_id));
        let old = ours.len().saturating_sub(keep);
        for (step, dir) in ours.into_iter().take(old) {
            if !pinned.contains(&step) {
                retire(&dir)?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that verifies. Every one that does not is reported and left alone.
    ///
    /// # Errors
    /// When there are checkpoints and none verifies; when one verifies and is not of this run.
    pub(crate) fn newest_verified(
        &self,
        mut report: impl FnMut(&str),
    ) -> Result<Option<PathBuf>, TrainError> {
        // A dry run may ask before there is a directory.
        let found = if self.path.is_dir() { checkpoint::list(&self.path)? } else { Vec::new() };
        for (_, dir) in found.iter().rev() {
            match checkpoint::verify_files(dir) {
                // Files first, then what they say: a checkpoint that is whole and yet wrong is an
                // error, not a reason to fall back to an older one.
                Ok(()) => {
                    checkpoint::verify_step(dir)?;
                    self.refuse_stranger(dir)?;
                    return Ok(Some(dir.clone()));
                }
                Err(error) => {
                    report(&format!(
                        "{} does not verify: {error}; trying the one before",
                        dir.shown()
                    ));
                }
            }
        }
        if found.is_empty() {
            return Ok(None);
        }
        Err(TrainError::NothingVerifies { dir: self.path.clone() })
    }

    /// Refuses a checkpoint in this directory that another run made, and a checkpoint of another run
    /// anywhere while checkpoints of this one lie here.
    pub(crate) fn refuse_stranger(&self, dir: &Path) -> Result<(), TrainError> {
        let Some(record) = RunRecord::read(&self.path) else { return Ok(()) };
        if record.run_id.is_empty() || is_of_run(dir, &record.run_id) {
            return Ok(());
        }
        let inside = dir.parent().is_some_and(|parent| same_folder(parent, &self.path));
        if !inside && checkpoint::list(&self.path)?.is_empty() {
            return Ok(());
        }
        let (ours, here) = (&record.run_id, self.path.shown());
        let what = format!("belongs to another run than {here} ({ours}); move it away");
        Err(CheckpointError::Broken { path: dir.to_owned(), what }.into())
    }
}

/// The length of a log of `length` bytes without what follows its last line.
fn end_of_last_line(log: &mut (impl Read + Seek), length: u64) -> std::io::Result<u64> {
    // Piece by piece from the end: a log of gigabytes is not read for its last line.
    const PIECE: u64 = 1 << 16;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        let mut piece = vec![0; (end - start) as usize];
        log.seek(SeekFrom::Start(start))?;
        log.read_exact(&mut piece)?;
        if let Some(last) = piece.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Whether this is a model, or an adapter's folder, with all of its files.
fn is_whole(path: &Path) -> bool {
    if !path.join(ADAPTER_CONFIG_FILE).exists() {
        return StoredModel::open(path).is_ok();
    }
    TensorFile::open(&path.join(ADAPTER_MODEL_FILE)).is_ok()
}

fn same_folder(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|one| Some(one) == real(other))
}

/// Whether a run was ever started in this directory: its record is the first that a run writes, and
/// checkpoints may have been moved here without it.
pub(crate) fn holds_a_run(path: &Path) -> Result<bool, TrainError> {
    if !path.is_dir() {
        return Ok(false);
    }
    Ok(RunRecord::read(path).is_some() || !checkpoint::list(path)?.is_empty())
}

/// Refuses a directory that holds things and no run: some of them may be the user's. Log files do
/// not count, nor does what is in `known`. With `force` only what a run would overwrite counts.
pub(crate) fn refuse_others(path: &Path, known: &[String], force: bool) -> Result<(), TrainError> {
    if !path.is_dir() || holds_a_run(path)? {
        return Ok(());
    }
    for entry in fs_err::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let counts = if force { WRITTEN.contains(&&*name) } else { !is_harmless(&name) };
        if counts && !known.contains(&name) {
            let advice = if force {
                "which a run would overwrite; choose another --out"
            } else {
                "and no run of this program; choose another --out, or add --force to train here \
                 beside what there is (nothing is deleted)"
            };
            let what = format!("{}: holds {name:?} {advice}", path.shown());
            return Err(TrainError::Refused(what));
        }
    }
    Ok(())
}

/// Logs of this program's output, and what it leaves when killed at once.
fn is_harmless(name: &str) -> bool {
    let log = [".log", ".out", ".err"].iter().any(|ending| name.ends_with(ending));
    log || [LOCK_FILE, SAVE_NOW_FILE].contains(&name) || leftovers::is_unfinished_record(name)
}

fn is_of_run(dir: &Path, run_id: &str) -> bool {
    checkpoint::read_state::<Value>(dir).is_ok_and(|state| state["run_id"] == run_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_last_line_is_found_from_behind() {
        let long = "x".repeat(200_000);
        for (text, expected) in [
            (String::new(), 0),
            ("torn".to_owned(), 0),
            ("a\nb\n".to_owned(), 4),
            ("a\nto".to_owned(), 2),
            (format!("a\n{long}"), 2),
            (format!("{long}\n"), 200_001),
        ] {
            let mut log = std::io::Cursor::new(&text);
            assert_eq!(end_of_last_line(&mut log, text.len() as u64).unwrap(), expected);
        }
    }

    #[test]
    fn a_directory_with_other_things_is_refused_and_with_force_used_beside_them() {
        let root = tempfile::tempdir().unwrap();
        let refused = |force| refuse_others(root.path(), &["1-base".to_owned()], force);
        for name in ["train.log", "nohup.out", "run.lock", "1-base"] {
            fs_err::write(root.path().join(name), "").unwrap();
            refused(false).unwrap();
        }
        fs_err::write(root.path().join("thesis.tmp-1"), "").unwrap();
        assert!(refused(false).unwrap_err().to_string().contains("thesis.tmp-1"));
        refused(true).unwrap();
        fs_err::create_dir(root.path().join("final")).unwrap();
        assert!(refused(true).unwrap_err().to_string().contains("final"));
        // Anybody's log may have the name of ours.
        fs_err::write(root.path().join(METRICS_FILE), "{}").unwrap();
        assert!(!holds_a_run(root.path()).unwrap());
        RunRecord::default().write(root.path()).unwrap();
        refused(false).unwrap();
    }
}
