//! A task as its file declares it: which data, how a row becomes a prompt, what is counted.

use bitnet_text::RowTemplate;
use serde_json::Value;

use crate::filters::{ExactMatch, FilterChain};
use crate::functions::{ResultsFunction, RowFunction};
use crate::metrics::Aggregation;

/// The kind of request that a task makes of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// The log-likelihoods of several continuations.
    MultipleChoice,
    /// The log-likelihood of one continuation.
    Loglikelihood,
    /// The log-likelihood of a whole text.
    LoglikelihoodRolling,
    /// A text.
    GenerateUntil,
}

/// Where a value of a row comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A field if rows have one of this name, otherwise a template.
    Text(String, RowTemplate),
    List(Vec<String>),
    Number(i64),
    Function(RowFunction),
}

/// How few-shot examples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShotChoice {
    /// Python's `random.sample`, with the seed of the harness.
    Drawn,
    FirstN,
}

/// A metric of a task.
#[derive(Clone, Debug)]
pub(crate) struct TaskMetric {
    pub(crate) name: String,
    pub(crate) aggregation: Aggregation,
    pub(crate) higher_is_better: bool,
    pub(crate) exact_match: ExactMatch,
}

/// The splits of a task's data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Splits {
    pub(crate) training: Option<String>,
    pub(crate) validation: Option<String>,
    pub(crate) test: Option<String>,
    pub(crate) fewshot: Option<String>,
}

impl Splits {
    /// The split whose rows are counted.
    pub(crate) fn evaluated(&self) -> Option<&str> {
        self.test.as_deref().or(self.validation.as_deref())
    }

    /// The split that few-shot examples come from.
    pub(crate) fn shots(&self) -> Option<&str> {
        // The harness's order of preference; examples from the evaluated split come last.
        let known = [&self.fewshot, &self.training, &self.validation, &self.test];
        known.into_iter().find_map(|split| split.as_deref())
    }

    /// Whether an example that equals the row in question is left out: where the harness compares
    /// the two splits and finds them equal, which it does if neither is named.
    pub(crate) fn shots_may_hold_the_row(&self) -> bool {
        self.fewshot == self.test
    }
}

/// When a generated text ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationLimits {
    pub(crate) until: Vec<String>,
    pub(crate) max_tokens: usize,
}

/// One benchmark, ready to run.
#[derive(Clone, Debug)]
pub struct Task {
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) dataset_path: String,
    pub(crate) dataset_name: Option<String>,
    pub(crate) splits: Splits,
    pub(crate) process_docs: Option<RowFunction>,
    pub(crate) output: OutputType,
    pub(crate) text: Source,
    pub(crate) target: Source,
    pub(crate) choice: Option<Source>,
    pub(crate) description: Option<RowTemplate>,
    pub(crate) target_delimiter: String,
    pub(crate) fewshot_delimiter: String,
    pub(crate) num_fewshot: usize,
    pub(crate) shot_choice: ShotChoice,
    /// Examples that the file itself has, where it names no split for them.
    pub(crate) samples: Vec<Value>,
    pub(crate) metrics: Vec<TaskMetric>,
    pub(crate) filters: Vec<FilterChain>,
    pub(crate) limits: GenerationLimits,
    pub(crate) process_results: Option<ResultsFunction>,
    pub(crate) version: Value,
    /// The file as it was read, includes resolved.
    pub(crate) config: Value,
}

impl Task {
    /// The name that it is asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Examples before each question.
    pub fn num_fewshot(&self) -> usize {
        self.num_fewshot
    }

    /// The same with another number of examples.
    #[must_use]
    pub fn with_num_fewshot(self, num_fewshot: usize) -> Self {
        Self { num_fewshot, ..self }
    }

    /// Whether the file itself has the examples.
    pub(crate) fn has_own_samples(&self) -> bool {
        !self.samples.is_empty() && self.splits.fewshot.is_none()
    }

    /// The split that examples are read from, where there are any.
    pub(crate) fn split_of_examples(&self) -> Option<&str> {
        self.splits.shots().filter(|_| self.num_fewshot > 0 && !self.has_own_samples())
    }

    /// Whether its scores come from running programs that the model wrote.
    pub fn runs_code(&self) -> bool {
        self.process_results.is_some_and(ResultsFunction::runs_code)
    }

    /// Identifies what is asked: a hash of the file with its includes.
    pub fn hash(&self) -> String {
        blake3::hash(self.config.to_string().as_bytes()).to_hex().to_string()
    }
}
