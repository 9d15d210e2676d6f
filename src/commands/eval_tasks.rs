//! `bitnet-train eval --tasks`: the benchmarks of a master or a checkpoint, packed in memory as its
//! export would be, alone or with an adapter.

use std::path::Path;

use anyhow::Result;
use bitnet_engine::{HeadPrecision, Model, ThreadPool};
use bitnet_eval::{AskedModel, Benchmark, BenchmarkScore, EvalError, Selection, needed_splits};
use bitnet_format::adapter::{Adapter, AdapterKind};
use bitnet_format::{StoredModel, model_hash};
use bitnet_terminal::EtaLine;
use bitnet_text::ChatTemplate;
use bitnet_train::platform::Signals;
use bitnet_train::story_tasks::{is_generated, open_benchmark};
use bitnet_train::train::TrainError;

use super::{print_json, print_line, set_threads};
use crate::cli::EvalArgs;
use crate::failure::Usage;

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    set_threads(args.threads)?;
    let signals = Signals::listen().map_err(TrainError::from)?;
    let benchmark = open(args)?;
    let path = args.model.path();
    let tokenizer = super::tokenizer_of(path)?;
    let model = packed(path, args.adapter.as_deref())?;
    let threads = ThreadPool::new(rayon::current_num_threads()).map_err(TrainError::from)?;
    let mut line: Option<(String, EtaLine)> = None;
    let chat = ChatTemplate::of_model(path, &tokenizer).map_err(TrainError::from)?;
    let (tokenizer, chat) = (&tokenizer, Some(&chat));
    let asked = AskedModel { model: &model, tokenizer, chat, threads: &threads };
    let ran = benchmark.run(asked, &mut |task, done, all| {
        // Another task has begun: the line of the one before gets its end.
        if line.as_ref().is_none_or(|(name, _)| name != task) {
            line.take().map(|(_, line)| line.finish());
        }
        line.get_or_insert_with(|| (task.to_owned(), EtaLine::new(task))).1.show(done, all);
        signals.flow()
    });
    line.map(|(_, line)| line.finish());
    if let (Err(EvalError::Interrupted), Some(stop)) = (&ran, signals.stop()) {
        return Err(TrainError::ExportStopped(stop).into());
    }
    let scores = ran.map_err(TrainError::from)?;
    if args.json {
        print_json(&BenchmarkScore::as_json(&scores));
    } else {
        for score in &scores {
            print_line(&score.to_string());
        }
    }
    Ok(())
}

/// The model as `bitnet` would run it: packed, a latent adapter merged, a side adapter beside it.
fn packed(path: &Path, adapter: Option<&Path>) -> Result<Model, TrainError> {
    let folder = StoredModel::open(path)?;
    let Some(adapter) = adapter else {
        return Ok(Model::from_stored(&folder, HeadPrecision::File)?);
    };
    let adapter = Adapter::open(adapter, folder.spec())?;
    if adapter.description().kind == AdapterKind::Side {
        adapter.require_base(path, &model_hash(path, &folder)?)?;
    }
    Ok(Model::from_adapted(&folder, path, &adapter, HeadPrecision::File)?)
}

/// Finds the tasks and all their rows before the model is read.
fn open(args: &EvalArgs) -> Result<Benchmark> {
    let data = match args.data.as_slice() {
        [data] => Some(Path::new(data)),
        [] if args.tasks.iter().all(|name| is_generated(name)) => None,
        found => {
            if found.is_empty() {
                refuse_unknown(&args.tasks)?;
            }
            return Err(Usage("--data: expected one folder with --tasks".to_owned()).into());
        }
    };
    Ok(open_benchmark(&args.tasks, data, args.limit).map_err(TrainError::from)?)
}

/// A name that is no task needs no folder to be told.
fn refuse_unknown(names: &[String]) -> Result<()> {
    let names = names.iter().filter(|name| !is_generated(name)).cloned();
    let selection = Selection::of(&names.collect::<Vec<_>>()).map_err(TrainError::from)?;
    needed_splits(&selection).map_err(TrainError::from)?;
    Ok(())
}
