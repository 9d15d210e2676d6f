//! Tasks that are opened once and run on any number of models, each in one call.
//!
//! Tasks of files are asked as texts; rows in memory may be asked as conversations, in the model's
//! chat template.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bitnet_engine::{Model, ThreadPool};
use bitnet_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

use crate::data::DataFile;

use crate::encode::BosPolicy;
use crate::error::EvalError;
use crate::evaluate::{Evaluator, MetricResult};
use crate::open::{OpenTask, open};
use crate::registry::{Selection, TaskGroup};
use crate::requests::ChatPrompts;
use crate::results::{TaskRecord, group_metrics};
use crate::task_data::TaskData;
use crate::{task_file, yaml};

/// A list of tasks with their rows in memory.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::ops::ControlFlow;
///
/// use bitnet_engine::{Model, ThreadPool};
/// use bitnet_eval::{AskedModel, Benchmark};
/// use bitnet_text::Tokenizer;
///
/// let tasks = ["arc_easy".to_owned(), "mmlu_stem".to_owned()];
/// // Before a training begins: missing data is reported here.
/// let benchmark = Benchmark::open(&tasks, "sets".as_ref(), Some(200))?;
/// let model = Model::load("model".as_ref())?;
/// let tokenizer = Tokenizer::from_file("model/tokenizer.json".as_ref())?;
/// let threads = ThreadPool::new(2)?;
/// let asked = AskedModel { model: &model, tokenizer: &tokenizer, chat: None, threads: &threads };
/// let scores = benchmark.run(asked, &mut |task, done, all| {
///     eprintln!("{task}: {done} of {all}");
///     ControlFlow::Continue(())
/// })?;
/// for score in &scores {
///     for metric in &score.metrics {
///         println!("{} {} {:.4}", score.name, metric.metric, metric.score);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Benchmark {
    tasks: Vec<OpenTask>,
    /// Asked in the model's chat template.
    conversations: Vec<OpenTask>,
    groups: Vec<TaskGroup>,
    limit: Option<usize>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug)]
pub struct AskedModel<'a> {
    /// A packed model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How its conversations become tokens ([`Benchmark::with_conversations`]); without it they are
    /// texts.
    pub chat: Option<&'a ChatTemplate>,
    /// Where it is computed.
    pub threads: &'a ThreadPool,
}

/// The scores of a task, or of a group over its tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkScore {
    /// The task's or the group's name.
    pub name: String,
    /// Rows that were asked.
    pub rows: usize,
    /// The scores, each with its standard error.
    pub metrics: Vec<MetricResult>,
}

impl Benchmark {
    /// Finds tasks, groups and task files (`.yaml`) by name, and reads their rows from below
    /// `data`, as `bitnet eval --data` does; of each task the first `limit` rows are run.
    ///
    /// # Errors
    /// A name without a task, a split without a file, a file with a broken row.
    pub fn open(names: &[String], data: &Path, limit: Option<usize>) -> Result<Self, EvalError> {
        let selection = Selection::of(names)?;
        let tasks = open(&selection, data, None)?;
        Ok(Self { tasks, conversations: Vec::new(), groups: selection.groups, limit })
    }

    /// Adds a task that generates, with its rows; `file` is what its task file (YAML) would hold.
    /// Each row is asked as the user's message in the model's chat template.
    ///
    /// # Errors
    /// A task file that cannot be used, no row.
    pub fn with_conversations(mut self, file: &str, rows: Vec<Value>) -> Result<Self, EvalError> {
        let path = PathBuf::from("task in memory");
        let task = task_file::task(&path, yaml::parse(&path, file)?)?;
        let data = TaskData::of(DataFile::in_memory(task.name(), rows)?);
        self.conversations.push(OpenTask { task, data });
        Ok(self)
    }

    /// Asks a model all tasks: their scores, then those of groups. BOS is as the tokenizer has it.
    /// `progress` gets a task's name, what is done of it and what there is to do, and may end it.
    ///
    /// # Errors
    /// [`EvalError::Interrupted`], a row or a template that cannot be used, a prompt that leaves no
    /// room for an answer.
    pub fn run(
        &self,
        asked: AskedModel,
        progress: &mut dyn FnMut(&str, usize, usize) -> ControlFlow<()>,
    ) -> Result<Vec<BenchmarkScore>, EvalError> {
        let AskedModel { model, tokenizer, chat, threads } = asked;
        let stop_ids = stop_ids(model, tokenizer);
        let (bos, stop_ids) = (BosPolicy::Auto, stop_ids.as_slice());
        let in_texts =
            Evaluator { model, tokenizer, threads, bos, stop_ids, chat: None, code: None };
        let template = |template| ChatPrompts { template, tokenizer, fewshot_as_multiturn: false };
        // Tasks of files stay texts for a chat model too, as the harness asks them without
        // `--apply_chat_template`.
        let in_chats = Evaluator { chat: chat.map(template), ..in_texts };
        let texts = self.tasks.iter().map(|task| (in_texts, task));
        let chats = self.conversations.iter().map(|task| (in_chats, task));
        let mut records = Vec::new();
        for (evaluator, OpenTask { task, data }) in texts.chain(chats) {
            let mut own = |done, all| progress(task.name(), done, all);
            let result = evaluator.run(task, data, self.limit, &mut own)?;
            records.push(TaskRecord::new(task, &result, data.rows(), Map::new()));
        }
        Ok(with_groups(records, &self.groups))
    }
}

