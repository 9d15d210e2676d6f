//! How initial values and learning rates depend on the width of a model.

use crate::model::WidthRatio;

/// `model.parametrisation`, with what belongs to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parametrisation {
    /// Not at all.
    #[default]
    Standard,
    /// So that the rate that is best at one width is best at others (`model::width`).
    Mup {
        /// The width at which nothing changes.
        base_width: usize,
    },
}

/// The words of `model.parametrisation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParametrisationKind {
    Standard,
    Mup,
}

impl ParametrisationKind {
    pub(super) const WORDS: &[(&str, Self)] = &[("standard", Self::Standard), ("mup", Self::Mup)];
}

impl Parametrisation {
    /// Its word in a recipe.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Mup { .. } => "mup",
        }
    }

    /// What becomes of a model of this width.
    pub fn ratio(self, width: usize) -> WidthRatio {
        match self {
            Self::Standard => WidthRatio::default(),
            Self::Mup { base_width } => WidthRatio::new(base_width, width),
        }
    }
}
