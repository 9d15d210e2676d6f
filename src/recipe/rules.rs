//! Rules between the sections of a recipe: what one choice asks of the others.

use super::distill::DistillSettings;
use super::model::ModelSource;
use super::section::Section;
use super::settings::{Bf16Sums, Length, Precision, Recipe, Train};
use super::stage::StageKind;
use crate::latents::{LatentFormat, MomentFormat, UpdateTime};
use bitnet_format::ModelSpec;

/// Adds the mistakes that no single section can show.
pub(super) fn check_rules(root: &mut Section<'_>, recipe: &Recipe) {
    check_precision(root, recipe);
    check_lean(root, recipe);
    check_muon(root, recipe);
    check_adapter(root, recipe);
    check_ternary_warmup(root, recipe);
    check_quantiser(root, recipe);
    check_distill(root, recipe);
}

/// What a new model with another quantiser asks of the rest of the recipe.
fn check_quantiser(root: &mut Section<'_>, recipe: &Recipe) {
    // The quantiser of a stored model is known when its files are open; `train::open` asks then.
    let ModelSource::New { spec } = &recipe.model else { return };
    let conflicts = quantiser_conflicts(recipe, spec.blocks());
    for (key, message) in conflicts {
        let (section, name) = key.split_once('.').expect("a key of a section");
        match section {
            "train" => root.section("train").problem(name, message),
            _ => root.problem(key, message),
        }
    }
}

/// What is computed for the quantiser of BitNet b1.58 only, as far as this recipe asks for it of a model
/// with another: keys, each with what is wrong.
pub(crate) fn quantiser_conflicts(
    recipe: &Recipe,
    spec: &ModelSpec,
) -> Vec<(&'static str, String)> {
    if !spec.quantise || spec.has_b158_quantiser() {
        return Vec::new();
    }
    let Train { precision, latents, update, .. } = recipe.train;
    let beside = "beside a quantiser, embedding or activations that are not BitNet b1.58's";
    let mut all = Vec::new();
    let mut refuse = |refused: bool, key, expected: &str, got: &str| {
        if refused {
            all.push((key, format!("expected {expected} {beside}, got {got}")));
        }
    };
    let is_int8 = precision == Precision::Int8;
    refuse(is_int8, "train.precision", "\"f32\" or \"bf16\"", "\"int8\"");
    refuse(latents != LatentFormat::F32, "train.latents", "\"f32\"", "another format");
    refuse(update == UpdateTime::During, "train.update", "\"after\"", "\"during\"");
    refuse(recipe.adapter.is_some(), "adapter.kind", "no adapter", "one");
    all
}

/// Adds a problem unless the device is `flex`, which alone has our own operations.
fn require_flex(root: &Section<'_>, recipe: &Recipe, what: &str) {
    if recipe.device != "flex" {
        root.problem("device", format!("{what}, got {:?}", recipe.device));
    }
}

/// 8-bit gradients and an order of sums are of the CPU's own operations.
fn check_precision(root: &mut Section<'_>, recipe: &Recipe) {
    if recipe.train.precision == Precision::Int8 {
        let what = "train.precision \"int8\" runs on the CPU; expected device = \"flex\" beside it";
        require_flex(root, recipe, what);
    }
    if recipe.train.bf16_sums != Bf16Sums::Chain {
        let what = "train.bf16_sums \"tiles\" is of the CPU's products; expected device = \"flex\" \
                    beside it";
        require_flex(root, recipe, what);
    }
}

/// What keeping fewer bits, or updating early, asks of the rest of the recipe.
fn check_lean(root: &mut Section<'_>, recipe: &Recipe) {
    let Train { latents, update, batch, micro_batch, .. } = recipe.train;
    let during = update == UpdateTime::During;
    let fewer = latents != LatentFormat::F32 || recipe.optimizer.moments != MomentFormat::F32;
    if during || fewer {
        let what = "train.latents, train.update and optimizer.moments other than their first choice \
                    run on the CPU; expected device = \"flex\" beside them";
        require_flex(root, recipe, what);
    }
    let train = root.section("train");
    if (during || fewer) && recipe.train.shard_optimizer {
        let message = "moments of ranks are f32; expected false beside fewer bits, got true";
        train.problem("shard_optimizer", message.to_owned());
    }
    if !during {
        return;
    }
    if !recipe.train.recompute {
        let message = "updates in the backward pass need blocks that are computed again; expected \
                       recompute = true beside it, got false";
        train.problem("update", message.to_owned());
    }
    if batch != micro_batch {
        let message =
            "a step that updates as it goes is one micro-batch; expected micro_batch = batch";
        train.problem("micro_batch", format!("{message} ({batch}), got {micro_batch}"));
    }
    if recipe.stage == StageKind::Dpo && batch != 1 {
        let message = "pairs of different lengths are different micro-batches, and a step that updates \
                       as it goes is one; expected 1, got";
        train.problem("batch", format!("{message} {batch}"));
    }
}

