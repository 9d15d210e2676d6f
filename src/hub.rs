//! `model.init = "hf:owner/name[@revision]"`: a model of the Hugging Face hub, brought into the
//! standard cache (`blobs`, `snapshots`, `refs`), which other tools share.
//!
//! A complete model in the cache is used without any request, so that a run and its continuation
//! see the same weights. What is missing is downloaded by `hf-hub`
//! on a thread of its own; this module decides what is needed, checks every name before it becomes
//! a path, and handles what `hf-hub` leaves open (a token in the environment, a complete but
//! unnamed download, retries, a file's size, interruption).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

pub use address::HubModel;
use download::{Event, download_model};
pub use error::HubError;
use request::Request;
pub use settings::HubSettings;
use snapshot::cached;

mod address;
mod download;
mod error;
mod request;
mod settings;
mod snapshot;

/// How long an interruption may go unnoticed.
const TICK: Duration = Duration::from_millis(100);

/// The local snapshot folder of `model`: `config.json`, the weights (`model.safetensors`, or its
/// index and shards), `tokenizer.json`, and `tokenizer_config.json` where the repository has one.
///
/// `progress` receives the file, the bytes that are here and its whole length. `interrupted` is
/// polled, also while the network is silent; the current file is then left to its thread until the
/// process ends, and the next call resumes it.
pub fn fetch(
    model: &HubModel,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<PathBuf, HubError> {
    fetch_with(&HubSettings::from_env()?, model, interrupted, progress)
}

/// [`fetch`], from a given hub into a given cache.
pub fn fetch_with(
    settings: &HubSettings,
    model: &HubModel,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<PathBuf, HubError> {
    if let Some(snapshot) = cached(settings, model) {
        return Ok(snapshot);
    }
    if settings.offline {
        return Err(settings.unreachable(model, "HF_HUB_OFFLINE is set"));
    }
    let (events, received) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let request =
        Request { settings: settings.clone(), model: model.clone(), stop: Arc::clone(&stop) };
    let worker = thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || download_model(request, events))
        .map_err(|source| HubError::Io { model: model.clone(), source })?;
    if watch(&received, interrupted, progress) {
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    } else {
        // Not joined: the thread may sit in a read that no flag can end.
        stop.store(true, Ordering::Relaxed);
        Err(HubError::Interrupted { model: model.clone() })
    }
}

/// Passes progress on until the worker ends (true) or the user wants it to (false).
fn watch(
    events: &Receiver<Event>,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> bool {
    while !interrupted() {
        match events.recv_timeout(TICK) {
            Ok(event) => progress(&event.file, event.done, event.total),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
    false
}