impl fmt::Display for BenchmarkScore {
    /// One line for a person.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of_metric = |metric: &MetricResult| match metric.stderr {
            Some(stderr) => format!("{} {:.4} ± {stderr:.4}", metric.metric, metric.score),
            None => format!("{} {:.4}", metric.metric, metric.score),
        };
        let metrics: Vec<_> = self.metrics.iter().map(of_metric).collect();
        write!(f, "{}: {} over {} rows", self.name, metrics.join(", "), self.rows)
    }
}

impl BenchmarkScore {
    /// Scores by task, with standard errors beside them.
    pub fn as_json(scores: &[Self]) -> Value {
        let of_task = |score: &Self| {
            let mut figures = Map::from_iter([("rows".to_owned(), json!(score.rows))]);
            for metric in &score.metrics {
                figures.insert(metric.metric.clone(), json!(metric.score));
                figures.insert(format!("{}_stderr", metric.metric), json!(metric.stderr));
            }
            (score.name.clone(), Value::Object(figures))
        };
        scores.iter().map(of_task).collect::<Map<_, _>>().into()
    }
}

fn with_groups(records: Vec<TaskRecord>, groups: &[TaskGroup]) -> Vec<BenchmarkScore> {
    let of_group = |group: &TaskGroup| {
        // Only members that ran count, so the rows are those that the mean was made of.
        let members = records.iter().filter(|record| group.members.contains(&record.name));
        let rows = members.map(|record| record.rows.0).sum();
        BenchmarkScore { name: group.name.clone(), rows, metrics: group_metrics(group, &records) }
    };
    let of_groups: Vec<BenchmarkScore> = groups.iter().map(of_group).collect();
    let of_task =
        |it: TaskRecord| BenchmarkScore { name: it.name, rows: it.rows.0, metrics: it.metrics };
    records.into_iter().map(of_task).chain(of_groups).collect()
}

/// The tokens that end an answer of a model.
pub fn stop_ids(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = model.spec().eos_token_id.clone();
    for id in tokenizer.eos().into_iter().chain(tokenizer.eos_token()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::random_model;
    use serde_json::json;

    #[test]
    fn one_call_scores_tasks_and_their_groups() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("own");
        fs_err::create_dir(&folder).unwrap();
        let row = |at: usize| json!({"q": format!("where {at}"), "c": ["box", "key"], "a": at % 2});
        let rows: Vec<String> = (0..6).map(|at| row(at).to_string()).collect();
        fs_err::write(folder.join("test.jsonl"), rows.join("\n")).unwrap();
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        write(
            "own.yaml",
            "task: own\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: q\n\
             doc_to_choice: c\ndoc_to_target: a\n",
        );
        write(
            "all.yaml",
            "group: all\ntask: [own.yaml]\naggregate_metric_list:\n  - metric: acc\n",
        );
        let names = [dir.path().join("all.yaml").to_string_lossy().into_owned()];
        let benchmark = Benchmark::open(&names, dir.path(), Some(4)).unwrap();
        let (model, tokenizer) = random_model(512);
        let mut seen = Vec::new();
        let threads = ThreadPool::new(1).unwrap();
        let asked =
            AskedModel { model: &model, tokenizer: &tokenizer, chat: None, threads: &threads };
        let scores = benchmark
            .run(asked, &mut |task, _, _| {
                seen.push(task.to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
        let names: Vec<(&str, usize)> =
            scores.iter().map(|it| (it.name.as_str(), it.rows)).collect();
        assert_eq!(names, [("own", 4), ("all", 4)]);
        assert_eq!(scores[0].metrics[0].score, scores[1].metrics[0].score);
        assert!(seen.iter().all(|task| task == "own") && !seen.is_empty());
        let ended = benchmark.run(asked, &mut |_, _, _| ControlFlow::Break(()));
        assert!(matches!(ended, Err(EvalError::Interrupted)), "{ended:?}");
        let missing = Benchmark::open(&["piqa".to_owned()], dir.path(), None).unwrap_err();
        assert!(missing.to_string().contains("no data for split"), "{missing}");
    }
    #[test]
    fn rows_in_memory_are_asked_in_the_template() {
        let file = "task: own\noutput_type: generate_until\ntest_split: rows\ndoc_to_text: q\n\
                    doc_to_target: a\ngeneration_kwargs:\n  max_gen_toks: 3\n";
        let rows = vec![json!({"q": "Where?", "a": "There."}), json!({"q": "Who?", "a": "Me."})];
        let none = Benchmark::open(&[], "".as_ref(), Some(1)).unwrap();
        let benchmark = none.with_conversations(file, rows).unwrap();
        let ((model, tokenizer), chat) = (random_model(512), ChatTemplate::b158());
        let threads = ThreadPool::new(1).unwrap();
        let asked = AskedModel {
            model: &model,
            tokenizer: &tokenizer,
            chat: Some(&chat),
            threads: &threads,
        };
        let scores = benchmark.run(asked, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        let found: Vec<_> = scores.iter().map(|it| (it.name.as_str(), it.rows)).collect();
        assert_eq!(found, [("own", 1)]);
        assert_eq!(scores[0].metrics[0].metric, "exact_match");
    }
}
