//! From a selection to tasks with their rows.

use std::path::Path;

use bitnet_format::Shown;

use crate::data::DataFile;
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
            Some(found) => ready(found, num_fewshot)?,
            None => OpenTask { data: TaskData::read(&task, dir)?, task },
        });
    }
    for name in &selection.unknown {
        let found = rendered::open(name, dir)?;
        if found.is_none() {
            rendered::refuse(name, dir)?;
        }
        let unknown = || EvalError::UnknownTask { name: name.clone(), hint: hint(name) };
        all.push(ready(found.ok_or_else(unknown)?, num_fewshot)?);
    }
    Ok(all)
}

/// A task whose requests are written out; nothing can be put before them.
fn ready(
    (task, rows): (Task, DataFile),
    num_fewshot: Option<usize>,
) -> Result<OpenTask, EvalError> {
    if let Some(count) = num_fewshot.filter(|count| *count > 0) {
        let what = format!(
            "{} holds whole requests, so --num-fewshot {count} has no rows to take examples from; \
             expected 0",
            rows.path.shown()
        );
        return Err(EvalError::setting(task.name(), what));
    }
    Ok(OpenTask { task, data: TaskData::of(rows) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_requests_take_no_examples_and_other_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.jsonl");
        let asked = |count| {
            let selection = Selection {
                tasks: Vec::new(),
                groups: Vec::new(),
                unknown: vec!["mine".to_owned()],
            };
            open(&selection, dir.path(), count)
        };
        fs_err::write(&path, "{\"context\": \"a\", \"target\": \" b\"}").unwrap();
        assert_eq!(asked(None).unwrap().len(), 1);
        assert_eq!(asked(Some(0)).unwrap().len(), 1);
        let error = asked(Some(3)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("--num-fewshot 3"), "{error}");
        fs_err::write(&path, "{\"prompt\": \"a\", \"target\": \" b\"}").unwrap();
        let error = asked(None).unwrap_err();
        assert!(
            error.to_string().contains("mine.jsonl:1 [context]: expected a request"),
            "{error}"
        );
        fs_err::remove_file(&path).unwrap();
        assert!(matches!(asked(None), Err(EvalError::UnknownTask { .. })));
    }
}
