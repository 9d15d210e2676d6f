//! Whether a run goes on, from what its directory holds. Its lock is looked at and never taken: a
//! reader must not keep a trainer out.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bitnet_format::process::{host_name, started_at};
use serde::Serialize;
use serde_json::Value;

/// A log that was written to more recently belongs to a process that lives, on a machine where that
/// cannot be asked.
const FRESH: Duration = Duration::from_mins(2);

/// What a trainer writes at every step.
const LOG: &str = "metrics.jsonl";

/// Seconds by which the start of a process, which is rounded, may seem to be late.
const CLOCK_SLACK: u64 = 2;

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// A process trains.
    Running,
    /// The last step was made and the model published.
    Finished,
    /// It can be continued.
    Stopped,
    /// It ended with a bug.
    Crashed,
    /// No step was made.
    Empty,
}

impl RunState {
    pub(crate) fn of(dir: &Path, record: &Value, step: u64) -> Self {
        // Before the lock: it stays behind as a file, and its number may belong to another process
        // by now. A run that is made longer takes `published` out of its record when it starts.
        if record["published"]["of"].is_array() && dir.join("final").is_dir() {
            return Self::Finished;
        }
        if is_held(dir) {
            return Self::Running;
        }
        match step {
            // Also where no step was made: the bug may have come before the first.
            _ if dir.join("crash.json").is_file() => Self::Crashed,
            0 => Self::Empty,
            _ => Self::Stopped,
        }
    }

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Empty => "empty",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// Whether the process that signed the lock lives. The lock itself is not tried, not even for a
/// moment: a trainer that starts then would be told that another one trains here.
fn is_held(dir: &Path) -> bool {
    let Ok(text) = fs_err::read_to_string(dir.join("run.lock")) else { return false };
    let Ok(holder) = serde_json::from_str::<Value>(&text) else { return false };
    let (pid, host) = (holder["pid"].as_u64(), holder["host"].as_str());
    let processes = Path::new("/proc/self");
    match pid {
        // Numbers of processes mean something on their own machine only. Elsewhere, on a shared
        // disk or a system without /proc, the log is asked instead.
        Some(pid) if host == host_name().as_deref() && processes.exists() => {
            let lives = Path::new("/proc").join(pid.to_string()).exists();
            // A clock that was set after the lock was taken makes its own process look younger;
            // but that one writes to the log.
            lives && (!is_younger(pid, &holder["since"]) || is_fresh(&dir.join(LOG)))
        }
        _ => is_fresh(&dir.join(LOG)),
    }
}

/// Whether a process began after the lock was signed: then it is another one that got the number
/// of a process that is gone. The file stays after a run, and the system gives numbers again.
fn is_younger(pid: u64, signed: &Value) -> bool {
    let times = started_at(pid).zip(signed.as_u64());
    times.is_some_and(|(started, signed)| started > signed + CLOCK_SLACK)
}

fn is_fresh(path: &Path) -> bool {
    let written = fs_err::metadata(path).and_then(|meta| meta.modified());
    written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_run_is_running_while_the_process_of_its_lock_lives() {
        let dir = tempfile::tempdir().unwrap();
        let state = |step| RunState::of(dir.path(), &Value::Null, step);
        assert_eq!((state(0), state(5)), (RunState::Empty, RunState::Stopped));
        let lock = |pid: u32, since: u64| {
            let holder = serde_json::json!({"pid": pid, "host": host_name(), "since": since});
            fs_err::write(dir.path().join("run.lock"), holder.to_string()).unwrap();
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        lock(std::process::id(), now);
        assert_eq!(state(5), RunState::Running);
        if cfg!(target_os = "linux") {
            // Above the largest number of a process.
            lock(1 << 30, now);
            assert_eq!(state(5), RunState::Stopped);
            // A process that began after the lock was signed has the number of one that is gone.
            lock(std::process::id(), 1);
            assert_eq!(state(5), RunState::Stopped);
            fs_err::write(dir.path().join(LOG), "{}").unwrap();
            assert_eq!(state(5), RunState::Running);
            fs_err::remove_file(dir.path().join(LOG)).unwrap();
        }
        fs_err::remove_file(dir.path().join("run.lock")).unwrap();
        fs_err::write(dir.path().join("crash.json"), "{}").unwrap();
        assert_eq!(state(5), RunState::Crashed);
        fs_err::create_dir(dir.path().join("final")).unwrap();
        let record = serde_json::json!({"published": {"of": ["a", 5]}});
        assert_eq!(RunState::of(dir.path(), &record, 5), RunState::Finished);
    }
}
