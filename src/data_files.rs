//! The files of data that a pattern names: here already, or of a data set of the hub; and bringing
//! whatever is named from there.

use std::path::PathBuf;

use crate::error::TrainError;
#[cfg(feature = "hub")]
use crate::hub::{HubCaller, HubDataset, HubError, HubSettings};
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
        let dataset = HubDataset::parse(pattern.as_str()).expect("the name begins so");
        let dataset = dataset.map_err(|what| wrong(pattern, key, what))?;
        self.bring(|settings, caller| settings.dataset(&dataset, caller))
    }

    /// What `ask` has the hub send, with progress and until a signal.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] where a signal ended the download.
    #[cfg(feature = "hub")]
    pub(crate) fn bring<T>(
        &mut self,
        ask: impl FnOnce(&HubSettings, HubCaller<'_>) -> Result<T, HubError>,
    ) -> Result<T, TrainError> {
        let monitor = std::cell::RefCell::new(&mut *self.monitor);
        let progress = |file: &str, done, total| {
            monitor.borrow_mut().progress(&format!("downloading {file}"), done, total);
        };
        let interrupted = || self.signals.stop().is_some();
        let caller = HubCaller { interrupted: &interrupted, progress: &progress };
        let brought = ask(&HubSettings::from_env()?, caller);
        brought.map_err(|error| match self.signals.stop() {
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
