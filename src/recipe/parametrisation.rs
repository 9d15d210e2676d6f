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
