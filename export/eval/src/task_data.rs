//! A task's rows, and those that examples come from.

use std::path::Path;

use bitnet_format::Shown;
use serde_json::Value;

use crate::data::{DataFile, SplitName};
use crate::error::EvalError;
use crate::task::Task;

/// A task with its rows in memory.
#[derive(Clone, Debug)]
pub struct TaskData {
    pub(crate) rows: DataFile,
    /// The rows that examples come from; none without examples.
    pub(crate) pool: Option<DataFile>,
}

impl TaskData {
    /// Reads the splits of a task from below `dir`.
    ///
    /// # Errors
    /// A split without a file, a file with a broken row.
    pub fn read(task: &Task, dir: &Path) -> Result<Self, EvalError> {
        let split = |split: &str, is_evaluated: bool| -> Result<DataFile, EvalError> {
            let (dataset, name) = (task.dataset_path.as_str(), task.dataset_name.as_deref());
            let mut rows =
                SplitName { task: &task.name, dataset, name, split, is_evaluated }.read(dir)?;
            if let Some(function) = task.process_docs {
                // The hash stays that of the file: it names the data, not what this version makes
                // of it.
                for at in 0..rows.rows.len() {
                    let made = function.call(&rows.rows[at]);
                    rows.rows[at] = made.map_err(|(field, what)| rows.wrong(at, &field, what))?;
                }
            }
            Ok(rows)
        };
        let rows = split(task.splits.evaluated().unwrap_or_default(), true)?;
        let pool = if task.has_own_samples() {
            Some(DataFile::in_memory(&task.name, task.samples.clone())?)
        } else {
            task.split_of_examples().map(|it| split(it, false)).transpose()?
        };
        Ok(Self { rows, pool })
    }

    /// Rows that are in memory already, without others to take examples from.
    pub(crate) fn of(rows: DataFile) -> Self {
        Self { rows, pool: None }
    }

    /// Number of rows of the evaluated split.
    pub fn rows(&self) -> usize {
        self.rows.rows.len()
    }

    /// The rows of the evaluated split, each with its place: `file:row`.
    pub fn places(&self) -> impl Iterator<Item = (String, &Value)> {
        let path = self.rows.path.shown();
        let rows = self.rows.rows.iter().enumerate();
        rows.map(move |(at, row)| (format!("{path}:{}", at + 1), row))
    }

    /// Identifies the rows and the examples.
    pub fn hash(&self) -> String {
        let pool = self.pool.as_ref().map_or("", |pool| pool.hash.as_str());
        format!("{}{pool}", self.rows.hash)
    }
}
