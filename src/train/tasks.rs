//! Benchmarks in training: the model is packed in memory, as its export would be, and asked what
//! `bitnet eval` would ask it.

use std::path::Path;

use bitnet_engine::{HeadPrecision, Model, ThreadPool};
use bitnet_eval::{Benchmark, BenchmarkScore, MetricResult};
use serde_json::{Map, Value, json};

use super::context::RunContext;
use super::open::contradiction;
use crate::error::TrainError;
use crate::model::{LanguageModel, LiveModel};
use crate::monitor::Monitor;
use crate::recipe::{EvalTasks, Recipe};

/// Finds the tasks of a recipe, with their rows.
///
/// # Errors
/// An unknown task, a task without data, a broken row.
pub(super) fn open(recipe: &Recipe) -> Result<Option<Benchmark>, TrainError> {
    let EvalTasks { names, data, limit, .. } = &recipe.eval.tasks;
    let Some(data) = data.as_ref().filter(|_| !names.is_empty()) else { return Ok(None) };
    match Benchmark::open(names, data, *limit) {
        Err(error) if error.is_usage() => {
            Err(contradiction(recipe, "eval.tasks", error.to_string()))
        }
        opened => Ok(Some(opened?)),
    }
}

/// Asks a model all tasks of `benchmark`.
///
/// # Errors
/// A row or a template that cannot be used.
pub(super) fn ask(
    context: &RunContext,
    benchmark: &Benchmark,
    model: &LanguageModel,
    monitor: &mut dyn Monitor,
) -> Result<Vec<BenchmarkScore>, TrainError> {
    let live = LiveModel::new(&context.spec, model);
    let packed = Model::from_stored(&live, Path::new("the model"), HeadPrecision::File)?;
    drop(live);
    let threads = ThreadPool::new(rayon::current_num_threads())?;
    let mut progress = |task: &str, done, all| monitor.progress(task, done as u64, all as u64);
    Ok(benchmark.run(&packed, &context.tokenizer, &threads, &mut progress)?)
}

/// The scores as a line of `metrics.jsonl` has them: by task, with standard errors beside them.
pub(super) fn as_json(scores: &[BenchmarkScore]) -> Value {
    let of_task = |score: &BenchmarkScore| {
        let mut figures = Map::from_iter([("rows".to_owned(), json!(score.rows))]);
        for metric in &score.metrics {
            figures.insert(metric.metric.clone(), json!(metric.score));
            figures.insert(format!("{}_stderr", metric.metric), json!(metric.stderr));
        }
        (score.name.clone(), Value::Object(figures))
    };
    scores.iter().map(of_task).collect::<Map<_, _>>().into()
}

/// One line for a person.
pub(super) fn in_words(score: &BenchmarkScore) -> String {
    let of_metric = |metric: &MetricResult| match metric.stderr {
        Some(stderr) => format!("{} {:.4} ± {stderr:.4}", metric.metric, metric.score),
        None => format!("{} {:.4}", metric.metric, metric.score),
    };
    let metrics: Vec<_> = score.metrics.iter().map(of_metric).collect();
    format!("{}: {} over {} rows", score.name, metrics.join(", "), score.rows)
}
