//! What is wrong with one row, before it is known where the row stands.

use std::path::PathBuf;

use bitnet_text::TextError;
use serde_json::Value;

use super::document::SourceLocation;
use super::error::DataError;

/// A wrong field of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path of the field.
    pub field: String,
    /// The expected value.
    pub expected: &'static str,
    /// The actual value.
    pub got: String,
}

/// Why a row cannot be used.
#[derive(Debug)]
pub(crate) enum RowFault {
    /// A byte that is not text, by its column from 1.
    NotUtf8 { column: usize, byte: u8 },
    /// The file ends within the row.
    Torn { bytes: usize },
    /// No JSON, or no object.
    Json(String),
    /// The file does not hold the row whole.
    Unreadable(String),
    /// A field is wrong.
    Field(FieldError),
    /// The tokenizer or the template failed.
    Text(TextError),
    /// A token id outside of the vocabulary, and how many bytes it lies behind the row's position.
    IdOutOfRange { vocab_size: usize, id: u32, behind: u64 },
}

impl RowFault {
    pub(crate) fn at(self, location: SourceLocation) -> DataError {
        let (path, line) = (PathBuf::from(&*location.source), location.line);
        match self {
            Self::NotUtf8 { column, byte } => DataError::NotUtf8 { path, line, column, byte },
            Self::Torn { bytes } => DataError::Torn { path, line, bytes },
            Self::Json(what) => DataError::Json { path, line, what },
            Self::Unreadable(what) => DataError::Unreadable { path, line, what },
            Self::Field(FieldError { field, expected, got }) => {
                DataError::Field { path, line, field, expected, got }
            }
            Self::Text(error) => DataError::Encode { location, what: error.to_string() },
            Self::IdOutOfRange { vocab_size, id, behind } => {
                let location = SourceLocation { line: line + behind, ..location };
                DataError::IdOutOfRange { location, vocab_size, id }
            }
        }
    }
}

impl From<FieldError> for RowFault {
    fn from(error: FieldError) -> Self {
        Self::Field(error)
    }
}

impl From<TextError> for RowFault {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

pub(crate) fn field_error(
    field: &str,
    expected: &'static str,
    got: impl Into<String>,
) -> FieldError {
    FieldError { field: field.to_owned(), expected, got: got.into() }
}

/// The type of a JSON value, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
