//! One task from its rows to its scores.

use bitnet_engine::{Model, SamplerSettings, ThreadPool};
use bitnet_text::Tokenizer;
use serde_json::{Value, json};

use crate::code_runner::CodeRunner;
use crate::data::DataFile;
use crate::document::documents;
use crate::encode::{BosPolicy, RequestEncoder, TokenRequest};
use crate::error::EvalError;
use crate::functions::{ResultsFunction, ScoringAids};
use crate::generation::{PromptRequest, continue_prompts};
use crate::metrics::MetricValue;
use crate::progress::ProgressCallback;
use crate::prompt::{ChatPrompt, RowRequest};
use crate::requests::{ChatPrompts, arguments, row_requests};
use crate::scheduler::{ContinuationScore, score_requests};
use crate::scoring::{RowMetrics, of_rolling, of_scores, of_text};
use crate::task::{OutputType, Task};
use crate::task_data::TaskData;

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
    /// How prompts become conversations; as they are where there is none.
    pub chat: Option<ChatPrompts<'a>>,
    /// What runs code that the model wrote, where that is allowed.
    pub code: Option<&'a CodeRunner>,
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
    /// Whether the score is in percent, as SQuAD's script has it.
    pub is_percent: bool,
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
    /// What was generated, and the log-likelihood of a continuation beside it where one is asked
    /// for.
    Text(String, Option<f64>),
}

/// The token requests of a task.
struct Asked {
    encoded: Vec<TokenRequest>,
    /// How many of them belong to each row.
    counts: Vec<usize>,
}

