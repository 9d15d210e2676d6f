//! One task from its rows to its scores.

use std::path::Path;

use bitnet_engine::{Model, ThreadPool};
use bitnet_text::Tokenizer;
use serde_json::{Value, json};

use crate::data::{DataFile, SplitName};
use crate::document::{RowDocument, documents};
use crate::encode::{BosPolicy, RequestEncoder, TokenRequest};
use crate::error::EvalError;
use crate::generation::{PromptRequest, continue_prompts};
use crate::metrics::MetricValue;
use crate::prompt::{RowRequest, request, shot, shots};
use crate::scheduler::{ContinuationScore, score_requests};
use crate::scoring::{RowMetrics, of_rolling, of_scores, of_text};
use crate::task::{OutputType, Task};

/// What computes the answers.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    /// A packed model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Where it is computed.
    pub threads: &'a ThreadPool,
    /// What stands before each text.
    pub bos: BosPolicy,
    /// Tokens that end an answer.
    pub stop_ids: &'a [u32],
}

/// A task with its rows in memory.
#[derive(Clone, Debug)]
pub struct TaskData {
    rows: DataFile,
    /// The rows that examples come from; none without examples.
    pool: Option<DataFile>,
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
                for at in 0..rows.rows.len() {
                    let made = function.call(&rows.rows[at]);
                    rows.rows[at] = made.map_err(|(field, what)| rows.wrong(at, &field, what))?;
                }
            }
            Ok(rows)
        };
        let rows = split(task.splits.evaluated().unwrap_or_default(), true)?;
        let shots = task.splits.shots().filter(|_| task.num_fewshot > 0);
        Ok(Self { rows, pool: shots.map(|it| split(it, false)).transpose()? })
    }

    /// Rows that are in memory already, without others to take examples from.
    pub(crate) fn of(rows: DataFile) -> Self {
        Self { rows, pool: None }
    }

    /// Number of rows of the evaluated split.
    pub fn rows(&self) -> usize {
        self.rows.rows.len()
    }

    /// Identifies the rows and the examples.
    pub fn hash(&self) -> String {
        let pool = self.pool.as_ref().map_or("", |pool| pool.hash.as_str());
        format!("{}{pool}", self.rows.hash)
    }
}

/// The score of one metric after one filter.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricResult {
    /// Its name.
    pub metric: String,
    /// The filter's name; `none` where a task has none.
    pub filter: String,
    /// The score.
    pub score: f64,
    /// Its standard error, where the harness computes one.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// A row with what was asked and answered.
#[derive(Clone, Debug)]
pub struct SampleResult {
    /// Its number in the split, from 0.
    pub doc_id: usize,
    /// The row.
    pub doc: Value,
    /// Contexts with continuations, or prompts.
    pub arguments: Value,
    /// What the model made of them.
    pub responses: Value,
    /// The filter's name.
    pub filter: String,
    /// Metrics of the row.
    pub metrics: Vec<(String, MetricValue)>,
}

/// A finished task.
#[derive(Clone, Debug)]
pub struct TaskResult {
    /// The metrics, filter after filter.
    pub metrics: Vec<MetricResult>,
    /// The rows, filter after filter.
    pub samples: Vec<SampleResult>,
    /// Number of rows that were asked.
    pub rows: usize,
    /// Requests whose context was cut from the left.
    pub truncated: usize,
    /// Tokens that went through the model.
    pub computed_tokens: usize,
    /// Tokens of all requests, each with its context.
    pub request_tokens: usize,
}

/// What the model answered about one row.
enum RowAnswer {
    Scores(Vec<ContinuationScore>),
    Rolling(f64),
    Text(String),
}

/// The token requests of a task.
struct Asked {
    encoded: Vec<TokenRequest>,
    /// How many of them belong to each row.
    counts: Vec<usize>,
}

