//! Benchmarks of packed ternary models with the scores of lm-evaluation-harness 0.4.13.
//!
//! ```text
//! registry ─ task files ─┐                           ┌─ scheduler  log-likelihoods ─┐
//! data ─ rows ───────────┴─ document ─ prompt ─ encode                               ├─ scoring ─ metrics
//!                                                    └─ generation greedy texts ────┘
//! ```
//!
//! A [`Selection`] names tasks, [`open`] finds their rows, an [`Evaluator`] runs them on a model in
//! memory. A [`Benchmark`] does all that in one call.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

mod benchmark;
mod code_runner;
mod compare;
mod data;
mod document;
mod drop_answers;
mod encode;
mod english;
mod error;
mod evaluate;
mod filters;
#[cfg(test)]
mod fixtures;
mod functions;
mod generation;
mod instructions;
mod math_algebra;
mod math_answers;
mod math_formula;
mod math_minerva;
mod math_ratio;
mod math_value;
mod mersenne;
mod metrics;
mod mmlu;
mod mt_bench;
mod mt_judge;
mod needed;
mod open;
mod parquet_files;
mod prefix_tree;
mod progress;
mod prompt;
mod python;
mod registry;
mod rendered;
mod requests;
mod results;
mod rewritten_rows;
mod scheduler;
mod scoring;
mod squad_answers;
mod task;
mod task_data;
mod task_file;
mod task_keys;
mod yaml;

pub use benchmark::{AskedModel, Benchmark, BenchmarkScore, stop_ids};
pub use code_runner::CodeRunner;
pub use compare::{Difference, compare};
pub use encode::{BosPolicy, RequestEncoder, TokenRequest};
pub use error::EvalError;
pub use evaluate::{Evaluator, MetricResult, SampleResult, TaskResult};
pub use generation::{PromptRequest, continue_prompts};
pub use metrics::{Aggregation, MetricValue};
pub use mt_bench::{MtAnswer, MtQuestion, answer_questions};
pub use mt_judge::{JudgePrompts, JudgeRequest, judged_rating};
pub use needed::{NeededSplit, needed_splits};
pub use open::{OpenTask, open};
pub use progress::ProgressCallback;
pub use registry::{REPORT, ReportRow, Selection, TaskGroup, task_names};
pub use requests::ChatPrompts;
pub use results::{TaskRecord, group_metrics, harness_json, sample_json};
pub use scheduler::{ContinuationScore, Scored, score_requests};
pub use squad_answers::SpanScore;
pub use task::{OutputType, Task};
pub use task_data::TaskData;
