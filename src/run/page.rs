//! The page of a run, written when it ends. What cannot be written costs the run nothing.

use bitnet_format::Shown;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_report::RunFolder;

use super::Summary;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::run_dir::{METRICS_FILE, PAGE_FILE, RunDir};

/// Whether there is something to show: the run is at its end, or was stopped with its state saved.
pub(super) fn is_due(made: &Result<Summary, TrainError>) -> bool {
    matches!(made, Ok(_) | Err(TrainError::Stopped(_)))
}

/// Writes the page, or says why it could not be.
pub(super) fn write(dir: &RunDir, monitor: &mut dyn Monitor) {
    if dir.has_vanished() {
        return;
    }
    // A stop before the first step leaves nothing to show.
    if !dir.join(METRICS_FILE).exists() {
        return;
    }
    let path = dir.join(PAGE_FILE);
    let page = RunFolder::open(dir.path()).map(|run| bitnet_report::page(&[run]));
    let written = match page {
        Ok(page) => write_file(&path, page.as_bytes(), OnExisting::Replace)
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match written {
        Ok(()) => monitor.detail(&format!("{}: the page of this run", path.shown())),
        Err(error) => monitor.message(&format!("{error}; the run has no page")),
    }
}
