//! Distillation from a teacher, `[distill]`: its settings, and how they are read.

use std::path::Path;

use super::item::{Bound, Item, word};
use super::model::read_model_name;
use super::section::Section;
use crate::ops::DistillationTerms;

/// What a run learns from a teacher.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillSettings {
    /// A folder, a GGUF file, or a model of the hub.
    pub teacher: String,
    /// Both models' logits are divided by it before they are compared.
    pub temperature: f64,
    /// What the divergence of logits is multiplied by.
    pub logits: f64,
    /// What cross-entropy is multiplied by.
    pub cross_entropy: f64,
    /// What the divergence of attention relations is multiplied by.
    pub relations: f64,
    /// The block whose relations are compared, from the last where negative.
    pub relation_layer: i64,
    /// The teacher's layer; `None`: as far from its last block.
    pub teacher_relation_layer: Option<i64>,
    /// How relations are made of queries, keys and values.
    pub relation_form: RelationForm,
    /// Words of a token that are kept of the teacher; `None`: it runs beside the student.
    pub top_k: Option<usize>,
}

/// How the relation of two positions is made of their vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationForm {
    /// Their cosine.
    Cosine,
    /// Their product over the root of their width.
    Scaled,
}

impl RelationForm {
    /// All, each with the word for it in a recipe.
    pub const WORDS: &[(&str, Self)] = &[("cosine", Self::Cosine), ("scaled", Self::Scaled)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }
}

impl DistillSettings {
    /// What the losses of logits are multiplied with.
    pub(crate) fn terms(&self) -> DistillationTerms {
        let &Self { cross_entropy, logits, temperature, .. } = self;
        DistillationTerms { cross_entropy, logits, temperature }
    }
}

/// Far beyond the blocks of any model; whether there is such a block shows when both are open.
const MOST_LAYERS: i64 = 100_000;

/// Reads the section, where the recipe has it.
pub(super) fn read_distill(root: &mut Section<'_>, base: &Path) -> Option<DistillSettings> {
    if !root.has("distill") {
        // Asked for all the same: a message about an unknown key lists those that were asked for.
        root.item("distill");
        return None;
    }
    let mut table = root.section("distill");
    let expected = "the model to learn from: a folder, or \"hf:owner/name\"";
    let teacher = table.required("teacher", expected, |item| read_model_name(item, base));
    let weight =
        |table: &mut Section<'_>, key| table.value(key, |item| item.number(Bound::NonNegative));
    let layer = |item: &Item<'_>| item.signed(MOST_LAYERS);
    let settings = DistillSettings {
        teacher: teacher.unwrap_or_default(),
        temperature: table.value("temperature", |item| item.number(Bound::Factor)),
        logits: weight(&mut table, "logits"),
        cross_entropy: weight(&mut table, "cross_entropy"),
        relations: weight(&mut table, "relations"),
        relation_layer: table.value("relation_layer", layer),
        teacher_relation_layer: table.optional("teacher_relation_layer", layer),
        relation_form: table.value("relation_form", |item| item.choice(RelationForm::WORDS)),
        top_k: Some(table.value("top_k", |item| item.whole_between(0, u32::MAX.into())) as usize)
            .filter(|&count| count > 0),
    };
    table.finish();
    Some(settings)
}
