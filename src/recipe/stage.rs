//! The stage of a recipe, and the defaults that depend on it.

use super::item::word;
use super::rate::{CurveShape, Rate, Span};

/// What is learned, and so what a line of data holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// The next token of any text.
    Pretrain,
    /// The assistant's turns of conversations.
    Sft,
    /// To prefer one completion to another.
    Dpo,
}

impl StageKind {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("pretrain", Self::Pretrain), ("sft", Self::Sft), ("dpo", Self::Dpo)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }

    pub(super) fn default_learning_rate(self) -> Rate {
        let peak = match self {
            Self::Pretrain => 1.5e-3,
            Self::Sft => 1e-4,
            Self::Dpo => 2e-7,
        };
        Rate::Curve { shape: CurveShape::Linear, peak, end: 0.0, span: Span::Run }
    }

    pub(super) fn default_weight_decay(self) -> Rate {
        Rate::Constant { value: if self == Self::Pretrain { 0.1 } else { 0.0 } }
    }

    pub(super) fn default_reduction(self) -> LossReduction {
        // Summed over the batch, as 2B4T was fine-tuned (docs/src/fine-tune.md).
        if self == Self::Sft { LossReduction::Sum } else { LossReduction::Mean }
    }
}

/// How the losses of one step's tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReduction {
    /// Their mean over the trained tokens.
    Mean,
    /// Their sum.
    Sum,
}

impl LossReduction {
    pub(super) const WORDS: &[(&str, Self)] = &[("mean", Self::Mean), ("sum", Self::Sum)];

    /// What a sum over `count` items is divided by.
    pub(crate) fn divisor(self, count: f64) -> f64 {
        match self {
            Self::Mean => count,
            Self::Sum => 1.0,
        }
    }

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }
}
