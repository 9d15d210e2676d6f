//! `bitnet score`: log-probabilities of the sequences in a file.
//!
//! The whole file is checked before the first sequence is scored.

use std::path::Path;

use bitnet_engine::{Model, Scores, score};
use bitnet_format::Shown;
use bitnet_format::foreign::{FileRole, refuse, without_mark_bytes};
use bitnet_format::input::read_bytes;
use serde_json::json;

use crate::cli::ScoreArgs;
use crate::failure::BadInput;
use crate::open;
use crate::output::result_line;

pub(crate) fn run(args: &ScoreArgs) -> anyhow::Result<()> {
    let model = open::model(args.model.path(), args.head, &args.adapter)?;
    let sequences = read_sequences(&args.ids, &model)?;
    let threads = open::threads(&args.threads, &model)?;
    for sequence in &sequences {
        let scores = score(&model, sequence, &threads)?;
        let line = if args.json { as_json(&scores) } else { in_words(&scores) };
        result_line(&line)?;
    }
    Ok(())
}

/// All sequences of a file are in memory at once.
const LARGEST_IDS: u64 = 256 << 20;

fn read_sequences(path: &Path, model: &Model) -> anyhow::Result<Vec<Vec<u32>>> {
    refuse(path, FileRole::Json)?;
    let bytes = read_bytes(path, LARGEST_IDS)?;
    let bytes = without_mark_bytes(&bytes);
    // The end of the last line begins no other.
    let lines = bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|&byte| byte == b'\n');
    let parse = |(index, line): (usize, &[u8])| {
        read_sequence(line, model)
            .map_err(|what| BadInput(format!("{}:{}: {what}", path.shown(), index + 1)).into())
    };
    if bytes.is_empty() {
        let what = "is empty; expected a JSON array of token ids a line";
        return Err(BadInput(format!("{}: {what}", path.shown())).into());
    }
    lines.enumerate().map(parse).collect()
}

fn read_sequence(line: &[u8], model: &Model) -> Result<Vec<u32>, String> {
    let expected = |error| format!("{error}; expected a JSON array of token ids");
    let sequence: Vec<u32> = serde_json::from_slice(line).map_err(expected)?;
    if sequence.is_empty() {
        return Err("holds no token id; expected at least one".to_owned());
    }
    model.check(&model.new_cache(), &sequence).map_err(|error| error.to_string())?;
    Ok(sequence)
}

/// `logprobs[i]` belongs to token i, `argmax[i]` is the most likely token after it.
fn as_json(scores: &Scores) -> String {
    json!({"logprobs": scores.logprobs, "argmax": scores.argmax}).to_string()
}

fn in_words(scores: &Scores) -> String {
    let known: Vec<f64> = scores.logprobs.iter().copied().flatten().collect();
    if known.is_empty() {
        return "1 token, nothing to score".to_owned();
    }
    let nll = -known.iter().sum::<f64>() / known.len() as f64;
    format!("{} tokens scored, nll {nll:.6} a token, perplexity {:.4}", known.len(), nll.exp())
}
