//! A document, and where it comes from.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// The largest `.txt` file or row of any other file. All of Shakespeare fits ten times; a file that
/// lost its line ends does not.
pub const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The index of its file in the list of files.
    pub file: usize,
    /// Its line in the file, or its number where a file has no lines, from 1; in a token
    /// file the byte that it begins at.
    pub line: u64,
    /// What stands there.
    pub content: RowContent,
}

/// What a file says of a document, parsed as far as finding its end took.
#[derive(Clone, Debug, PartialEq)]
pub enum RowContent {
    /// Text; may be empty.
    Text(String),
    /// The bytes of one JSON value, with the end of its line where there is one.
    Json(Vec<u8>),
    /// A row of a table.
    Object(Map<String, Value>),
    /// Tokens of another trainer.
    Tokens(TokenDocument),
    /// A row that its file does not hold whole: what was expected, what is there.
    Unreadable(String),
}

/// A document of a token file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDocument {
    /// Its ids, without separators.
    pub ids: Vec<u32>,
    /// Bytes of an id in the file.
    pub width: u64,
    /// Whether separators show where it begins and ends.
    pub whole: bool,
}

impl RowContent {
    /// Its size in bytes, or about that.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Unreadable(text) => text.len(),
            Self::Json(bytes) => bytes.len(),
            Self::Tokens(document) => 4 * document.ids.len(),
            Self::Object(row) => row.values().map(size).sum(),
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(object) => object.iter().map(|(key, value)| key.len() + size(value)).sum(),
        // About what a number or a word such as `true` takes.
        _ => 8,
    }
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentFormat {
    /// The field `text` of a row, or a whole text file.
    Text,
    /// A row, which is an object.
    JsonLine,
    /// A row with all its fields, or a whole text file.
    Either,
}

/// Where a document comes from, for messages: `corpus/a.jsonl:17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLocation {
    /// The file as it was named, or the name of a generator.
    pub source: Arc<str>,
    /// The line in the file, the number of the row or of the generated document, from 1.
    pub line: u64,
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.source, self.line)
    }
}