/// What Muon asks of the rest of the recipe.
fn check_muon(root: &mut Section<'_>, recipe: &Recipe) {
    if recipe.optimizer.muon.is_none() {
        return;
    }
    require_flex(root, recipe, "Muon runs on the CPU; expected \"flex\" beside it");
    if recipe.adapter.is_some() {
        let message = "the factors of an adapter are AdamW's; expected \"adamw\", got \"muon\"";
        root.section("optimizer").problem("kind", message.to_owned());
    }
}

/// What training an adapter asks of the rest of the recipe.
fn check_adapter(root: &mut Section<'_>, recipe: &Recipe) {
    if recipe.adapter.is_none() {
        return;
    }
    let Train { latents, update, ref freeze, .. } = recipe.train;
    if matches!(recipe.model, ModelSource::New { .. }) {
        let message =
            "an adapter changes weights that exist; expected model.init beside it, got none";
        root.problem("adapter", message.to_owned());
    }
    require_flex(root, recipe, "adapters are trained on the CPU; expected \"flex\" beside them");
    let train = root.section("train");
    let refuse = |refused: bool, key: &str, message: &str| {
        if refused {
            train.problem(key, message.to_owned());
        }
    };
    let message = "all but an adapter is frozen; expected no list beside it, got one";
    refuse(!freeze.is_empty(), "freeze", message);
    let message = "the latents beside an adapter are not trained and stay as they are stored; \
                   expected \"f32\", got another format";
    refuse(latents != LatentFormat::F32, "latents", message);
    let message = "the gradients of an adapter are small; expected \"after\", got \"during\"";
    refuse(update == UpdateTime::During, "update", message);
}

/// What a warm-up of the ternary weights asks of the rest of the recipe.
fn check_ternary_warmup(root: &mut Section<'_>, recipe: &Recipe) {
    let Some(warmup) = recipe.ternary_warmup else { return };
    if recipe.adapter.is_some() {
        let message =
            "an adapter changes a model that is ternary; expected none beside it, got one";
        root.problem("ternary_warmup", message.to_owned());
    }
    if recipe.stage == StageKind::Dpo {
        let message = "pairs are compared with a model that is ternary; expected stage \"pretrain\" \
                       or \"sft\" beside it, got \"dpo\"";
        root.problem("ternary_warmup", message.to_owned());
    }
    if let Length::Steps(steps) = recipe.train.length
        && let asked = warmup.steps_of(steps)
        && asked > steps
    {
        let message = "the warm-up is longer than the run; expected at most its";
        let table = root.section("ternary_warmup");
        table.problem("steps", format!("{message} {steps} steps, got {asked}"));
    }
}

/// What learning from a teacher asks of the rest of the recipe.
fn check_distill(root: &mut Section<'_>, recipe: &Recipe) {
    let Some(settings) = &recipe.distill else { return };
    let table = root.section("distill");
    let refuse = |refused: bool, key: &str, message: &str| {
        if refused {
            table.problem(key, message.to_owned());
        }
    };
    let message = "preferences have a reference model of their own; expected stage = \"pretrain\" or \
                   \"sft\" beside it, got \"dpo\"";
    refuse(recipe.stage == StageKind::Dpo, "", message);
    let DistillSettings { logits, cross_entropy, relations, top_k, .. } = *settings;
    let message =
        "nothing to learn: logits, cross_entropy and relations are all 0; expected one above 0";
    // None is negative (`Bound::NonNegative`), so only three zeros add up to 0.
    refuse(logits + cross_entropy + relations == 0.0, "logits", message);
    if relations == 0.0 {
        return;
    }
    let message = "the kept words of a teacher hold no queries, keys and values; expected 0 beside \
                   relations, got more";
    refuse(top_k.is_some(), "top_k", message);
    let message = "relations read a block inside of the recorded pass; expected \
                   train.recompute = false beside them, got true";
    refuse(recipe.train.recompute, "relations", message);
}
