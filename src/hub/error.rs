//! Why a model or a data set of the hub is not here.

use std::io;
use std::path::PathBuf;

use bitnet_format::folder::CONFIG_FILE as CONFIG;

use super::address::{HubDataset, HubKind, HubRepository};

/// Why a model or a data set of the hub is not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer, and not all of it is in the cache.
    #[error(
        "{repository}: cannot be reached ({reason}); it is not in the cache {}; \
         download it elsewhere and {}", cache.display(), instead(repository.kind)
    )]
    Unreachable {
        /// What was asked for.
        repository: HubRepository,
        /// What went wrong.
        reason: String,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// 401 or 403.
    #[error(
        "{repository}: the hub refuses it (status {status}): it is private or gated, or does not exist; \
         a token with access is needed (HF_TOKEN, or `hf auth login`), {}",
        if *token { "the one given has none" } else { "and none is given" }
    )]
    Refused {
        /// What was asked for.
        repository: HubRepository,
        /// The status of the answer.
        status: u16,
        /// Whether a token was sent.
        token: bool,
    },
    /// 404 for the first file.
    #[error(
        "{repository}: no such repository or revision on the hub{} (status 404)",
        if repository.kind == HubKind::Model { format!(", or it has no {CONFIG}") } else { String::new() }
    )]
    NoRepository {
        /// What was asked for.
        repository: HubRepository,
    },
    /// 404 for another file.
    #[error("{repository}: the repository has no file {file} (status 404)")]
    NoFile {
        /// What was asked for.
        repository: HubRepository,
        /// The missing file, or files.
        file: String,
    },
    /// An answer that is not what the hub gives.
    #[error("{repository}: unexpected answer for {file}: {reason}")]
    Answer {
        /// What was asked for.
        repository: HubRepository,
        /// The file that was asked for.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The list of shards is not usable.
    #[error("{repository}: {reason}")]
    Index {
        /// What was asked for.
        repository: HubRepository,
        /// What is wrong with it.
        reason: String,
    },
    /// The data set has not what is named of it.
    #[error("{dataset}: {reason}")]
    Choice {
        /// What was asked for.
        dataset: Box<HubDataset>,
        /// What was expected of it.
        reason: String,
    },
    /// The connection broke inside a file.
    #[error(
        "{repository}: the download of {file} broke off ({reason}); start again to continue it"
    )]
    Broken {
        /// What was asked for.
        repository: HubRepository,
        /// The file.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// A file arrived with another length than announced.
    #[error(
        "{repository}: {file} arrived damaged: expected {expected} bytes, got {got}; start again"
    )]
    Damaged {
        /// What was asked for.
        repository: HubRepository,
        /// The file.
        file: String,
        /// Its announced length.
        expected: u64,
        /// Its length here.
        got: u64,
    },
    /// Another process downloads the same file.
    #[error("{repository}: another process is downloading it ({} is locked)", lock.display())]
    Busy {
        /// What was asked for.
        repository: HubRepository,
        /// The lock.
        lock: PathBuf,
    },
    /// The cache cannot be written.
    #[error("{repository}: {source}")]
    Io {
        /// What was asked for.
        repository: HubRepository,
        /// What the system says.
        source: io::Error,
    },
    /// Neither a home folder nor a variable says where the cache is.
    #[error("no home folder for the Hugging Face cache; set HF_HOME")]
    NoHome,
    /// The user asked to stop.
    #[error("{repository}: interrupted; start again to continue the download")]
    Interrupted {
        /// What was asked for.
        repository: HubRepository,
    },
}

/// What else can be named than a repository of the hub.
fn instead(kind: HubKind) -> &'static str {
    match kind {
        HubKind::Model => "give its folder as model.init",
        HubKind::Dataset => "name its files",
    }
}
