//! Models and data sets of the Hugging Face hub, brought into the standard cache (`blobs`,
//! `snapshots`, `refs`), which other tools share: `model.init = "hf:owner/name[@revision]"` and
//! data named `hf-dataset:owner/name[@revision][:config][/split]`.
//!
//! What is in the cache, complete, is used without any request, so that a run and its continuation
//! see the same weights and rows. What is missing is downloaded by `hf-hub`
//! on a thread of its own; this module decides what is needed, checks every name before it becomes
//! a path, and handles what `hf-hub` leaves open (a token in the environment, a complete but
//! unnamed download, retries, a file's size, interruption, several processes).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::data::FileLock;
pub use address::{HubDataset, HubKind, HubRepository};
use dataset::{cached_files, download_files};
use download::Event;
pub use error::HubError;
use model::{cached_model, download_model};
use request::Request;
pub use settings::HubSettings;

mod address;
mod choice;
mod dataset;
mod download;
mod error;
mod model;
mod name_patterns;
mod readme;
mod request;
mod settings;

/// How long an interruption may go unnoticed.
const TICK: Duration = Duration::from_millis(100);

/// Who waits for files of the hub.
#[derive(Clone, Copy)]
pub struct HubCaller<'a> {
    /// Polled, also while the network is silent; the current file is then left to its thread until
    /// the process ends, and the next call resumes it.
    pub interrupted: &'a dyn Fn() -> bool,
    /// Receives the file, the bytes that are here and its whole length.
    pub progress: &'a dyn Fn(&str, u64, u64),
}

impl HubSettings {
    /// The local snapshot folder of `model`: `config.json`, the weights (`model.safetensors`, or
    /// its index and shards), `tokenizer.json`, and `tokenizer_config.json` where the repository
    /// has one.
    pub fn model(&self, model: &HubRepository, caller: HubCaller<'_>) -> Result<PathBuf, HubError> {
        self.bring(model, caller, || Ok(cached_model(self, model)), download_model)
    }

    /// The local files of `dataset`, in order: those that the `datasets` library would choose.
    pub fn dataset(
        &self,
        dataset: &HubDataset,
        caller: HubCaller<'_>,
    ) -> Result<Vec<PathBuf>, HubError> {
        let named = dataset.clone();
        let download = move |request: Request, events| download_files(&request, &named, &events);
        self.bring(&dataset.repository, caller, || cached_files(self, dataset), download)
    }

    /// What is in the cache, or else what a thread brings there.
    fn bring<T: Send + 'static>(
        &self,
        repository: &HubRepository,
        caller: HubCaller<'_>,
        cached: impl Fn() -> Result<Option<T>, HubError>,
        download: impl FnOnce(Request, Sender<Event>) -> Result<T, HubError> + Send + 'static,
    ) -> Result<T, HubError> {
        if let Some(found) = cached()? {
            return Ok(found);
        }
        if self.offline {
            return Err(self.unreachable(repository, "HF_HUB_OFFLINE is set"));
        }
        let _lock = self.lock(repository, caller)?;
        // Once more under the lock: another process, such as a rank beside this one, may have
        // brought it.
        if let Some(found) = cached()? {
            return Ok(found);
        }
        let (events, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (settings, flag) = (self.clone(), Arc::clone(&stop));
        let request = Request { settings, repository: repository.clone(), stop: flag };
        let worker = thread::Builder::new()
            .name("hub".to_owned())
            .spawn(move || download(request, events))
            .map_err(|source| HubError::Io { repository: repository.clone(), source })?;
        if watch(&received, caller) {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        } else {
            // Not joined: the thread may sit in a read that no flag can end.
            stop.store(true, Ordering::Relaxed);
            Err(HubError::Interrupted { repository: repository.clone() })
        }
    }

    /// Waits until no other process brings files of this repository.
    fn lock(
        &self,
        repository: &HubRepository,
        caller: HubCaller<'_>,
    ) -> Result<FileLock, HubError> {
        let name = repository.at(&repository.revision).folder_name();
        // Where `huggingface_hub` has its locks too.
        let folder = self.cache.join(".locks").join(name);
        let lock = fs_err::create_dir_all(&folder)
            .and_then(|()| FileLock::exclusive(&folder.join("download.lock"), caller.interrupted));
        let lock =
            lock.map_err(|source| HubError::Io { repository: repository.clone(), source })?;
        lock.ok_or_else(|| HubError::Interrupted { repository: repository.clone() })
    }
}

/// Passes progress on until the worker ends (true) or the user wants it to (false).
fn watch(events: &Receiver<Event>, caller: HubCaller<'_>) -> bool {
    while !(caller.interrupted)() {
        match events.recv_timeout(TICK) {
            Ok(event) => (caller.progress)(&event.file, event.done, event.total),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
    false
}
