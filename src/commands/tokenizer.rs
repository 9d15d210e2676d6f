//! `bitnet-train tokenizer`: a byte-level BPE tokenizer from text.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::output::OutputClaim;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_text::{MAX_VOCAB, MIN_VOCAB, Tokenizer};
use bitnet_train::data::{DataError, DocumentSource, Encoding, TrainingTexts};
use bitnet_train::platform::Signals;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::data_flag::expanded;
use super::{print_json, print_line};
use crate::cli::TokenizerArgs;
use crate::failure::Usage;

pub(crate) fn run(args: &TokenizerArgs) -> Result<()> {
    Signals::end_at_once().map_err(TrainError::from)?;
    if !(MIN_VOCAB..=MAX_VOCAB).contains(&args.vocab_size) {
        let what =
            format!("--vocab-size: expected {MIN_VOCAB} to {MAX_VOCAB}, got {}", args.vocab_size);
        return Err(Usage(what).into());
    }
    let on_existing = if args.force { OnExisting::Replace } else { OnExisting::Refuse };
    // Signals end it at once; a download is taken up again where it broke off.
    let data = expanded(&args.data, "--data", &Signals::default())?;
    let inputs: Vec<&Path> = data.iter().map(PathBuf::as_path).collect();
    let is_tokenizer = |path: &Path| Tokenizer::from_file(path).is_ok();
    let claim = OutputClaim::of(&args.out, on_existing, &inputs, is_tokenizer);
    let _claim = claim.map_err(TrainError::from)?;
    let sources = [DocumentSource::files(data.clone())];
    let mut texts = TrainingTexts::new(&sources, &Encoding::Text);
    let mut bytes = 0;
    let counted = texts.by_ref().inspect(|text| bytes += text.len());
    let trained = bitnet_text::train_bpe(counted, args.vocab_size);
    // First: where a file could not be read, what was learned from those before it means nothing.
    texts.finish().map_err(TrainError::from)?;
    if bytes == 0 {
        return Err(no_text(&data).into());
    }
    let json = trained.map_err(TrainError::from)?;
    write_file(&args.out, &json, on_existing).map_err(TrainError::from)?;
    let written = Tokenizer::from_file(&args.out).map_err(TrainError::from)?;
    let (out, entries) = (args.out.display().to_string(), written.vocab_size());
    if args.json {
        print_json(&json!({"out": out, "entries": entries}));
    } else {
        print_line(&format!("{out}: {entries} entries"));
    }
    Ok(())
}

/// A tokenizer of nothing would be one of single bytes, and nobody asks for that.
fn no_text(files: &[PathBuf]) -> TrainError {
    let names: Vec<String> = files.iter().map(|path| path.shown().to_string()).collect();
    let (origin, others) = (names.join(", "), String::new());
    DataError::NoDocuments { origin, empty: 0, others }.into()
}
