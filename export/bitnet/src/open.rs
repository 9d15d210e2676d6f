//! Opens what a command names: the model, its tokenizer, the thread pool.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Context;
use bitnet_engine::{CachePrecision, HeadPrecision, Kernel, KvCache, Model, ThreadPool};
use bitnet_format::adapter::{Adapter, AdapterKind};
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::foreign::missing_tokenizer;
use bitnet_format::report::reading_warnings;
use bitnet_format::{Shown, StoredModel, model_hash};
use bitnet_kernels::huge_page_bytes;
use bitnet_text::Tokenizer;

use crate::cli::{AdapterArgs, CacheArg, CacheArgs, HeadArg, ThreadArgs};
use crate::failure::BadInput;
use crate::output::note;

/// The model at a path, with its adapter if one is named; says what is hardly meant in it.
pub(crate) fn model(path: &Path, head: HeadArg, adapter: &AdapterArgs) -> anyhow::Result<Model> {
    let stored = StoredModel::open(path)?;
    let model = adapted(&stored, path, head, adapter)?;
    for line in reading_warnings(&stored, model.all_zero()) {
        note(&line);
    }
    Ok(model)
}

fn adapted(
    stored: &StoredModel,
    path: &Path,
    head: HeadArg,
    adapter: &AdapterArgs,
) -> anyhow::Result<Model> {
    let Some(adapter) = &adapter.adapter else {
        return Ok(Model::from_stored(stored, precision(head))?);
    };
    let adapter = Adapter::open(adapter, stored.spec())?;
    let description = adapter.description();
    // Reading the model twice is for adapters that say where they belong.
    let says_base = description.kind == AdapterKind::Side && description.base_hash.is_some();
    if says_base && !adapter.may_be_of(&model_hash(path, stored)?) {
        note(&other_base(path, &adapter));
    }
    Ok(Model::from_adapted(stored, path, &adapter, precision(head))?)
}

/// Packed and GGUF forms of one model have different hashes, so this is not an error.
fn other_base(path: &Path, adapter: &Adapter) -> String {
    format!(
        "warning: {}: was trained on other files ({}) than {}; right if these hold the same model in \
         another form",
        adapter.path().shown(),
        adapter.description().base_path,
        path.shown()
    )
}

/// The precision of the head.
pub(crate) fn precision(head: HeadArg) -> HeadPrecision {
    match head {
        HeadArg::File => HeadPrecision::File,
        HeadArg::Int8 => HeadPrecision::Int8,
    }
}

/// An empty context for a model.
pub(crate) fn cache(model: &Model, args: &CacheArgs) -> KvCache {
    KvCache::with_precision(model.spec(), cache_precision(args))
}

/// The numbers that a context holds.
pub(crate) fn cache_precision(args: &CacheArgs) -> CachePrecision {
    match args.cache {
        CacheArg::F32 => CachePrecision::F32,
        CacheArg::F16 => CachePrecision::F16,
    }
}

/// The tokenizer stored with a model; it must fit the model's vocabulary.
pub(crate) fn tokenizer(path: &Path, model: &Model) -> anyhow::Result<Tokenizer> {
    let file = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_owned() };
    let missing = || missing_tokenizer(path, "put the tokenizer.json it was trained with there");
    let tokenizer = Tokenizer::of_model(path)?.ok_or_else(missing)?;
    if let Some(assumed) = tokenizer.assumed() {
        note(&format!("note: {}: {assumed}", file.shown()));
    }
    // Fewer are fine: embeddings are often padded to a round number of rows.
    let (tokens, limit) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if tokens > limit {
        let what = format!("has ids up to {}; expected below the model's {limit}", tokens - 1);
        return Err(BadInput(format!("{} [model.vocab]: {what}", file.shown())).into());
    }
    Ok(tokenizer)
}

/// The process's thread pool, to compute `model` with.
pub(crate) fn threads(args: &ThreadArgs, model: &Model) -> anyhow::Result<ThreadPool> {
    if args.verbose {
        note(&backend_info(model, count(args)));
    }
    ThreadPool::new(count(args)).context("cannot start the worker threads")
}

/// The number of threads of a command.
pub(crate) fn count(args: &ThreadArgs) -> usize {
    let all = || available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(all, usize::from)
}

pub(crate) fn backend_info(model: &Model, threads: usize) -> String {
    let all: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
    let pages = match huge_page_bytes() {
        None => "huge pages: unknown on this system".to_owned(),
        Some(0) => "no huge pages available, weights on small pages".to_owned(),
        Some(bytes) => format!("{} MB on huge pages", bytes / 1_000_000),
    };
    let kernel = model.kernel().name();
    format!("kernel {kernel} (of {}), {threads} threads, {pages}", all.join(", "))
}
