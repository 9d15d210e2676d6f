//! One process at a time: an advisory lock on a file that also says who holds it.
//!
//! The lock is the operating system's (`flock` on Unix, `LockFileEx` on Windows, both through the
//! standard library) and vanishes with the process, so a file left by a killed one needs no
//! clearing. Some network file systems do not lock across machines, or not at all; the latter is
//! an error here. What is protected by a lock is for others to say.

use bitnet_format::Shown;
use std::fmt;
use std::fs::TryLockError;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err::{File, OpenOptions};
use serde::{Deserialize, Serialize};

use bitnet_format::process::host_name;

/// How often a taken lock is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A held lock; dropping it lets the next one in. The file stays.
#[derive(Debug)]
pub struct FileLock {
    /// The lock belongs to the open file.
    _file: File,
}

/// Who holds a lock, as far as the file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder(Option<Identity>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: u32,
    host: String,
    /// Seconds since 1970.
    since: u64,
}

impl FileLock {
    /// Takes the lock, or tells who has it.
    pub fn try_exclusive(path: &Path) -> io::Result<Result<Self, LockHolder>> {
        let mut file =
            // Not truncated: the file may be somebody's who holds the lock, and says who.
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.file().try_lock() {
            Ok(()) => {
                sign(&mut file)?;
                Ok(Ok(Self { _file: file }))
            }
            Err(TryLockError::WouldBlock) => Ok(Err(LockHolder::read(&mut file))),
            Err(TryLockError::Error(error)) => {
                Err(io::Error::new(error.kind(), format!("{}: cannot lock: {error}", path.shown())))
            }
        }
    }

    /// Waits for the lock; `None` when `interrupted` says to give up.
    pub fn exclusive(path: &Path, interrupted: &dyn Fn() -> bool) -> io::Result<Option<Self>> {
        while !interrupted() {
            if let Ok(lock) = Self::try_exclusive(path)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(RETRY);
        }
        Ok(None)
    }
}

impl LockHolder {
    /// The holder may be about to sign, so what cannot be read is not an error.
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        let read = file.read_to_string(&mut text);
        Self(read.ok().and_then(|_| serde_json::from_str(&text).ok()))
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Identity { pid, host, since }) = &self.0 else {
            return write!(out, "a process that has not signed");
        };
        let minutes = seconds_now().saturating_sub(*since) / 60;
        write!(out, "process {pid} on {host}, for {minutes} min")
    }
}

fn sign(file: &mut File) -> io::Result<()> {
    let identity = Identity {
        pid: std::process::id(),
        host: host_name().unwrap_or_else(|| "this machine".to_owned()),
        since: seconds_now(),
    };
    let mut line = serde_json::to_vec(&identity).expect("plain fields become JSON");
    line.push(b'\n');
    // Only now, under the lock: what an earlier holder wrote may be longer.
    file.set_len(0)?;
    file.write_all(&line)?;
    file.flush()
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_second_taker_learns_who_holds_the_lock_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.lock");
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        let holder = FileLock::try_exclusive(&path).unwrap().unwrap_err().to_string();
        assert!(holder.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        assert!(holder.ends_with(", for 0 min"), "{holder}");
        drop(held);
        assert!(FileLock::try_exclusive(&path).unwrap().is_ok());
    }

    #[test]
    fn a_file_left_by_a_dead_process_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.lock");
        fs_err::write(&path, "{\"pid\":1,\"host\":\"gone\",\"since\":0} and much more text")
            .unwrap();
        let _held = FileLock::try_exclusive(&path).unwrap().unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.ends_with("}\n") && !text.contains("gone"), "{text}");
    }

    #[test]
    fn an_unsigned_lock_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.lock");
        let _held = FileLock::try_exclusive(&path).unwrap().unwrap();
        fs_err::write(&path, "").unwrap();
        let holder = FileLock::try_exclusive(&path).unwrap().unwrap_err();
        assert_eq!(holder.to_string(), "a process that has not signed");
    }

    #[test]
    fn waiting_ends_when_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.lock");
        let _held = FileLock::try_exclusive(&path).unwrap().unwrap();
        let polls = AtomicUsize::new(0);
        let interrupted = || polls.fetch_add(1, Ordering::Relaxed) == 2;
        assert!(FileLock::exclusive(&path, &interrupted).unwrap().is_none());
    }

    #[test]
    fn a_lock_that_cannot_be_made_names_its_path() {
        let error = FileLock::try_exclusive(Path::new("/no/such/run.lock")).unwrap_err();
        assert!(error.to_string().contains("/no/such/run.lock"), "{error}");
    }
}
