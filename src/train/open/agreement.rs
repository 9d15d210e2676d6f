//! Whether the parts that a recipe names belong together: the tokenizer and the model it starts from,
//! and files that are named twice.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::ModelSpec;
use bitnet_format::Shown;
use bitnet_kernels::{Kernel, Operands};
use bitnet_text::{Tokenizer, TokenizerChange};

use super::inputs::contradiction;
use crate::data::TokenCache;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::recipe::{Recipe, TokenizerSource, Train};

/// The word of `--allow-change` for a tokenizer that is not the model's.
pub(crate) const TOKENIZER: &str = "tokenizer";
/// Names shown of a longer list.
const SHOWN: usize = 5;

/// What a run that starts from a model may do with its vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VocabularyGrowth {
    /// Tokens beyond the model's rows are a mistake.
    Refused,
    /// They get rows of their own.
    Allowed,
}

/// Compares the recipe's own tokenizer with that of the model in `init`. One that is another is
/// refused unless `allowed` names it.
pub(crate) fn compare_tokenizer(
    recipe: &Recipe,
    init: Option<&Path>,
    tokenizer: &Tokenizer,
    allowed: &[String],
    monitor: &mut dyn Monitor,
) -> Result<VocabularyGrowth, TrainError> {
    let Some(init) = init.filter(|_| recipe.tokenizer != TokenizerSource::FromInit) else {
        return Ok(VocabularyGrowth::Refused);
    };
    let Some(models_own) = Tokenizer::of_model(init)? else { return Ok(VocabularyGrowth::Refused) };
    match tokenizer.change_from(&models_own) {
        TokenizerChange::None => Ok(VocabularyGrowth::Refused),
        TokenizerChange::Added(tokens) => {
            let names = listed(tokens.iter().map(|token| format!("{token:?}")).collect());
            monitor.message(&format!(
                "the tokenizer adds {} tokens to the model's: {names}",
                tokens.len()
            ));
            Ok(VocabularyGrowth::Allowed)
        }
        TokenizerChange::Other(what) if allowed.iter().any(|key| key == TOKENIZER) => {
            monitor.message(&format!(
                "changed by --allow-change: the tokenizer is not the model's ({what}); its ids \
                 mean other tokens from here on"
            ));
            Ok(VocabularyGrowth::Allowed)
        }
        TokenizerChange::Other(what) => Err(another_tokenizer(recipe, init, &what)),
    }
}

fn another_tokenizer(recipe: &Recipe, init: &Path, what: &str) -> TrainError {
    let init = init.shown();
    let what = format!(
        "not the tokenizer of {init}: {what}; expected the same one, or one that only adds \
         tokens\nhint: leave `tokenizer` out to train with the model's own; --allow-change \
         {TOKENIZER} takes this one, and the model's rows then mean other tokens"
    );
    contradiction(recipe, TOKENIZER, what)
}

/// Gives rows to the tokens after the model's last row.
pub(crate) fn grow_vocabulary(
    spec: &mut ModelSpec,
    tokenizer: &Tokenizer,
    growth: VocabularyGrowth,
    monitor: &mut dyn Monitor,
) {
    let (rows, needed) = (spec.vocab_size, tokenizer.vocab_size());
    if growth == VocabularyGrowth::Refused {
        return;
    }
    if needed <= rows {
        monitor.message(&format!("new tokens take rows that the model of {rows} holds already"));
        return;
    }
    let tables = if spec.tie_word_embeddings { "the embedding" } else { "embedding and head" };
    monitor.message(&format!(
        "the vocabulary grows from {rows} to {needed}: each new row of {tables} is the mean of the \
         old ones"
    ));
    spec.vocab_size = needed;
}

/// Says of the model in `init` what a run would say or refuse, as far as no data is needed.
pub(crate) fn say_how_it_starts(
    recipe: &Recipe,
    init: &Path,
    spec: &ModelSpec,
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    say_if_dense(init, spec, monitor);
    let TokenizerSource::Path(path) = &recipe.tokenizer else { return Ok(()) };
    let tokenizer = Tokenizer::from_file(path)?;
    match compare_tokenizer(recipe, Some(init), &tokenizer, &[], monitor) {
        Err(error @ TrainError::Contradiction { .. }) => {
            monitor.message(&format!("warning: {error}"));
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Says at once that a dense model stays dense, and what would make it ternary.
pub(crate) fn say_if_dense(init: &Path, spec: &ModelSpec, monitor: &mut dyn Monitor) {
    if spec.quantise {
        return;
    }
    let (init, key) = (init.shown(), "quantization_config");
    monitor.message(&format!(
        "warning: {init} is dense: its config.json has no {key}. It is trained as floats, and only \
         the formats hf-bf16 and gguf-bf16 take it. To train it with ternary weights, set \
         model.quantise = true"
    ));
}

/// Says at once that this CPU would be faster with the other order of sums.
pub(crate) fn say_if_tiles_are_idle(recipe: &Recipe, monitor: &mut dyn Monitor) {
    let Train { precision, bf16_sums, .. } = recipe.train;
    let operands = precision.operands(bf16_sums);
    if recipe.device == "flex" && operands == Operands::Bf16 && Kernel::detect().has_bf16_tiles() {
        monitor.message(
            "note: this CPU multiplies bf16 in tiles: train.bf16_sums = \"tiles\" makes these \
             products about three times as fast",
        );
    }
}

/// Says which files have the content of another, within a set, between sets, and between training
/// and held-out data.
pub(crate) fn warn_of_duplicates(
    training: &BTreeMap<String, TokenCache>,
    held_out: &BTreeMap<String, TokenCache>,
    monitor: &mut dyn Monitor,
) {
    let mut seen = BTreeMap::new();
    let mut again = Vec::new();
    for (cache, use_of_it) in training
        .values()
        .map(|cache| (cache, "read"))
        .chain(held_out.values().map(|cache| (cache, "held out")))
    {
        for (name, content) in cache.contents() {
            match seen.get(&content) {
                Some(first) => again.push(format!("{name} is {use_of_it} beside {first}")),
                None => drop(seen.insert(content, name)),
            }
        }
    }
    if !again.is_empty() {
        monitor.message(&format!("warning: files with the same content: {}", listed(again)));
    }
}

/// The first entries, and how many more.
fn listed(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    all.join(", ") + &rest
}
