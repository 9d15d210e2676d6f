//! Tasks by name: those that are built in, groups of them, and files of the user's.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::EvalError;
use crate::mmlu;
use crate::task::Task;
use crate::{task_file, yaml};

/// Groups that stand in each other.
const MAX_GROUPS: usize = 16;

const FILES: [(&str, &str); 23] = [
    ("arc_challenge", include_str!("../tasks/arc_challenge.yaml")),
    ("arc_easy", include_str!("../tasks/arc_easy.yaml")),
    ("boolq", include_str!("../tasks/boolq.yaml")),
    ("commonsense_qa", include_str!("../tasks/commonsense_qa.yaml")),
    ("coqa", include_str!("../tasks/coqa.yaml")),
    ("drop", include_str!("../tasks/drop.yaml")),
    ("gsm8k", include_str!("../tasks/gsm8k.yaml")),
    ("hellaswag", include_str!("../tasks/hellaswag.yaml")),
    ("hendrycks_math500", include_str!("../tasks/hendrycks_math500.yaml")),
    ("humaneval", include_str!("../tasks/humaneval.yaml")),
    ("humaneval_plus", include_str!("../tasks/humaneval_plus.yaml")),
    ("ifeval", include_str!("../tasks/ifeval.yaml")),
    ("lambada_openai", include_str!("../tasks/lambada_openai.yaml")),
    ("minerva_math500", include_str!("../tasks/minerva_math500.yaml")),
    ("openbookqa", include_str!("../tasks/openbookqa.yaml")),
    ("piqa", include_str!("../tasks/piqa.yaml")),
    ("squad_completion", include_str!("../tasks/squad_completion.yaml")),
    ("squadv2", include_str!("../tasks/squadv2.yaml")),
    ("triviaqa", include_str!("../tasks/triviaqa.yaml")),
    ("truthfulqa_mc1", include_str!("../tasks/truthfulqa_mc1.yaml")),
    ("truthfulqa_mc2", include_str!("../tasks/truthfulqa_mc2.yaml")),
    ("wikitext", include_str!("../tasks/wikitext.yaml")),
    ("winogrande", include_str!("../tasks/winogrande.yaml")),
];

/// Tasks whose scores are averaged.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskGroup {
    /// The name that it is asked for by.
    pub name: String,
    /// Its tasks.
    pub members: Vec<String>,
    /// The metrics that are averaged.
    pub metrics: Vec<String>,
    /// Whether a task counts as often as it has rows.
    pub weight_by_size: bool,
    /// As its file says.
    pub version: Value,
}

/// The requested tasks.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Each task once, in the order of the names.
    pub tasks: Vec<Task>,
    /// Groups, the smaller first.
    pub groups: Vec<TaskGroup>,
    /// Names that are no task, for data in the form of requests.
    pub unknown: Vec<String>,
}

impl Selection {
    /// Finds tasks, groups and task files (`.yaml`) by name.
    ///
    /// # Errors
    /// A task file that cannot be used.
    pub fn of(names: &[String]) -> Result<Self, EvalError> {
        let mut selection = Self::default();
        for name in names {
            let found = selection.add(name, Path::new(""), MAX_GROUPS)?;
            if found.is_none() && !selection.unknown.contains(name) {
                selection.unknown.push(name.clone());
            }
        }
        Ok(selection)
    }

