//! The adapter that a recipe asks for, and the parameters of a run with it or without.

use std::path::Path;

use bitnet_format::adapter::{AdapterDescription, matching_entries};
use bitnet_format::figures::grouped;
use bitnet_format::{ModelSpec, StoredModel, TensorEntry, tensor_table};

use super::inputs::contradiction;
use crate::error::TrainError;
use crate::model::{is_factor, parameter_table};
use crate::monitor::Monitor;
use crate::recipe::{AdapterSettings, Recipe};
use crate::train::context::{RunAdapter, hash_model};

/// Describes the recipe's adapter of the model in `init` and says how large it is.
pub(super) fn open(
    recipe: &Recipe,
    init: Option<&Path>,
    spec: &ModelSpec,
    monitor: &mut dyn Monitor,
) -> Result<Option<RunAdapter>, TrainError> {
    let (Some(settings), Some(init)) = (&recipe.adapter, init) else { return Ok(None) };
    let refuse = |field, what: String| Err(contradiction(recipe, field, what));
    if !spec.quantise {
        let what = "changes ternary weights; expected a quantised model, got a dense one";
        return refuse("adapter", what.to_owned());
    }
    let rows = StoredModel::open(init)?.spec().vocab_size;
    if spec.vocab_size != rows {
        let what = format!("adds rows to a frozen embedding; expected at most its {rows} tokens");
        return refuse("tokenizer", what);
    }
    let AdapterSettings { kind, rank, alpha, ref targets } = *settings;
    let adapted = match matching_entries(spec, targets) {
        Ok(adapted) => adapted,
        Err(what) => return refuse("adapter.targets", what),
    };
    let description = AdapterDescription {
        kind,
        rank,
        alpha: alpha as f32,
        base_path: init.display().to_string(),
        base_hash: Some(hash_model(init, monitor)?),
    };
    let count = |entry: &TensorEntry| rank * (entry.shape[0] + entry.shape[1]);
    let all: usize = adapted.iter().map(count).sum();
    monitor.message(&format!(
        "adapter: {} parameters beside {} matrices of {}",
        grouped(all as u64),
        adapted.len(),
        grouped(spec.parameters() as u64)
    ));
    Ok(Some(RunAdapter::new(description, adapted)))
}

/// All parameters in order, and for each whether it is not trained.
pub(super) fn parameters(
    recipe: &Recipe,
    spec: &ModelSpec,
    adapter: Option<&RunAdapter>,
) -> (Vec<TensorEntry>, Vec<bool>) {
    let Some(RunAdapter { description, adapted, .. }) = adapter else {
        return (tensor_table(spec), recipe.train.frozen(spec));
    };
    let table = parameter_table(spec, adapted, description.rank);
    let frozen = table.iter().map(|entry| !is_factor(entry)).collect();
    (table, frozen)
}
