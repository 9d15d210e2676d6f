//! Opening what a command names: the model, its tokenizer, the pool of threads.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Context;
use bitnet_engine::Model;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_text::Tokenizer;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::cli::ThreadArgs;
use crate::failure::BadInput;

/// Says plainly what is wrong with a path that cannot be a model folder.
pub(crate) fn check_folder(path: &Path) -> anyhow::Result<()> {
    let what = if path.is_dir() {
        return Ok(());
    } else if path.exists() {
        "is a file; expected a model folder"
    } else {
        "does not exist; expected a model folder"
    };
    Err(BadInput(format!("{}: {what}", path.display())).into())
}

/// The packed model in a folder.
pub(crate) fn model(path: &Path) -> anyhow::Result<Model> {
    check_folder(path)?;
    Ok(Model::load(path)?)
}

/// The tokenizer that lies beside a model and fits it.
pub(crate) fn tokenizer(path: &Path, model: &Model) -> anyhow::Result<Tokenizer> {
    let path = path.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::from_file(&path)?;
    let (tokens, limit) = (tokenizer.vocab_size(), model.spec().vocab_size);
    if tokens > limit {
        let what = format!("has ids up to {}; expected below the model's {limit}", tokens - 1);
        return Err(BadInput(format!("{} [model.vocab]: {what}", path.display())).into());
    }
    Ok(tokenizer)
}

/// The one pool of the process.
pub(crate) fn threads(args: &ThreadArgs) -> anyhow::Result<ThreadPool> {
    let all = || available_parallelism().map_or(1, usize::from);
    let count = args.threads.map_or_else(all, usize::from);
    let pool = ThreadPoolBuilder::new().num_threads(count).build();
    pool.map_err(std::io::Error::other).context("cannot start the worker threads")
}
