//! From a selection to tasks with their rows.

use std::path::Path;

use crate::error::EvalError;
use crate::registry::{Selection, hint};
use crate::rendered;
use crate::task::Task;
use crate::task_data::TaskData;

/// A task whose rows are in memory.
#[derive(Clone, Debug)]
pub struct OpenTask {
    /// The task.
    pub task: Task,
    /// Its rows.
    pub data: TaskData,
}

/// Reads the rows of all tasks from below `dir`; `num_fewshot` replaces what the tasks say. A task
/// takes `DIR/<name>.jsonl`, if that holds requests, and its dataset otherwise; a name that is not
/// a task stands for such a file.
///
/// # Errors
/// A name without a task, a split without a file, a file with a broken row. Nothing ran then.
pub fn open(
    selection: &Selection,
    dir: &Path,
    num_fewshot: Option<usize>,
) -> Result<Vec<OpenTask>, EvalError> {
    let mut all = Vec::new();
    for task in &selection.tasks {
        let task = task.clone();
        let task = match num_fewshot {
            Some(count) => task.with_num_fewshot(count),
            None => task,
        };
        // Before the dataset: a file of requests would be taken for it.
        let requests = rendered::open(task.name(), dir)?;
        all.push(match requests {
            Some((task, rows)) => OpenTask { task, data: TaskData::of(rows) },
            None => OpenTask { data: TaskData::read(&task, dir)?, task },
        });
    }
    for name in &selection.unknown {
        let found = rendered::open(name, dir)?;
        let unknown = || EvalError::UnknownTask { name: name.clone(), hint: hint(name) };
        let (task, rows) = found.ok_or_else(unknown)?;
        all.push(OpenTask { task, data: TaskData::of(rows) });
    }
    Ok(all)
}
