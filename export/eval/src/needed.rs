//! Which splits a selection of tasks reads, for whoever brings them.

use std::path::{Path, PathBuf};

use crate::data::SplitName;
use crate::error::EvalError;
use crate::registry::{Selection, hint};
use crate::task::Task;

/// A split of a data set that a task reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededSplit {
    /// The task, for messages.
    pub task: String,
    /// As on the hub: `owner/name`.
    pub dataset: String,
    /// Its configuration, where the task names one.
    pub config: Option<String>,
    /// Such as `test`.
    pub split: String,
    is_evaluated: bool,
}

impl NeededSplit {
    fn of(task: &Task, split: &str, is_evaluated: bool) -> Self {
        Self {
            task: task.name.clone(),
            dataset: task.dataset_path.clone(),
            config: task.dataset_name.clone(),
            split: split.to_owned(),
            is_evaluated,
        }
    }

    /// Its place below a data folder, without an ending.
    pub fn stem(&self) -> PathBuf {
        [Some(&self.dataset), self.config.as_ref(), Some(&self.split)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Whether it is below `dir`, under any of the names that tasks look for.
    ///
    /// # Errors
    /// Parts that are missing or contradict each other.
    pub fn is_below(&self, dir: &Path) -> Result<bool, EvalError> {
        let name = SplitName {
            task: &self.task,
            dataset: &self.dataset,
            name: self.config.as_deref(),
            split: &self.split,
            is_evaluated: self.is_evaluated,
        };
        Ok(name.find(dir)?.is_some())
    }
}

/// The splits that all tasks evaluate, and those that examples come from, however many are asked for;
/// each once, in the order of the tasks.
///
/// # Errors
/// A name without a task.
pub fn needed_splits(selection: &Selection) -> Result<Vec<NeededSplit>, EvalError> {
    if let Some(name) = selection.unknown.first() {
        return Err(EvalError::UnknownTask { name: name.clone(), hint: hint(name) });
    }
    let mut all: Vec<NeededSplit> = Vec::new();
    for task in &selection.tasks {
        let evaluated = task.splits.evaluated().map(|split| NeededSplit::of(task, split, true));
        let examples = task.splits.shots().filter(|_| !task.has_own_samples());
        let examples = examples.map(|split| NeededSplit::of(task, split, false));
        for needed in evaluated.into_iter().chain(examples) {
            if !all.iter().any(|known| known.stem() == needed.stem()) {
                all.push(needed);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(names: &[&str]) -> Vec<NeededSplit> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        needed_splits(&Selection::of(&names).unwrap()).unwrap()
    }

    #[test]
    fn tasks_need_what_they_evaluate_and_what_examples_come_from_each_once() {
        let stems = |names: &[&str]| -> Vec<String> {
            needed(names).iter().map(|it| it.stem().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(
            stems(&["arc_easy", "gsm8k", "truthfulqa_mc2", "arc_easy"]),
            [
                "allenai/ai2_arc/ARC-Easy/test",
                "allenai/ai2_arc/ARC-Easy/train",
                "openai/gsm8k/main/test",
                "openai/gsm8k/main/train",
                "truthfulqa/truthful_qa/multiple_choice/validation",
            ]
        );
        // 57 subjects with examples from another split.
        assert_eq!(needed(&["mmlu"]).len(), 2 * 57);
        let selection = Selection::of(&["arc_esay".to_owned()]).unwrap();
        assert!(needed_splits(&selection).unwrap_err().to_string().contains("arc_easy"));
    }

    #[test]
    fn a_split_that_is_here_is_known_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let test = &needed(&["arc_easy"])[0];
        assert!(!test.is_below(dir.path()).unwrap());
        fs_err::create_dir_all(dir.path().join("ai2_arc/ARC-Easy")).unwrap();
        fs_err::write(dir.path().join("ai2_arc/ARC-Easy/test.jsonl"), "{}").unwrap();
        assert!(test.is_below(dir.path()).unwrap());
    }
}
