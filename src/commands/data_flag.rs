//! The files that a flag such as `--data` names.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_train::data_files::DataCaller;
use bitnet_train::monitor::{Terminal, Verbosity};
use bitnet_train::platform::Signals;
use bitnet_train::recipe::PathPattern;
use bitnet_train::train::TrainError;

use crate::failure::Usage;

/// Files, with the globs, folders and data sets of the hub that name them.
pub(crate) fn expanded(words: &[String], flag: &str, signals: &Signals) -> Result<Vec<PathBuf>> {
    let monitor = &mut Terminal::new(Verbosity::Normal);
    let mut caller = DataCaller { signals, monitor };
    let mut files = Vec::new();
    for word in words {
        let pattern = PathPattern::new(&std::env::current_dir()?, word);
        let bad = |reason| Usage(format!("{flag}: bad pattern {word:?}: {reason}"));
        // A file whose name holds a wildcard is that file.
        if Path::new(word).is_file() {
            files.push(PathBuf::from(word));
        } else {
            let found = caller.files(&pattern.map_err(bad)?, flag);
            // Nothing is written yet, and nothing is there to be resumed.
            files.extend(found.map_err(|e| signals.stop().map_or(e, TrainError::ExportStopped))?);
        }
    }
    Ok(files)
}
