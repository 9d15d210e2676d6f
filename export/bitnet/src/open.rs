//! Opening what a command names: the model, its tokenizer, the pool of threads.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Context;
use bitnet_engine::{CachePrecision, HeadPrecision, KvCache, Model, Threads};
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_text::Tokenizer;

use crate::cli::{Cache, CacheArgs, Head, ThreadArgs};
use crate::failure::BadInput;

/// Says plainly that there is nothing at a path.
pub(crate) fn check_path(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let what = "does not exist; expected a model folder or a GGUF file";
    Err(BadInput(format!("{}: {what}", path.display())).into())
}

/// The model at a path.
pub(crate) fn model(path: &Path, head: Head) -> anyhow::Result<Model> {
    check_path(path)?;
    Ok(Model::load_with(path, precision(head))?)
}

/// How the head is to be held.
pub(crate) fn precision(head: Head) -> HeadPrecision {
    match head {
        Head::File => HeadPrecision::File,
        Head::Int8 => HeadPrecision::Int8,
    }
}

/// An empty context for a model.
pub(crate) fn cache(model: &Model, args: &CacheArgs) -> KvCache {
    let precision = match args.cache {
        Cache::F32 => CachePrecision::F32,
        Cache::F16 => CachePrecision::F16,
    };
    KvCache::with_precision(model.spec(), precision)
}

/// The tokenizer that a model brings and that fits it.
pub(crate) fn tokenizer(path: &Path, model: &Model) -> anyhow::Result<Tokenizer> {
    let file = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_owned() };
    let missing = || BadInput(format!("{}: holds no tokenizer", file.display()));
    let tokenizer = Tokenizer::of_model(path)?.ok_or_else(missing)?;
    let (tokens, limit) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if tokens > limit {
        let what = format!("has ids up to {}; expected below the model's {limit}", tokens - 1);
        return Err(BadInput(format!("{} [model.vocab]: {what}", file.display())).into());
    }
    Ok(tokenizer)
}

/// The one team of threads of the process.
pub(crate) fn threads(args: &ThreadArgs) -> anyhow::Result<Threads> {
    let all = || available_parallelism().map_or(1, usize::from);
    let count = args.threads.map_or_else(all, usize::from);
    Threads::new(count).context("cannot start the worker threads")
}
