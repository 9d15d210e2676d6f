//! Lines of a run's logs that wait in memory while the disk is full.
//!
//! Training goes on without them: they are written, in order, as soon as there is room, and until
//! then every checkpoint carries them, so that a resumed run finds whole logs.

use std::collections::{HashSet, VecDeque};
use std::io::{BufRead, BufReader};

use fs_err::File;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::run_dir::RunDir;

/// What may wait, in bytes: some thirty thousand steps.
const MOST_BYTES: usize = 8 << 20;

/// A line that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LogLine {
    /// The log, by its name in the run directory.
    file: String,
    text: String,
}

/// The outcome of an attempt to write the lines that wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// Nothing waits, and nothing did.
    Written,
    /// This many lines had waited and are written now.
    Caught(usize),
    /// The disk is full since now, with this error.
    Full(String),
    /// It is still full.
    StillFull,
}

/// The lines that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct WaitingLines {
    lines: VecDeque<LogLine>,
    bytes: usize,
    full: bool,
}

impl WaitingLines {
    /// Writes a line after those that wait.
    ///
    /// # Errors
    /// Every error of the disk but that it is full.
    pub(super) fn append(
        &mut self,
        dir: &RunDir,
        file: &str,
        text: String,
    ) -> Result<Attempt, TrainError> {
        self.bytes += text.len();
        // Every line takes the queue, also when nothing waits: lines never overtake each other.
        self.lines.push_back(LogLine { file: file.to_owned(), text });
        let waited = self.lines.len() - 1;
        match self.write(dir) {
            Ok(()) if std::mem::take(&mut self.full) => Ok(Attempt::Caught(waited)),
            Ok(()) => Ok(Attempt::Written),
            Err(error) if !error.is_full_disk() => Err(error),
            Err(_) if self.full => Ok(Attempt::StillFull),
            Err(error) => {
                self.full = true;
                Ok(Attempt::Full(error.to_string()))
            }
        }
    }

    /// Writes all that waits.
    ///
    /// # Errors
    /// When the disk refuses a line; that one and those after it wait on.
    pub(super) fn write(&mut self, dir: &RunDir) -> Result<(), TrainError> {
        while let Some(line) = self.lines.front() {
            dir.append_line(&line.file, &line.text)?;
            self.bytes -= line.text.len();
            self.lines.pop_front();
        }
        Ok(())
    }

    /// Ends a run for which no more lines can wait.
    ///
    /// # Errors
    /// When too much waits and the disk is still full.
    pub(super) fn require_bound(&mut self, dir: &RunDir) -> Result<(), TrainError> {
        if self.bytes > MOST_BYTES { self.write(dir) } else { Ok(()) }
    }

    /// A copy for a checkpoint.
    pub(super) fn lines(&self) -> Vec<LogLine> {
        self.lines.iter().cloned().collect()
    }
}

/// Writes the lines that a checkpoint carries and a log lacks.
pub(crate) fn write_missing(dir: &RunDir, carried: &[LogLine]) -> Result<(), TrainError> {
    let mut written = HashSet::new();
    for file in carried.iter().map(|line| &line.file).collect::<HashSet<_>>() {
        let path = dir.join(file);
        if path.exists() {
            for line in BufReader::new(File::open(path)?).split(b'\n') {
                written.insert((file, line?));
            }
        }
    }
    // Compared by their text: the process may have written some of them after the checkpoint was
    // made.
    let lacks = |line: &&LogLine| !written.contains(&(&line.file, line.text.clone().into_bytes()));
    carried.iter().filter(lacks).try_for_each(|line| dir.append_line(&line.file, &line.text))
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "metrics.jsonl";

    /// A run directory whose log has no room.
    fn full() -> (tempfile::TempDir, RunDir) {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::open(root.path(), false).unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.join(LOG)).unwrap();
        (root, dir)
    }

    fn log(dir: &RunDir) -> String {
        fs_err::read_to_string(dir.join(LOG)).unwrap()
    }

    #[test]
    fn lines_wait_for_room_and_are_written_in_order() {
        let (_root, dir) = full();
        let mut waiting = WaitingLines::default();
        let mut append = |text: &str| waiting.append(&dir, LOG, text.to_owned()).unwrap();
        assert!(matches!(append("one"), Attempt::Full(why) if why.contains(LOG)));
        assert_eq!(append("two"), Attempt::StillFull);
        fs_err::remove_file(dir.join(LOG)).unwrap();
        assert_eq!(append("three"), Attempt::Caught(2));
        assert_eq!(append("four"), Attempt::Written);
        assert_eq!(log(&dir), "one\ntwo\nthree\nfour\n");
        assert!(waiting.lines().is_empty() && waiting.bytes == 0);
    }

    #[test]
    fn what_waits_is_bounded_and_other_errors_end_at_once() {
        let (_root, dir) = full();
        let mut waiting = WaitingLines::default();
        waiting.append(&dir, LOG, "a line".to_owned()).unwrap();
        waiting.require_bound(&dir).unwrap();
        waiting.append(&dir, LOG, "x".repeat(MOST_BYTES)).unwrap();
        assert!(waiting.require_bound(&dir).unwrap_err().is_full_disk());
        fs_err::remove_file(dir.join(LOG)).unwrap();
        fs_err::create_dir(dir.join(LOG)).unwrap();
        let refused = waiting.append(&dir, LOG, "one more".to_owned()).unwrap_err();
        assert!(!refused.is_full_disk(), "{refused}");
    }

    #[test]
    fn a_log_gets_the_lines_of_a_checkpoint_that_it_lacks() {
        let (_root, dir) = full();
        let mut waiting = WaitingLines::default();
        for text in ["one", "two", "three"] {
            waiting.append(&dir, LOG, text.to_owned()).unwrap();
        }
        fs_err::remove_file(dir.join(LOG)).unwrap();
        fs_err::write(dir.join(LOG), "zero\none\n").unwrap();
        write_missing(&dir, &waiting.lines()).unwrap();
        write_missing(&dir, &waiting.lines()).unwrap();
        assert_eq!(log(&dir), "zero\none\ntwo\nthree\n");
    }
}
