//! The teacher that a recipe names: its folder and shape, and whether it can teach this student.

use std::path::Path;

use bitnet_format::{ModelSpec, Shown, StoredModel};
use bitnet_text::{Tokenizer, TokenizerChange};

use super::inputs::{contradiction, model_folder};
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::Signals;
use crate::recipe::{DistillSettings, Recipe};
use crate::train::stage::distill::relations::{RelationBlock, Relations};
use crate::train::teacher::RunTeacher;

/// The shape of the teacher of a recipe, where it is on this machine already.
pub(crate) fn known_teacher(recipe: &Recipe) -> Result<Option<ModelSpec>, TrainError> {
    let Some(DistillSettings { teacher, .. }) = &recipe.distill else { return Ok(None) };
    let path = Path::new(teacher);
    let is_there = !teacher.starts_with("hf:") && path.exists();
    Ok(if is_there { Some(StoredModel::open(path)?.spec().clone()) } else { None })
}

/// Finds the teacher of a recipe and compares it with the student.
pub(super) fn open(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    student: &ModelSpec,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Option<RunTeacher>, TrainError> {
    let Some(settings) = &recipe.distill else { return Ok(None) };
    let path = model_folder(recipe, (FIELD, &settings.teacher), true, signals, monitor)?;
    let spec = StoredModel::open(&path)?.spec().clone();
    compare_tokenizer(recipe, &path, tokenizer)?;
    let shown = path.shown();
    let (theirs, ours) = (spec.vocab_size, student.vocab_size);
    if theirs != ours {
        let what = format!("{shown} has {theirs} words; expected the student's {ours}");
        return Err(contradiction(recipe, FIELD, what));
    }
    let (longest, seq_len) = (spec.context_length(), recipe.data.seq_len);
    if longest < seq_len {
        let what = format!("{shown} reads {longest} tokens; expected data.seq_len, {seq_len}");
        return Err(contradiction(recipe, FIELD, what));
    }
    if let Some(k) = settings.top_k.filter(|&k| k > ours) {
        let what = format!("is {k}; expected at most the {ours} words of the vocabulary");
        return Err(contradiction(recipe, "distill.top_k", what));
    }
    let relations = relations(recipe, settings, [student, &spec])?;
    Ok(Some(RunTeacher { path, spec, relations }))
}

const FIELD: &str = "distill.teacher";

/// Refuses a teacher whose ids mean other tokens.
fn compare_tokenizer(
    recipe: &Recipe,
    teacher: &Path,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    let shown = teacher.shown();
    let refuse = |what: String| Err(contradiction(recipe, FIELD, what));
    let Some(theirs) = Tokenizer::of_model(teacher)? else {
        let what = "has no tokenizer beside its weights; expected that of the student";
        return refuse(format!("{shown} {what}"));
    };
    let difference = match tokenizer.change_from(&theirs) {
        TokenizerChange::None => return Ok(()),
        TokenizerChange::Added(tokens) => format!("the student's has {} tokens more", tokens.len()),
        TokenizerChange::Other(what) => what,
    };
    refuse(format!(
        "{shown} has a tokenizer of {} tokens, and it is not the student's of {}: {difference}; \
         expected a teacher with the same one",
        theirs.vocab_size(),
        tokenizer.vocab_size()
    ))
}

/// The blocks whose relations are compared.
fn relations(
    recipe: &Recipe,
    settings: &DistillSettings,
    [student, teacher]: [&ModelSpec; 2],
) -> Result<Option<Relations>, TrainError> {
    let &DistillSettings { relation_layer, teacher_relation_layer, relation_form: form, .. } =
        settings;
    let weight = settings.relations;
    if weight == 0.0 {
        return Ok(None);
    }
    let own = layer(recipe, "distill.relation_layer", relation_layer, student)?;
    let from_end = own as i64 - student.num_hidden_layers as i64;
    let (field, wanted) = match teacher_relation_layer {
        Some(layer) => ("distill.teacher_relation_layer", layer),
        None => ("distill.relation_layer", from_end),
    };
    let theirs = layer(recipe, field, wanted, teacher)?;
    let (student, teacher) =
        (RelationBlock::new(student, own), RelationBlock::new(teacher, theirs));
    Ok(Some(Relations { weight, form, student, teacher }))
}

/// A block by its number, from the last where negative.
fn layer(
    recipe: &Recipe,
    field: &'static str,
    number: i64,
    spec: &ModelSpec,
) -> Result<usize, TrainError> {
    let count = spec.num_hidden_layers as i64;
    let index = if number < 0 { number + count } else { number };
    if (0..count).contains(&index) {
        return Ok(index as usize);
    }
    let what = format!("is {number}; expected one of a model's {count} blocks, 0 to {}", count - 1);
    Err(contradiction(recipe, field, what))
}
