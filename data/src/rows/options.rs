//! What a recipe says about the form of its files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::token_ids::TokenFiles;
use crate::document::DocumentFormat;

/// The field that holds the text of a document.
pub(crate) const TEXT_FIELD: &str = "text";

/// How a text file becomes documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextSplit {
    /// A file is one document.
    #[default]
    File,
    /// Documents end at blank lines.
    BlankLine,
}

impl TextSplit {
    /// What a recipe calls each.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("file", Self::File), ("blank-line", Self::BlankLine)];
}

/// Where rows and their fields stand in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOptions {
    /// The key of the list of rows in a `.json` file that is one object; `data` where it is not
    /// given.
    pub field: Option<String>,
    /// Names of fields, each with the column that holds it in the files.
    pub columns: BTreeMap<String, String>,
    /// How text files are cut.
    pub text_split: TextSplit,
    /// Where files hold tokens instead of text: how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenFiles>,
    /// Fields that are read of a table beside the text, since rows are chosen by them.
    #[serde(skip)]
    pub chosen_by: Vec<String>,
}

impl FileOptions {
    /// The column that holds a field.
    pub(crate) fn column<'a>(&'a self, field: &'a str) -> &'a str {
        self.columns.get(field).map_or(field, String::as_str)
    }

    /// The columns that are read of a table; empty for all.
    pub(super) fn wanted(&self, format: DocumentFormat) -> Vec<String> {
        match format {
            // A dotted name may be that of a column or of a field in one.
            DocumentFormat::Text if self.chosen_by.iter().any(|name| name.contains('.')) => {
                Vec::new()
            }
            DocumentFormat::Text => {
                let chosen_by = self.chosen_by.iter().map(String::as_str);
                chosen_by.chain([self.column(TEXT_FIELD)]).map(str::to_owned).collect()
            }
            DocumentFormat::JsonLine | DocumentFormat::Either => Vec::new(),
        }
    }
}
