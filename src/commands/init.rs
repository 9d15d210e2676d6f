//! `bitnet-train init`: a randomly initialised BF16 master of any shape, to train from, to measure
//! with, or to try a conversion on.

use std::path::Path;

use anyhow::Result;
use bitnet_format::ModelSpec;
use bitnet_format::convert::hf;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::output::{OutputClaim, is_model};
use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_text::{ChatTemplate, TOKENIZER_CONFIG_FILE, Tokenizer};
use bitnet_train::model::FreshModel;
use bitnet_train::monitor::{Monitor, Terminal, Verbosity};
use bitnet_train::platform::Signals;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{print_json, print_line};
use crate::cli::InitArgs;

pub(crate) fn run(args: &InitArgs) -> Result<()> {
    let spec = ModelSpec::from_file(&args.config).map_err(TrainError::from)?;
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_file).transpose();
    let tokenizer = tokenizer.map_err(TrainError::from)?;
    if let Some(tokenizer) = &tokenizer {
        tokenizer.fits(spec.vocab_size).map_err(TrainError::from)?;
    }
    let signals = Signals::listen().map_err(TrainError::from)?;
    let monitor = &mut Terminal::new(Verbosity::Normal);
    let on_existing = if args.force { OnExisting::Replace } else { OnExisting::Refuse };
    let inputs: Vec<&Path> = args.tokenizer.iter().chain([&args.config]).map(|p| &**p).collect();
    let claim = OutputClaim::of(&args.out, on_existing, &inputs, is_model);
    let _claim = claim.map_err(TrainError::from)?;
    let staged = StagedDir::beside(&args.out, on_existing).map_err(TrainError::from)?;
    let fresh = FreshModel::new(spec, args.seed);
    let mut progress = |done: usize, total: usize| {
        monitor.progress("drawing", done as u64, total as u64);
        signals.stop().map_or(Ok(()), |_| Err(bitnet_format::FormatError::Interrupted))
    };
    // Values are drawn as they are written: a model larger than the memory can be made.
    hf::write_master(staged.path(), &fresh, &mut progress).map_err(|error| {
        signals.stop().map_or(TrainError::from(error), TrainError::ExportStopped)
    })?;
    if let Some(tokenizer) = tokenizer {
        fs_err::write(staged.path().join(TOKENIZER_FILE), tokenizer.json())?;
        let context = fresh.spec().context_length();
        let config = tokenizer.hf_config(Some(&ChatTemplate::b158()), context);
        let config = config.map_err(TrainError::from)?;
        fs_err::write(staged.path().join(TOKENIZER_CONFIG_FILE), config)?;
    }
    staged.publish().map_err(TrainError::from)?;
    let (out, parameters) = (args.out.display().to_string(), fresh.spec().parameters());
    if args.json {
        print_json(&json!({"out": out, "parameters": parameters}));
    } else {
        print_line(&format!("{out}: {parameters} parameters"));
    }
    Ok(())
}
