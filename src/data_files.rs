//! The files of data that a pattern names: here already, or of a data set of the hub.

use std::path::PathBuf;

use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::Signals;
use crate::recipe::{PathPattern, RecipeError};

/// Who reads files of data.
pub struct DataCaller<'a> {
    /// End a download.
    pub signals: &'a Signals,
    /// Sees its progress.
    pub monitor: &'a mut dyn Monitor,
}

impl DataCaller<'_> {
    /// The files of `pattern`, at least one. `key` is the recipe's key, or the flag, for a message.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] where a signal ended a download.
    pub fn files(&mut self, pattern: &PathPattern, key: &str) -> Result<Vec<PathBuf>, TrainError> {
        if pattern.is_on_hub() { self.fetch(pattern, key) } else { Ok(pattern.expand(key)?) }
    }

    #[cfg(feature = "hub")]
    fn fetch(&mut self, pattern: &PathPattern, key: &str) -> Result<Vec<PathBuf>, TrainError> {
        use crate::hub::{HubCaller, HubDataset, HubSettings};
        let dataset = HubDataset::parse(pattern.as_str()).expect("the name begins so");
        let dataset = dataset.map_err(|what| wrong(pattern, key, what))?;
        let monitor = std::cell::RefCell::new(&mut *self.monitor);
        let progress = |file: &str, done, total| {
            monitor.borrow_mut().progress(&format!("downloading {file}"), done, total);
        };
        let interrupted = || self.signals.stop().is_some();
        let caller = HubCaller { interrupted: &interrupted, progress: &progress };
        let files = HubSettings::from_env()?.dataset(&dataset, caller);
        files.map_err(|error| match self.signals.stop() {
            Some(stop) => TrainError::Stopped(stop),
            None => error.into(),
        })
    }

    #[cfg(not(feature = "hub"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn fetch(&mut self, pattern: &PathPattern, key: &str) -> Result<Vec<PathBuf>, TrainError> {
        let what = "needs a build with the feature hub (cargo build --release --features hub); \
                    expected local files in this build"
            .to_owned();
        Err(wrong(pattern, key, what))
    }
}

fn wrong(pattern: &PathPattern, key: &str, what: String) -> TrainError {
    let (name, key) = (pattern.to_string(), key.to_owned());
    RecipeError::Dataset { key, name, what }.into()
}
