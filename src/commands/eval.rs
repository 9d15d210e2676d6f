//! `bitnet-train eval`: the held-out loss of any stored model on text.

use anyhow::Result;
use bitnet_format::figures::{grouped, significant};
use bitnet_format::report::reading_warnings;
use bitnet_format::{Shown, StoredModel};
use bitnet_text::ChatTemplate;
use bitnet_train::data::{
    CacheRequest, DocumentSource, Encoding, TokenCache, validation_sequences,
};
use bitnet_train::device;
use bitnet_train::model::LanguageModel;
use bitnet_train::output::note;
use bitnet_train::platform::Signals;
use bitnet_train::train::{TrainError, likelihood};
use serde_json::json;

use super::data_flag::expanded;
use super::{print_json, print_line, set_threads};
use crate::cli::EvalArgs;
use crate::failure::Usage;

/// Says what is hardly meant in the model, and what is measured of a dense one.
fn warn(args: &EvalArgs, folder: &StoredModel, zeros: &[String]) {
    for line in reading_warnings(folder, zeros) {
        note(&line);
    }
    if !folder.spec().quantise {
        let path = args.model.path().shown();
        note(&format!(
            "warning: {path} is dense: its config.json has no quantization_config. What is \
             measured is the model in floats, not one with ternary weights"
        ));
    }
}

pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    set_threads(args.threads)?;
    if args.seq_len == Some(0) {
        return Err(Usage("--seq-len: expected at least 1, got 0".to_owned()).into());
    }
    let signals = Signals::listen().map_err(TrainError::from)?;
    let folder = StoredModel::open(args.model.path()).map_err(TrainError::from)?;
    let data = expanded(&args.data, "--data", &signals)?;
    let tokenizer = super::tokenizer_of(args.model.path())?;
    let device = device::open(&args.device).map_err(TrainError::from)?.inner();
    let read = LanguageModel::read_noting_zeros(&folder, &device);
    let (model, zeros) = read.map_err(TrainError::from)?;
    warn(args, &folder, &zeros);
    let encoding = if args.conversations {
        let chat = ChatTemplate::of_model(args.model.path(), &tokenizer);
        Encoding::Conversations(chat.map_err(TrainError::from)?.for_training())
    } else {
        Encoding::Text
    };
    // Not the cache of training: text that is measured once would stay there for good.
    let scratch = std::env::temp_dir().join(format!("bitnet-eval-{}", std::process::id()));
    let cache = TokenCache::open_or_build(&CacheRequest {
        cache_dir: &scratch,
        source: &DocumentSource::files(data),
        tokenizer: &tokenizer,
        encoding: &encoding,
        interrupted: &|| signals.stop().is_some(),
        progress: &|_, _| {},
        pool: None,
    });
    // No `?` before the scratch folder is gone.
    let measured = cache.map_err(TrainError::from).map(|cache| {
        let context = folder.spec().context_length();
        let seq_len = args.seq_len.unwrap_or_else(|| context.min(512)).min(context);
        let interrupted = || signals.stop().is_some();
        let sum = likelihood(&model, validation_sequences(&cache, seq_len), &device, &interrupted);
        (sum, cache.statistics().bytes)
    });
    // The tokens were wanted once; leave nothing behind, whatever happened.
    let _ = fs_err::remove_dir_all(&scratch);
    // Whatever was interrupted, the signal is what ended it.
    if let Some(stop) = signals.stop() {
        return Err(TrainError::ExportStopped(stop).into());
    }
    let (sum, bytes) = measured?;
    let sum = sum.expect("only a signal interrupts");
    let evaluation = sum.evaluation();
    // Nats over ln 2 are bits. A byte is the same for every tokenizer, a token is not.
    let bits_per_byte = sum.nll / std::f64::consts::LN_2 / bytes.max(1) as f64;
    if args.json {
        let quantised = folder.spec().quantise;
        let result = json!({
            "tokens": sum.tokens, "nll_per_token": evaluation.nll_per_token,
            "perplexity": evaluation.perplexity, "bits_per_byte": bits_per_byte,
            "quantised": quantised,
        });
        print_json(&result);
    } else {
        print_line(&format!(
            "{} tokens: {:.4} nats a token, perplexity {}, {bits_per_byte:.4} bits a byte",
            grouped(sum.tokens),
            evaluation.nll_per_token,
            significant(evaluation.perplexity)
        ));
    }
    Ok(())
}
