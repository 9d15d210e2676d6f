//! A document, and where it comes from.

use std::fmt;
use std::sync::Arc;

/// The largest `.txt` file or line of a `.jsonl` file. All of Shakespeare fits ten times; a file
/// that lost its line ends does not.
pub const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The index of its file in the list of files.
    pub file: usize,
    /// Its line in the file, from 1.
    pub line: u64,
    /// The text, or the line of JSON; never empty.
    pub text: String,
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentFormat {
    /// The field `text` of a line of JSON, or a whole text file.
    Text,
    /// A whole line of JSON, which holds one object.
    JsonLine,
}

/// Where a document comes from, for messages: `corpus/a.jsonl:17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLocation {
    /// The file as it was named, or the name of a generator.
    pub source: Arc<str>,
    /// The line in the file or the number of the generated document, from 1.
    pub line: u64,
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.source, self.line)
    }
}