impl Evaluator<'_> {
    /// Runs a task on its first rows, all of them without a limit. `progress` gets what is done and
    /// what is to do, in tokens or in prompts.
    ///
    /// # Errors
    /// A row or a template that cannot be used, a prompt that leaves no room for an answer.
    pub fn run(
        &self,
        task: &Task,
        data: &TaskData,
        limit: Option<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<TaskResult, EvalError> {
        let count = limit.unwrap_or(usize::MAX).min(data.rows());
        let all: Vec<usize> = (0..count).collect();
        let documents = documents(task, &data.rows, &all)?;
        let requests = row_requests(task, data, &documents)?;
        let (answers, cost) = match task.output {
            OutputType::GenerateUntil => self.generated(task, &requests, progress)?,
            _ => self.scored(&requests, progress)?,
        };
        let mut samples = Vec::new();
        for chain in &task.filters {
            for (at, answer) in answers.iter().enumerate() {
                let (row, document) = (&data.rows.rows[at], &documents[at]);
                let metrics: Result<RowMetrics, _> = match answer {
                    RowAnswer::Scores(scores) => of_scores(task, row, document, scores),
                    RowAnswer::Rolling(log) => of_rolling(task, row, document, *log),
                    RowAnswer::Text(text) => Ok(of_text(task, document, &chain.apply(text))),
                };
                samples.push(SampleResult {
                    doc_id: at,
                    doc: row.clone(),
                    arguments: arguments(&requests[at]),
                    responses: responses(answer, |text| chain.apply(text)),
                    filter: chain.name.clone(),
                    metrics: metrics.map_err(|(field, what)| data.rows.wrong(at, &field, what))?,
                });
            }
        }
        let metrics = summary(task, &samples);
        Ok(TaskResult { metrics, samples, rows: count, ..cost })
    }

    fn encoder(&self) -> RequestEncoder<'_> {
        let max_length = self.model.spec().max_position_embeddings;
        RequestEncoder { tokenizer: self.tokenizer, bos: self.bos, max_length }
    }

    fn scored(
        &self,
        requests: &[RowRequest],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Vec<RowAnswer>, TaskResult), EvalError> {
        let Asked { encoded, counts } = self.encode(requests)?;
        let scored = score_requests(self.model, self.threads, &encoded, progress)?;
        let mut rest = scored.scores.as_slice();
        let answers = requests.iter().zip(counts).map(|(request, count)| {
            let (own, after) = rest.split_at(count);
            rest = after;
            match request {
                RowRequest::Rolling(_) => {
                    RowAnswer::Rolling(own.iter().map(|it| it.loglikelihood).sum())
                }
                _ => RowAnswer::Scores(own.to_vec()),
            }
        });
        let answers = answers.collect();
        let cost = TaskResult {
            truncated: scored.truncated,
            computed_tokens: scored.computed_tokens,
            request_tokens: scored.request_tokens,
            ..TaskResult::nothing()
        };
        Ok((answers, cost))
    }

    /// Rows are encoded on as many threads as the model is computed on.
    fn encode(&self, requests: &[RowRequest]) -> Result<Asked, EvalError> {
        let encoder = self.encoder();
        let one = |request: &RowRequest| match request {
            RowRequest::Score(pairs) => score_pairs(&encoder, pairs),
            RowRequest::Rolling(text) => encoder.rolling(text),
            RowRequest::Generate(_) => Ok(Vec::new()),
        };
        let share = requests.len().div_ceil(self.threads.count()).max(1);
        let found: Vec<Result<Vec<TokenRequest>, EvalError>> = std::thread::scope(|scope| {
            let work = |rows: &'_ [RowRequest]| rows.iter().map(one).collect::<Vec<_>>();
            let workers: Vec<_> =
                requests.chunks(share).map(|rows| scope.spawn(move || work(rows))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
        });
        let rows: Vec<Vec<TokenRequest>> = found.into_iter().collect::<Result<_, _>>()?;
        let counts = rows.iter().map(Vec::len).collect();
        Ok(Asked { encoded: rows.into_iter().flatten().collect(), counts })
    }

    fn generated(
        &self,
        task: &Task,
        requests: &[RowRequest],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Vec<RowAnswer>, TaskResult), EvalError> {
        let (encoder, limits) = (self.encoder(), &task.limits);
        let (mut prompts, mut truncated) = (Vec::new(), 0);
        for request in requests {
            let RowRequest::Generate(text) = request else { continue };
            let (prompt, cut) = encoder.prompt(text, limits.max_tokens)?;
            truncated += usize::from(cut);
            let (until, max_tokens) = (limits.until.clone(), limits.max_tokens);
            prompts.push(PromptRequest { prompt, until, max_tokens });
        }
        let (model, tokenizer) = (self.model, self.tokenizer);
        let texts =
            continue_prompts(model, tokenizer, self.threads, &prompts, self.stop_ids, progress)?;
        let request_tokens = prompts.iter().map(|it| it.prompt.len()).sum();
        let cost = TaskResult { truncated, request_tokens, ..TaskResult::nothing() };
        Ok((texts.into_iter().map(RowAnswer::Text).collect(), cost))
    }
}

impl TaskResult {
    fn nothing() -> Self {
        Self {
            metrics: Vec::new(),
            samples: Vec::new(),
            rows: 0,
            truncated: 0,
            computed_tokens: 0,
            request_tokens: 0,
        }
    }
}