impl Evaluator<'_> {
    /// Runs a task on its first rows, all of them without a limit. `progress` gets what is done and
    /// what is to do, in tokens or in prompts, and may end it.
    ///
    /// # Errors
    /// A row or a template that cannot be used, a prompt that leaves no room for an answer.
    pub fn run(
        &self,
        task: &Task,
        data: &TaskData,
        limit: Option<usize>,
        progress: ProgressCallback<'_>,
    ) -> Result<TaskResult, EvalError> {
        self.check(task)?;
        let count = limit.unwrap_or(usize::MAX).min(data.rows());
        let all: Vec<usize> = (0..count).collect();
        // All texts are made before the model computes: a mistake in a template or a row costs no
        // time.
        let documents = documents(task, &data.rows, &all)?;
        let requests = row_requests(task, data, &documents, self.chat)?;
        let (answers, cost) = match task.output {
            OutputType::GenerateUntil => self.generated(task, &requests, progress)?,
            _ => self.scored(&data.rows, &requests, progress)?,
        };
        let mut samples = Vec::new();
        // The model answers once; each filter reads the same answers and has scores of its own.
        for chain in &task.filters {
            for (at, answer) in answers.iter().enumerate() {
                let (row, document) = (&data.rows.rows[at], &documents[at]);
                let metrics: Result<RowMetrics, _> = match answer {
                    RowAnswer::Scores(scores) => of_scores(task, row, document, scores),
                    RowAnswer::Rolling(log) => of_rolling(task, row, document, *log),
                    RowAnswer::Text(text, beside) => {
                        let aids = ScoringAids { code: self.code, beside: *beside };
                        of_text(task, row, document, &chain.apply(text), aids)
                    }
                };
                samples.push(SampleResult {
                    doc_id: at,
                    doc: row.clone(),
                    arguments: arguments(task, &requests[at]),
                    responses: responses(answer, |text| chain.apply(text)),
                    filter: chain.name.clone(),
                    metrics: metrics.map_err(|(field, what)| data.rows.wrong(at, &field, what))?,
                });
            }
        }
        let metrics = summary(task, &samples);
        Ok(TaskResult { metrics, samples, rows: count, ..cost })
    }

    /// Whether a task can be asked with these settings.
    ///
    /// # Errors
    /// Programs that may not run.
    pub fn check(&self, task: &Task) -> Result<(), EvalError> {
        if self.code.is_none() && task.runs_code() {
            let what = "runs programs that the model wrote; allow it with --allow-code-execution";
            return Err(EvalError::setting(&task.name, what));
        }
        Ok(())
    }

    fn encoder(&self) -> RequestEncoder<'_> {
        let max_length = self.model.spec().context_length();
        RequestEncoder { tokenizer: self.tokenizer, bos: self.bos, max_length }
    }

    fn scored(
        &self,
        rows: &DataFile,
        requests: &[RowRequest],
        progress: ProgressCallback<'_>,
    ) -> Result<(Vec<RowAnswer>, TaskResult), EvalError> {
        let Asked { encoded, counts } = self.encode(rows, requests)?;
        let scored = score_requests(self.model, self.threads, &encoded, progress)?;
        // The scores come in one list in the order of the requests; each row takes its own off the
        // front.
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
    fn encode(&self, rows: &DataFile, requests: &[RowRequest]) -> Result<Asked, EvalError> {
        let encoder = self.encoder();
        let one = |request: &RowRequest| match request {
            RowRequest::Score(pairs) => score_pairs(&encoder, pairs),
            RowRequest::Rolling(text) => encoder.rolling(text),
            RowRequest::ScoreAnswers(prompts) => score_answers(&encoder, prompts),
            RowRequest::Generate(_) | RowRequest::Prompt(_) => Ok(Vec::new()),
        };
        // In consecutive parts, so that joining the results in order gives the order of the rows.
        let share = requests.len().div_ceil(self.threads.count()).max(1);
        let found: Vec<Result<Vec<TokenRequest>, EvalError>> = std::thread::scope(|scope| {
            let work = |part: &'_ [RowRequest]| part.iter().map(one).collect::<Vec<_>>();
            let workers: Vec<_> =
                requests.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
        });
        let located = found.into_iter().enumerate();
        let located = located.map(|(at, found)| found.map_err(|error| error.of_row(rows, at)));
        let found: Vec<Vec<TokenRequest>> = located.collect::<Result<_, _>>()?;
        let counts = found.iter().map(Vec::len).collect();
        Ok(Asked { encoded: found.into_iter().flatten().collect(), counts })
    }

    fn generated(
        &self,
        task: &Task,
        requests: &[RowRequest],
        progress: ProgressCallback<'_>,
    ) -> Result<(Vec<RowAnswer>, TaskResult), EvalError> {
        let (encoder, limits) = (self.encoder(), &task.limits);
        let (mut prompts, mut truncated) = (Vec::new(), 0);
        for request in requests {
            let ids = match request {
                RowRequest::Generate(text) => encoder.text(text)?,
                RowRequest::Prompt(prompt) => prompt.ids.clone(),
                _ => continue,
            };
            let (prompt, cut) = encoder.prompt(ids, limits.max_tokens)?;
            truncated += usize::from(cut);
            let (until, max_tokens) = (limits.until.clone(), limits.max_tokens);
            let sampler = SamplerSettings::greedy();
            prompts.push(PromptRequest { prompt, until, max_tokens, sampler });
        }
        let (model, tokenizer) = (self.model, self.tokenizer);
        let texts =
            continue_prompts(model, tokenizer, self.threads, &prompts, self.stop_ids, progress)?;
        let mut request_tokens = prompts.iter().map(|it| it.prompt.len()).sum();
        let mut beside = vec![None; texts.len()];
        if let Some(after) = task.process_results.and_then(ResultsFunction::scored_beside) {
            let asked = self.asked_beside(requests, after)?;
            let scored = score_requests(model, self.threads, &asked, progress)?;
            beside = scored.scores.iter().map(|score| Some(score.loglikelihood)).collect();
            truncated += scored.truncated;
            request_tokens += scored.request_tokens;
        }
        let cost = TaskResult { truncated, request_tokens, ..TaskResult::nothing() };
        let answers = texts.into_iter().zip(beside);
        Ok((answers.map(|(text, beside)| RowAnswer::Text(text, beside)).collect(), cost))
    }

    /// The same continuation after the prompt of each row.
    fn asked_beside(
        &self,
        requests: &[RowRequest],
        after: &str,
    ) -> Result<Vec<TokenRequest>, EvalError> {
        let encoder = self.encoder();
        let open = self.chat.map_or("", |chat| chat.template.before_answer());
        let mut all = Vec::with_capacity(requests.len());
        for request in requests {
            all.extend(match request {
                RowRequest::Generate(text) => encoder.pairs(text, &[after])?,
                RowRequest::Prompt(prompt) => {
                    encoder.answers(&prompt.ids, &[&format!("{open}{after}")])?
                }
                _ => continue,
            });
        }
        Ok(all)
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
    // The choices of a question share its context, which is often long (examples): encoded once.
    for same in pairs.chunk_by(|a, b| a.0 == b.0) {
        let after: Vec<&str> = same.iter().map(|(_, after)| after.as_str()).collect();
        all.extend(encoder.pairs(&same[0].0, &after)?);
    }
    Ok(all)
}

fn score_answers(
    encoder: &RequestEncoder,
    prompts: &[(ChatPrompt, Vec<String>)],
) -> Result<Vec<TokenRequest>, EvalError> {
    let mut all = Vec::new();
    for (prompt, answers) in prompts {
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        all.extend(encoder.answers(&prompt.ids, &answers)?);
    }
    Ok(all)
}

fn responses(answer: &RowAnswer, filtered: impl Fn(&str) -> String) -> Value {
    match answer {
        RowAnswer::Scores(scores) => {
            scores.iter().map(|it| json!([it.loglikelihood, it.is_greedy])).collect()
        }
        RowAnswer::Rolling(log) => json!([log]),
        RowAnswer::Text(text, None) => json!([text, filtered(text)]),
        RowAnswer::Text(text, Some(log)) => json!([text, filtered(text), log]),
    }
}

/// The score of every metric that rows have, filter after filter.
fn summary(task: &Task, samples: &[SampleResult]) -> Vec<MetricResult> {
    let mut results = Vec::new();
    for chain in &task.filters {
        for metric in &task.metrics {
            // A metric that no row has (another kind of task has it) makes no score rather than a
            // 0.
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
                is_percent: metric.aggregation.is_percent(),
                higher_is_better: metric.higher_is_better,
            });
        }
    }
    results
}
