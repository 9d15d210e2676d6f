//! Why a run cannot be shown.

use std::io;
use std::path::PathBuf;

use bitnet_format::Shown;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A file is not what it must be.
    #[error("{}: {what}", .path.shown())]
    Input {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// The command line asks for what cannot be done.
    #[error("{0}")]
    Usage(String),
}

impl ReportError {
    pub(crate) fn input(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Input { path: path.into(), what: what.into() }
    }
}
