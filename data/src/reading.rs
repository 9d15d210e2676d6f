//! What a recipe says about reading the rows of a set.

use serde::{Deserialize, Serialize};

use super::rows::FileOptions;
use super::selection::RowSelection;

/// How the files of a set are read, and which of their rows are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReadingRules {
    /// Where rows and fields stand.
    pub files: FileOptions,
    /// What happens to a turn of a role that is not known.
    pub unknown_role: UnknownRole,
    /// Whether a row is bad of which turns would be left out, joined or moved.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Where conversations are text that a template made: what of it is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_markers: Option<TextMarkers>,
    /// Which rows are used.
    #[serde(skip_serializing_if = "is_default")]
    pub selection: RowSelection,
    /// What happens to a row that cannot be used.
    #[serde(skip)]
    pub bad_rows: BadRows,
    /// The largest share of rows, from 0 to 1, that is skipped.
    #[serde(skip)]
    pub max_bad_share: f64,
}

/// The texts between which conversations are trained that a template has already made text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TextMarkers {
    /// An answer begins after this.
    pub response: String,
    /// What the user says begins with this; without it, an answer goes on to the end of the text.
    pub instruction: Option<String>,
}

fn is_default(selection: &RowSelection) -> bool {
    !selection.is_needed()
}

/// What happens to a turn of a role that is not known, or that the chat template does not render.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnknownRole {
    /// The row is bad.
    #[default]
    Error,
    /// The turn is left out.
    Drop,
}

impl UnknownRole {
    /// What a recipe calls each.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("error", Self::Error), ("drop", Self::Drop)];
}

/// What happens to a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadRows {
    /// It ends the run before its first step.
    #[default]
    Error,
    /// It is left out and counted.
    Skip,
}

impl BadRows {
    /// What a recipe calls each.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("error", Self::Error), ("skip", Self::Skip)];
}
