//! Errors of reading and writing model files.

use crate::Shown;
use std::path::{Path, PathBuf};

/// What went wrong while reading or writing model files.
///
/// Messages have the form `<file> [<field>]: <what>; expected …, got …`.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused: missing file, permission, full disk.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A JSON or TOML file does not parse, or describes a model that is not supported.
    #[error("{}{}: {what}", .path.shown(), field_suffix(.field))]
    Config {
        /// The file.
        path: PathBuf,
        /// The key with the error; empty for the whole file.
        field: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// A config (`configs/*.toml`) cannot be read or describes no model.
    #[error("{}: {what}", .path.shown())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// A tensor is missing, of another shape or type, or holds what it must not.
    #[error("{} [{name}]: {what}", .path.shown())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// The container itself is broken.
    #[error("{}: {what}", .path.shown())]
    Container {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The progress callback asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The target exists and was not to be replaced.
    #[error("{}: already exists; choose another path, or --force to replace it", .path.shown())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The target must not be replaced.
    #[error("{}: is not replaced: {what}; choose another path", .path.shown())]
    Kept {
        /// The target.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

fn field_suffix(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(" [{field}]") }
}

impl FormatError {
    pub(crate) fn config(path: &Path, field: &str, what: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), field: field.to_owned(), what: what.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), name: name.to_owned(), what: what.into() }
    }

    pub(crate) fn container(path: &Path, what: impl Into<String>) -> Self {
        Self::Container { path: path.to_owned(), what: what.into() }
    }
}
