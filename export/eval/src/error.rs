//! What can go wrong in an evaluation, with the file, the row and the field at fault.

use std::path::{Path, PathBuf};

use bitnet_engine::EngineError;
use bitnet_format::{FormatError, Shown};
use bitnet_text::TextError;

use crate::data::DataFile;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A template or a tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The watcher of the progress asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// No task has this name.
    #[error("--tasks {name}: no such task{hint}")]
    UnknownTask {
        /// As it was asked for.
        name: String,
        /// What was probably meant.
        hint: String,
    },
    /// A task cannot be run as it is asked for.
    #[error("{task}: {what}")]
    Setting {
        /// The task.
        task: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// A text cannot be asked for with this model.
    #[error("request: {what}")]
    Request {
        /// What is wrong, with what was expected.
        what: String,
    },
    /// A task file says something that it may not.
    #[error("{} [{field}]: {what}", .path.shown())]
    TaskFile {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// No file holds a split.
    #[error("{task}: no data for split {split:?} under {}; looked for {}", .dir.shown(), .looked.join(", "))]
    MissingData {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Where the data should be.
        dir: PathBuf,
        /// The names that would have been read.
        looked: Vec<String>,
    },
    /// A row of data cannot be used.
    #[error("{}:{row} [{field}]: {what}", .path.shown())]
    Row {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        row: usize,
        /// The field, or what is made of the row.
        field: String,
        /// What is wrong, with what was expected.
        what: String,
    },
}

impl EvalError {
    pub(crate) fn task_file(path: &Path, field: &str, what: impl Into<String>) -> Self {
        Self::TaskFile { path: path.to_owned(), field: field.to_owned(), what: what.into() }
    }

    pub(crate) fn setting(task: &str, what: impl Into<String>) -> Self {
        Self::Setting { task: task.to_owned(), what: what.into() }
    }

    pub(crate) fn row(path: &Path, row: usize, field: &str, what: impl Into<String>) -> Self {
        let (path, field) = (path.to_owned(), field.to_owned());
        Self::Row { path, row, field, what: what.into() }
    }

    /// The same error with the row whose request is wrong.
    pub(crate) fn of_row(self, rows: &DataFile, at: usize) -> Self {
        match self {
            Self::Request { what } => rows.wrong(at, "request", what),
            other => other,
        }
    }

    /// Whether the command line is at fault and not a file.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::UnknownTask { .. } | Self::Setting { .. })
    }
}
