//! Why a model of the hub is not here.

use std::io;
use std::path::PathBuf;

use bitnet_format::folder::CONFIG_FILE as CONFIG;

use super::address::HubModel;

/// Why a model of the hub is not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer, and not all of it is in the cache.
    #[error(
        "{model}: cannot be reached ({reason}); it is not in the cache {}; \
         download it elsewhere and give its folder as model.init", cache.display()
    )]
    Unreachable {
        /// The model.
        model: HubModel,
        /// What went wrong.
        reason: String,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// 401 or 403.
    #[error(
        "{model}: the hub refuses it (status {status}): it is private or gated, or does not exist; \
         a token with access is needed (HF_TOKEN, or `hf auth login`), {}",
        if *token { "the one given has none" } else { "and none is given" }
    )]
    Refused {
        /// The model.
        model: HubModel,
        /// The status of the answer.
        status: u16,
        /// Whether a token was sent.
        token: bool,
    },
    /// 404 for the first file.
    #[error(
        "{model}: no such repository or revision on the hub, or it has no {CONFIG} (status 404)"
    )]
    NoRepository {
        /// The model.
        model: HubModel,
    },
    /// 404 for another file.
    #[error("{model}: the repository has no file {file} (status 404)")]
    NoFile {
        /// The model.
        model: HubModel,
        /// The missing file, or files.
        file: String,
    },
    /// An answer that is not what the hub gives.
    #[error("{model}: unexpected answer for {file}: {reason}")]
    Answer {
        /// The model.
        model: HubModel,
        /// The file that was asked for.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The list of shards is not usable.
    #[error("{model}: {reason}")]
    Index {
        /// The model.
        model: HubModel,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection broke inside a file.
    #[error("{model}: the download of {file} broke off ({reason}); start again to continue it")]
    Broken {
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// A file arrived with another length than announced.
    #[error("{model}: {file} arrived damaged: expected {expected} bytes, got {got}; start again")]
    Damaged {
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// Its announced length.
        expected: u64,
        /// Its length here.
        got: u64,
    },
    /// Another process downloads the same file.
    #[error("{model}: another process is downloading it ({} is locked)", lock.display())]
    Busy {
        /// The model.
        model: HubModel,
        /// The lock.
        lock: PathBuf,
    },
    /// The cache cannot be written.
    #[error("{model}: {source}")]
    Io {
        /// The model.
        model: HubModel,
        /// What the system says.
        source: io::Error,
    },
    /// Neither a home folder nor a variable says where the cache is.
    #[error("no home folder for the Hugging Face cache; set HF_HOME")]
    NoHome,
    /// The user asked to stop.
    #[error("{model}: interrupted; start again to continue the download")]
    Interrupted {
        /// The model.
        model: HubModel,
    },
}