/// Continuations of neighbouring equal contexts are encoded with one context.
fn score_pairs(
    encoder: &RequestEncoder,
    pairs: &[(String, String)],
) -> Result<Vec<TokenRequest>, EvalError> {
    let mut all = Vec::with_capacity(pairs.len());
    for same in pairs.chunk_by(|a, b| a.0 == b.0) {
        let after: Vec<&str> = same.iter().map(|(_, after)| after.as_str()).collect();
        all.extend(encoder.pairs(&same[0].0, &after)?);
    }
    Ok(all)
}

/// What is asked about each row, with its examples.
fn row_requests(
    task: &Task,
    data: &TaskData,
    documents: &[RowDocument],
) -> Result<Vec<RowRequest>, EvalError> {
    let pool = data.pool.as_ref().unwrap_or(&data.rows);
    let chosen = shots(task, &data.rows, documents.len(), pool)?;
    let mut used: Vec<usize> = chosen.iter().flatten().copied().collect();
    used.sort_unstable();
    used.dedup();
    let examples = self::documents(task, pool, &used)?;
    let mut texts = Vec::with_capacity(used.len());
    for (at, example) in used.iter().zip(&examples) {
        texts.push(shot(task, example).map_err(|what| pool.wrong(*at, "example", what))?);
    }
    let text = |at: &usize| texts[used.binary_search(at).expect("used")].as_str();
    let rows = documents.iter().zip(chosen).enumerate();
    rows.map(|(at, (document, chosen))| {
        let before: String = chosen.iter().map(text).collect();
        request(task, document, &before).map_err(|what| data.rows.wrong(at, "prompt", what))
    })
    .collect()
}

fn arguments(request: &RowRequest) -> Value {
    match request {
        RowRequest::Score(pairs) => json!(pairs),
        RowRequest::Rolling(text) | RowRequest::Generate(text) => json!([[text]]),
    }
}

fn responses(answer: &RowAnswer, filtered: impl Fn(&str) -> String) -> Value {
    match answer {
        RowAnswer::Scores(scores) => {
            scores.iter().map(|it| json!([it.loglikelihood, it.is_greedy])).collect()
        }
        RowAnswer::Rolling(log) => json!([log]),
        RowAnswer::Text(text) => json!([text, filtered(text)]),
    }
}

/// The score of every metric that rows have, filter after filter.
fn summary(task: &Task, samples: &[SampleResult]) -> Vec<MetricResult> {
    let mut results = Vec::new();
    for chain in &task.filters {
        for metric in &task.metrics {
            let own = samples.iter().filter(|sample| sample.filter == chain.name);
            let values: Vec<MetricValue> = own
                .flat_map(|sample| &sample.metrics)
                .filter(|(name, _)| *name == metric.name)
                .map(|(_, value)| *value)
                .collect();
            if values.is_empty() {
                continue;
            }
            results.push(MetricResult {
                metric: metric.name.clone(),
                filter: chain.name.clone(),
                score: metric.aggregation.score(&values),
                stderr: metric.aggregation.stderr(&values),
                higher_is_better: metric.higher_is_better,
            });
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Selection;

    /// Contexts, continuations and drawn examples are the texts that the harness wrote for the same rows
    /// (`scripts/eval_prompts.py`).
    #[test]
    fn the_prompts_are_those_of_the_harness() {
        let cases: Value = serde_json::from_str(include_str!("../tests/prompts.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 13);
        for case in cases {
            let dir = tempfile::tempdir().unwrap();
            let name = case["task"].as_str().unwrap();
            let task = Selection::of(&[name.to_owned()]).unwrap().tasks.remove(0);
            let task = task.with_num_fewshot(case["shots"].as_u64().unwrap() as usize);
            let folder = dir.path().join(&task.dataset_path);
            fs_err::create_dir_all(&folder).unwrap();
            for (split, rows) in case["splits"].as_object().unwrap() {
                fs_err::write(folder.join(format!("{split}.json")), rows.to_string()).unwrap();
            }
            let data = TaskData::read(&task, dir.path()).unwrap();
            let theirs = case["asked"].as_array().unwrap();
            let all: Vec<usize> = (0..theirs.len()).collect();
            let documents = documents(&task, &data.rows, &all).unwrap();
            let requests = row_requests(&task, &data, &documents).unwrap();
            let asked: Vec<Value> = requests.iter().map(arguments).collect();
            assert_eq!(&asked, theirs, "{name}");
        }
    }
}
