//! One request to the hub: how often it is tried, and what its failures mean.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};

use super::address::{HubRepository, is_plain};
use super::error::HubError;
use super::settings::HubSettings;

/// How often one file is tried before its download is given up.
const ATTEMPTS: u32 = 4;

/// What the worker downloads.
pub(super) struct Request {
    pub(super) settings: HubSettings,
    pub(super) repository: HubRepository,
    pub(super) stop: Arc<AtomicBool>,
}

pub(super) fn open(request: &Request) -> Result<Api, HubError> {
    ApiBuilder::from_cache(Cache::new(request.settings.cache.clone()))
        .with_endpoint(request.settings.endpoint.clone())
        .with_token(request.settings.token.clone())
        .with_progress(false)
        // Its own retries forget how much of a continued file is there.
        .with_retries(0)
        .build()
        .map_err(|error| request.explain("the first file", error))
}

pub(super) fn metadata(
    request: &Request,
    api: &Api,
    repo: &ApiRepo,
    file: &str,
) -> Result<Metadata, HubError> {
    api.metadata(&repo.url(file)).map_err(|error| request.explain(file, error))
}

/// What a missing first file means.
pub(super) fn no_repository(error: HubError) -> HubError {
    match error {
        HubError::NoFile { repository, .. } => HubError::NoRepository { repository },
        error => error,
    }
}

impl Request {
    /// `work`, again when the network failed in it.
    pub(super) fn retried<T>(&self, work: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
        for attempt in 1..ATTEMPTS {
            self.check_stop()?;
            match work() {
                // The pause grows with every attempt. Other errors would only come again.
                Err(HubError::Broken { .. }) => thread::sleep(self.settings.pause * attempt),
                result => return result,
            }
        }
        work()
    }

    fn check_stop(&self) -> Result<(), HubError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(HubError::Interrupted { repository: self.repository.clone() });
        }
        Ok(())
    }

    /// What the hub says becomes part of a path only if it is one plain name.
    pub(super) fn check_plain(
        &self,
        file: &str,
        header: &str,
        value: &str,
    ) -> Result<(), HubError> {
        if is_plain(value) {
            return Ok(());
        }
        Err(self.answer(file, format!("{header} is {value:?}")))
    }

    pub(super) fn io(&self, source: io::Error) -> HubError {
        HubError::Io { repository: self.repository.clone(), source }
    }

    pub(super) fn answer(&self, file: &str, reason: String) -> HubError {
        HubError::Answer { repository: self.repository.clone(), file: file.to_owned(), reason }
    }

    fn broken(&self, file: &str, reason: impl fmt::Display) -> HubError {
        let reason = reason.to_string();
        HubError::Broken { repository: self.repository.clone(), file: file.to_owned(), reason }
    }

    pub(super) fn explain(&self, file: &str, error: ApiError) -> HubError {
        match error {
            ApiError::RequestError(error) => self.explain_request(file, *error),
            ApiError::IoError(error) if is_network(&error) => self.broken(file, error),
            ApiError::IoError(source) => self.io(source),
            ApiError::LockAcquisition(lock) => {
                HubError::Busy { repository: self.repository.clone(), lock }
            }
            error => self.answer(file, error.to_string()),
        }
    }

    pub(super) fn explain_request(&self, file: &str, error: ureq::Error) -> HubError {
        use ureq::Error;
        let repository = self.repository.clone();
        match error {
            Error::StatusCode(status @ (401 | 403)) => {
                HubError::Refused { repository, status, token: self.settings.token.is_some() }
            }
            Error::StatusCode(404) => HubError::NoFile { repository, file: file.to_owned() },
            // Too many requests, or trouble of the server's: both pass.
            Error::StatusCode(status @ (429 | 500..)) => {
                self.broken(file, format!("status {status}"))
            }
            Error::StatusCode(status) => self.answer(file, format!("status {status}")),
            // Once connected: worth another attempt.
            Error::Io(error) if is_lost(error.kind()) => self.broken(file, error),
            error => self.settings.unreachable(&self.repository, error),
        }
    }
}

/// Whether reading from the network failed, and not writing to the disk.
fn is_network(error: &io::Error) -> bool {
    let inside =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<ureq::Error>);
    inside || is_lost(error.kind())
}

fn is_lost(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, TimedOut, UnexpectedEof,
    };
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
        || matches!(kind, HostUnreachable | NetworkDown | NetworkUnreachable)
        || matches!(kind, TimedOut | UnexpectedEof)
}
