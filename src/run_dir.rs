//! The run directory: one writer, an append-only log, checkpoints that are found and pruned.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_format::staged::retire;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint;
use crate::data::FileLock;
use crate::error::TrainError;

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
/// `TensorBoard`'s event files.
pub(crate) const EVENTS_DIR: &str = "tensorboard";
/// Touch this file to have a checkpoint made.
const SAVE_NOW_FILE: &str = "SAVE_NOW";

/// An open run directory, locked against other processes while this value lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: Option<FileLock>,
}

impl RunDir {
    /// Creates the directory where needed and takes its lock.
    ///
    /// # Errors
    /// When another process holds it.
    pub(crate) fn open(path: &Path) -> Result<Self, TrainError> {
        fs_err::create_dir_all(path)?;
        match FileLock::try_exclusive(&path.join("run.lock"))? {
            Ok(lock) => Ok(Self { path: path.to_owned(), lock: Some(lock) }),
            Err(holder) => Err(TrainError::Refused(format!(
                "{}: another process trains here ({holder}); wait for it or choose another --out",
                path.display()
            ))),
        }
    }

    /// The directory on a rank that is not 0: never touched, and writes to it do nothing.
    pub(crate) fn of_rank_0(path: &Path) -> Self {
        Self { path: path.to_owned(), lock: None }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or directory in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes what a killed process left half-written.
    pub(crate) fn remove_leftovers(&self) -> Result<(), TrainError> {
        for entry in fs_err::read_dir(&self.path)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().contains(".tmp-") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs_err::remove_dir_all(entry.path())?;
            } else {
                fs_err::remove_file(entry.path())?;
            }
        }
        Ok(())
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
        let mut log = fs_err::OpenOptions::new().create(true).append(true).open(self.join(file))?;
        Ok(log.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Cuts a torn last line off a log.
    pub(crate) fn mend(&self, file: &str) -> Result<(), TrainError> {
        let path = self.join(file);
        if !path.exists() {
            return Ok(());
        }
        let bytes = fs_err::read(&path)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            let mut log = fs_err::OpenOptions::new().write(true).open(&path)?;
            log.file_mut().set_len(whole as u64)?;
            log.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    /// Whether somebody touched `SAVE_NOW`; the file is taken away.
    pub(crate) fn take_save_request(&self) -> bool {
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
    /// When there are checkpoints and none verifies.
    pub(crate) fn newest_verified(
        &self,
        mut report: impl FnMut(&str),
    ) -> Result<Option<PathBuf>, TrainError> {
        let found = checkpoint::list(&self.path)?;
        for (_, dir) in found.iter().rev() {
            match checkpoint::verify(dir) {
                Ok(()) => return Ok(Some(dir.clone())),
                Err(error) => {
                    report(&format!(
                        "{} does not verify: {error}; trying the one before",
                        dir.display()
                    ));
                }
            }
        }
        if found.is_empty() {
            return Ok(None);
        }
        Err(TrainError::NothingVerifies { dir: self.path.clone() })
    }
}

/// Whether a run was ever started in this directory.
pub(crate) fn holds_a_run(path: &Path) -> Result<bool, TrainError> {
    let started = [METRICS_FILE, FINAL_DIR].iter().any(|name| path.join(name).exists());
    Ok(started || !checkpoint::list(path)?.is_empty())
}

fn is_of_run(dir: &Path, run_id: &str) -> bool {
    checkpoint::read_state::<Value>(dir).is_ok_and(|state| state["run_id"] == run_id)
}
