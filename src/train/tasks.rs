//! Benchmarks in training: the model is packed in memory, as its export would be, and asked what
//! `bitnet eval` would ask it.

use bitnet_engine::{HeadPrecision, Model, ThreadPool};
use bitnet_eval::{AskedModel, Benchmark, BenchmarkScore, EvalError};
use bitnet_format::adapter::AdapterKind;

use super::context::RunContext;
use super::open::contradiction;
use crate::error::TrainError;
use crate::model::{LanguageModel, LiveModel};
use crate::monitor::Monitor;
use crate::recipe::{EvalTasks, Recipe};
use crate::story_tasks::open_benchmark;

/// Finds the tasks of a recipe, with their rows.
///
/// # Errors
/// An unknown task, a task without data, a broken row.
pub(super) fn open(recipe: &Recipe) -> Result<Option<Benchmark>, TrainError> {
    let EvalTasks { names, data, limit, .. } = &recipe.eval.tasks;
    if names.is_empty() {
        return Ok(None);
    }
    match open_benchmark(names, data.as_deref(), *limit) {
        Err(error) if error.is_usage() => {
            Err(contradiction(recipe, "eval.tasks", error.to_string()))
        }
        opened => Ok(Some(opened?)),
    }
}

/// Asks a model all tasks of `benchmark`; `None` when a signal interrupts.
///
/// # Errors
/// A row or a template that cannot be used.
pub(super) fn ask(
    context: &RunContext,
    benchmark: &Benchmark,
    model: &LanguageModel,
    monitor: &mut dyn Monitor,
) -> Result<Option<Vec<BenchmarkScore>>, TrainError> {
    let live = LiveModel::new(&context.spec, model);
    let packed = Model::from_stored(&live, HeadPrecision::File)?;
    let packed = match &context.adapter {
        Some(one) if one.description.kind == AdapterKind::Side => {
            packed.with_adapter(&live.adapter(&one.description, &one.adapted))?
        }
        _ => packed,
    };
    drop(live);
    let threads = ThreadPool::new(rayon::current_num_threads())?;
    let mut progress = |task: &str, done, all| {
        monitor.progress(task, done as u64, all as u64);
        context.signals.flow()
    };
    let (tokenizer, chat) = (&context.tokenizer, Some(&context.chat));
    let asked = AskedModel { model: &packed, tokenizer, chat, threads: &threads };
    match benchmark.run(asked, &mut progress) {
        Err(EvalError::Interrupted) => Ok(None),
        ran => Ok(Some(ran?)),
    }
}
