//! A bug in this program: one line on stderr, and `crash.json` where the run is, or among the temporary
//! files.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use bitnet_format::crash::CrashedProgram;
use serde_json::{Value, json};

/// The exit code of a bug.
pub(crate) const INTERNAL: u8 = 1;

const PROGRAM: CrashedProgram = CrashedProgram {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
    repository: env!("CARGO_PKG_REPOSITORY"),
};

/// The run directory that this process writes in.
static RUN_DIR: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Notes where this process writes.
pub(crate) fn note_run_dir(path: &Path) {
    *RUN_DIR.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
}

/// Reports a panic that nothing caught.
pub(crate) fn report() -> ExitCode {
    let run_dir = RUN_DIR.lock().unwrap_or_else(PoisonError::into_inner).take();
    let step = run_dir.as_deref().and_then(last_step);
    let line = PROGRAM.report(run_dir.as_deref(), &json!({"last_step": step}));
    bitnet_terminal::report(&line, INTERNAL);
    ExitCode::from(INTERNAL)
}

/// The last step in the log of a run.
fn last_step(run_dir: &Path) -> Option<u64> {
    const TAIL: u64 = 1 << 16;
    let mut log = fs_err::File::open(run_dir.join("metrics.jsonl")).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    log.take(TAIL).read_to_end(&mut text).ok()?;
    let step = |line: &str| serde_json::from_str::<Value>(line).ok()?["step"].as_u64();
    String::from_utf8_lossy(&text).lines().rev().find_map(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_step_of_the_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_step(dir.path()), None);
        let log = "{\"step\":1}\n{\"step\":2,\"loss\":1.5}\n{\"event\":\"resume\"}\n{\"st";
        fs_err::write(dir.path().join("metrics.jsonl"), log).unwrap();
        assert_eq!(last_step(dir.path()), Some(2));
    }
}