    /// Adds what a name stands for, and says which tasks those are; `None` if it stands for
    /// nothing.
    fn add(
        &mut self,
        name: &str,
        folder: &Path,
        depth: usize,
    ) -> Result<Option<Vec<String>>, EvalError> {
        if [".yaml", ".yml"].iter().any(|end| name.ends_with(end)) {
            return self.add_file(&folder.join(name), depth).map(Some);
        }
        if let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name) {
            let path = PathBuf::from(format!("{name}.yaml"));
            let task = task_file::task(&path, yaml::parse(&path, text)?)?;
            return Ok(Some(vec![self.push(task)?]));
        }
        if let Some(subjects) = mmlu::subjects(name) {
            let each = subjects.into_iter().map(|subject| self.push(mmlu_task(subject)?));
            let members: Vec<String> = each.collect::<Result<_, _>>()?;
            self.add_mmlu_groups(name, &members)?;
            return Ok(Some(members));
        }
        let subject = mmlu::subject(name).map(mmlu_task).transpose()?;
        subject.map(|task| Ok(vec![self.push(task)?])).transpose()
    }

    /// Adds a task and says its name.
    fn push(&mut self, task: Task) -> Result<String, EvalError> {
        let name = task.name().to_owned();
        // A task that two names lead to runs once; its score stands for both.
        match self.tasks.iter().find(|known| known.name() == name) {
            None => self.tasks.push(task),
            Some(known) if known.hash() == task.hash() => {}
            Some(_) => {
                return Err(EvalError::setting(
                    &name,
                    "two different tasks have this name; ask for one, or rename one",
                ));
            }
        }
        Ok(name)
    }

    /// Adds the task or the group of a file, and says which tasks those are.
    fn add_file(&mut self, path: &Path, depth: usize) -> Result<Vec<String>, EvalError> {
        let fields = yaml::read(path)?;
        let Some(name) = fields.get("group").and_then(Value::as_str) else {
            return Ok(vec![self.push(task_file::task(path, fields)?)?]);
        };
        let wrong = |what: String| EvalError::task_file(path, "task", what);
        if depth == 0 {
            return Err(wrong(format!("is in more than {MAX_GROUPS} groups in a row")));
        }
        let listed = fields.get("task").and_then(Value::as_array);
        let listed =
            listed.and_then(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let listed = listed
            .ok_or_else(|| wrong("expected a list of names of tasks and task files".to_owned()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut members: Vec<String> = Vec::new();
        for name in listed {
            let missing = || wrong(format!("{name}: no such task{}", hint(name)));
            let found = self.add(name, folder, depth - 1)?.ok_or_else(missing)?;
            // Also tasks that were asked for before, but each only once: two groups inside of this
            // one may share some.
            for name in found {
                if !members.contains(&name) {
                    members.push(name);
                }
            }
        }
        self.push_group(group(path, name, members.clone(), &fields)?)?;
        Ok(members)
    }

    fn push_group(&mut self, group: TaskGroup) -> Result<(), EvalError> {
        match self.groups.iter().find(|known| known.name == group.name) {
            None => self.groups.push(group),
            Some(known) if *known == group => {}
            Some(_) => {
                return Err(EvalError::setting(
                    &group.name,
                    "two different groups have this name; ask for one, or rename one",
                ));
            }
        }
        Ok(())
    }

    fn add_mmlu_groups(&mut self, name: &str, members: &[String]) -> Result<(), EvalError> {
        let group = |name: &str, members: Vec<String>| TaskGroup {
            name: name.to_owned(),
            members,
            metrics: vec!["acc".to_owned()],
            weight_by_size: true,
            version: json!(2),
        };
        // The smaller groups come first, so that a reader sees the parts before the whole.
        if name == "mmlu" {
            for (category, subjects) in mmlu::CATEGORIES {
                let members = subjects.iter().map(|subject| format!("mmlu_{subject}")).collect();
                self.push_group(group(&format!("mmlu_{category}"), members))?;
            }
        }
        self.push_group(group(name, members.to_vec()))
    }
}

fn group(
    path: &Path,
    name: &str,
    members: Vec<String>,
    fields: &Map<String, Value>,
) -> Result<TaskGroup, EvalError> {
    let list = fields.get("aggregate_metric_list").and_then(Value::as_array).cloned();
    let list = list.unwrap_or_default();
    let metric = |entry: &Value| entry["metric"].as_str().map(str::to_owned);
    let metrics = list.iter().map(metric).collect::<Option<Vec<_>>>();
    let missing = || EvalError::task_file(path, "aggregate_metric_list", "an entry has no metric");
    let weight = |entry: &Value| entry["weight_by_size"].as_bool().unwrap_or(true);
    Ok(TaskGroup {
        name: name.to_owned(),
        members,
        metrics: metrics.ok_or_else(missing)?,
        // The harness has the choice for each metric; here the first one's holds for all.
        weight_by_size: list.first().is_none_or(weight),
        version: fields.get("metadata").map_or(Value::Null, |it| it["version"].clone()),
    })
}

fn mmlu_task(subject: &str) -> Result<Task, EvalError> {
    let path = PathBuf::from("mmlu.yaml");
    let mut fields = yaml::parse(&path, include_str!("../tasks/mmlu.yaml"))?;
    fields.insert("task".into(), format!("mmlu_{subject}").into());
    fields.insert("task_alias".into(), subject.into());
    fields.insert("dataset_name".into(), subject.into());
    fields.insert("description".into(), mmlu::description(subject).into());
    task_file::task(&path, fields)
}

/// All names that are built in.
pub fn task_names() -> Vec<String> {
    let files = FILES.iter().map(|(name, _)| (*name).to_owned());
    files.chain(mmlu::names()).collect()
}

/// What a name without a task was probably meant as, for the end of a message.
pub(crate) fn hint(name: &str) -> String {
    let names = task_names();
    let near = names.iter().map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    match near {
        // Half of the letters must be right, else a guess would only mislead.
        Some((distance, known)) if 2 * distance < name.chars().count() => {
            format!("; did you mean {known}?")
        }
        _ => format!(
            "; built in are {}, mmlu; a task file ends in .yaml",
            FILES.map(|it| it.0).join(", ")
        ),
    }
}

/// The benchmarks of the 2B4T report that are run here, with examples, metric and published score
/// (arXiv 2504.12285, Table 1).
pub const REPORT: [ReportRow; 15] = [
    row("arc_challenge", 0, "acc_norm", 49.91),
    row("arc_easy", 0, "acc_norm", 74.79),
    row("openbookqa", 0, "acc_norm", 41.60),
    row("boolq", 0, "acc", 80.18),
    row("hellaswag", 0, "acc_norm", 68.44),
    row("piqa", 0, "acc_norm", 77.09),
    row("winogrande", 0, "acc", 71.90),
    row("commonsense_qa", 10, "acc", 71.58),
    row("truthfulqa_mc2", 0, "acc", 45.31),
    row("triviaqa", 5, "exact_match", 33.57),
    row("mmlu", 5, "acc", 53.17),
    chat_row("humaneval_plus", 0, "pass@1", 38.40),
    chat_row("gsm8k", 4, "exact_match", 58.38),
    chat_row("hendrycks_math500", 0, "exact_match", 43.40),
    chat_row("ifeval", 0, "inst_level_strict_acc", 53.48),
];

/// A row of the report.
#[derive(Clone, Copy, Debug)]
pub struct ReportRow {
    /// The task or group.
    pub task: &'static str,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// The metric that was published.
    pub metric: &'static str,
    /// In percent.
    pub published: f64,
    /// Whether it is asked in the model's chat template.
    pub as_chat: bool,
}

const fn row(
    task: &'static str,
    num_fewshot: usize,
    metric: &'static str,
    published: f64,
) -> ReportRow {
    ReportRow { task, num_fewshot, metric, published, as_chat: false }
}

const fn chat_row(
    task: &'static str,
    num_fewshot: usize,
    metric: &'static str,
    published: f64,
) -> ReportRow {
    ReportRow { as_chat: true, ..row(task, num_fewshot, metric, published) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selection: &Selection) -> Vec<&str> {
        selection.tasks.iter().map(Task::name).collect()
    }

    fn of(names: &[&str]) -> Result<Selection, EvalError> {
        Selection::of(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn every_task_that_is_built_in_opens() {
        let all = Selection::of(&task_names()).unwrap();
        assert_eq!(all.tasks.len(), FILES.len() + 57);
        assert!(all.unknown.is_empty());
        for name in REPORT.iter().map(|row| row.task) {
            assert!(all.tasks.iter().any(|task| task.name() == name) || name == "mmlu");
        }
    }

    #[test]
    fn mmlu_has_57_subjects_in_four_groups() {
        let all = of(&["mmlu", "mmlu_anatomy"]).unwrap();
        assert_eq!((all.tasks.len(), all.groups.len()), (57, 5));
        let sizes: Vec<usize> = all.groups.iter().map(|group| group.members.len()).collect();
        assert_eq!(sizes, [19, 13, 12, 13, 57]);
        assert_eq!(of(&["mmlu_stem"]).unwrap().tasks.len(), 19);
        assert_eq!(names(&of(&["mmlu_us_foreign_policy"]).unwrap()), ["mmlu_us_foreign_policy"]);
    }

    #[test]
    fn files_and_groups_of_the_users_are_found_beside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        write("own.yaml", "task: own\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n");
        write(
            "all.yaml",
            "group: all\ntask: [own.yaml, piqa]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n",
        );
        let path = dir.path().join("all.yaml").to_string_lossy().into_owned();
        let selection = of(&[&path, "nothing"]).unwrap();
        assert_eq!(names(&selection), ["own", "piqa"]);
        assert_eq!(
            (selection.groups[0].members.len(), selection.groups[0].weight_by_size),
            (2, false)
        );
        assert_eq!(selection.unknown, ["nothing"]);
        write("all.yaml", "group: all\ntask: [pika]\n");
        let error = of(&[&path]).unwrap_err().to_string();
        assert!(
            error.contains("all.yaml [task]: pika: no such task; did you mean piqa?"),
            "{error}"
        );
    }

    #[test]
    fn a_group_has_all_of_its_tasks_also_those_that_were_asked_for_before() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs_err::write(&path, text).unwrap();
            path.to_string_lossy().into_owned()
        };
        let list = "aggregate_metric_list:\n  - metric: acc\n";
        let first = write("first.yaml", &format!("group: first\ntask: [piqa, boolq]\n{list}"));
        let second = write("second.yaml", &format!("group: second\ntask: [boolq, piqa]\n{list}"));
        let both = format!("group: both\ntask: [first.yaml, second.yaml, mmlu_stem]\n{list}");
        let both = write("both.yaml", &both);
        let found = of(&["boolq", "own", &first, &second, &both, &first, "own"]).unwrap();
        assert_eq!(names(&found)[..2], ["boolq", "piqa"]);
        assert_eq!(found.unknown, ["own"]);
        let sizes: Vec<(&str, usize)> =
            found.groups.iter().map(|group| (group.name.as_str(), group.members.len())).collect();
        assert_eq!(sizes, [("first", 2), ("second", 2), ("mmlu_stem", 19), ("both", 21)]);
    }

    #[test]
    fn two_things_of_one_name_and_groups_without_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |text: &str| {
            let path = dir.path().join("g.yaml");
            fs_err::write(&path, text).unwrap();
            of(&["piqa", "mmlu_stem", path.to_str().unwrap()]).unwrap_err().to_string()
        };
        let own = "task: piqa\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n";
        assert_eq!(
            refused(own),
            "piqa: two different tasks have this name; ask for one, or rename one"
        );
        let group = "group: mmlu_stem\ntask: [piqa]\n";
        assert_eq!(
            refused(group),
            "mmlu_stem: two different groups have this name; ask for one, or rename one"
        );
        let round = refused("group: g\ntask: [g.yaml]\n");
        assert!(round.ends_with("g.yaml [task]: is in more than 16 groups in a row"), "{round}");
    }

    #[test]
    fn a_forbidden_key_of_a_task_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.yaml");
        let base = "task: t\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n";
        for (more, expected) in [
            ("doc_to_txt: q\n", "[doc_to_txt]: is not a known key; did you mean doc_to_text?"),
            ("doc_to_image: q\n", "[doc_to_image]: is not a known key"),
            ("num_fewshot: -1\n", "[num_fewshot]: expected a whole number"),
            ("process_docs: !function utils.other\n", "[process_docs]: utils.other is Python"),
            ("output_type: best_of\n", "[output_type]: expected multiple_choice"),
            ("output_type: multiple_choice\n", "[doc_to_choice]: is missing"),
            ("metric_list:\n  - metric: rouge\n", "[metric_list]: metric \"rouge\" is not known"),
            (
                "metric_list:\n  - metric: likelihood\n",
                "\"likelihood\" is not known for a task of this kind; expected exact_match",
            ),
            ("metric_list:\n  - metric: acc_norm\n", "metric \"acc_norm\" is not known"),
            (
                "filter_list:\n  - name: a\n    filter:\n      - function: b\n",
                "function \"b\" is not known",
            ),
            (
                "filter_list:\n  - name: a\n    filter:\n      - function: regex\n        regex_pattern: '('\n",
                "[filter_list]: pattern",
            ),
            ("repeats: 4\n", "[repeats]: expected 1"),
            ("description: '{{'\n", "t.yaml [description]:1: syntax error"),
        ] {
            fs_err::write(&path, format!("{base}{more}")).unwrap();
            let error = of(&[path.to_str().unwrap()]).unwrap_err().to_string();
            assert!(error.contains(expected), "{more}: {error}");
        }
    }
}
