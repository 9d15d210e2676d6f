//! Everything that can go wrong between a data file and a row. No code that detects it lives here.

use std::io;
use std::path::PathBuf;

use bitnet_format::FormatError;

use super::documents::MAX_DOCUMENT_BYTES;
use super::row::Place;

/// What is wrong with the data.
///
/// Messages have the form `<file>:<line> [<field>]: <what>; expected …, got …`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused: missing file, permission, full disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The cache cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A set without a file, for example because a pattern matched nothing.
    #[error("the data set has no files; expected at least one .jsonl or .txt file, got none")]
    NoFiles,
    /// A file of a kind that is not read.
    #[error("{path}: unknown kind of file; expected {expected}, got {got:?}")]
    Extension {
        /// The file.
        path: PathBuf,
        /// What is read.
        expected: &'static str,
        /// Its extension.
        got: String,
    },
    /// Bytes that are no text.
    #[error("{path}:{line}: not UTF-8 at column {column}; expected text, got byte 0x{byte:02x}")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Byte in the line, from 1.
        column: usize,
        /// The offending byte.
        byte: u8,
    },
    /// A line of a `.jsonl` file does not parse.
    #[error("{path}:{line}: invalid JSON; expected one object a line, got {what}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What the parser met and in which column.
        what: String,
    },
    /// The file ends in the middle of an object: it was cut short, or is still being written.
    #[error("{path}:{line}: the last line is torn; expected a whole object, got {bytes} bytes")]
    Torn {
        /// The file.
        path: PathBuf,
        /// The last line, from 1.
        line: u64,
        /// Length of what is there of it.
        bytes: usize,
    },
    /// An object lacks a field, or the field is of another type.
    #[error("{path}:{line} [{field}]: wrong value; expected {expected}, got {got}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The key at fault.
        field: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A document so large that tokenising it would fill the memory.
    #[error(
        "{path}:{line}: document too large; expected at most {MAX_DOCUMENT_BYTES} bytes, got more. \
         Split it into several documents"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
    },
    /// There is nothing to train on.
    #[error("{origin}: no documents; expected at least one with text, got {empty} empty ones")]
    NoDocuments {
        /// The files or the generator.
        origin: String,
        /// Documents that were skipped.
        empty: u64,
    },
    /// The tokenizer could not encode a document.
    #[error("{place}: cannot be tokenised: {what}")]
    Encode {
        /// The document.
        place: Place,
        /// What the tokenizer said.
        what: String,
    },
    /// The tokenizer gave an id without a row in the embedding table.
    #[error("{place}: token id out of range; expected below {vocab_size}, got {id}")]
    IdOutOfRange {
        /// The document.
        place: Place,
        /// Size of the vocabulary.
        vocab_size: usize,
        /// The id.
        id: u32,
    },
    /// The files changed while they were being tokenised.
    #[error("{origin}: changed while it was read; expected files at rest, got other bytes")]
    Changed {
        /// The files.
        origin: String,
    },
    /// A mix names a set that is not there.
    #[error("[data]: unknown set; expected one of {known}, got {set:?}")]
    UnknownSet {
        /// The name.
        set: String,
        /// The sets there are.
        known: String,
    },
    /// A weight that cannot be drawn by.
    #[error("[data] {set:?}: bad weight; expected a finite number from 0, got {got}")]
    Weight {
        /// The set.
        set: String,
        /// Its weight.
        got: f64,
    },
    /// A mix without a set that can be drawn.
    #[error("[data]: nothing to draw from; expected a set with a weight above 0, got none")]
    NoWeight,
    /// An epoch of a set has no row: every document was too short or dropped as too long.
    #[error(
        "[data] {set:?}: no rows of {seq_len} tokens; expected a document that fits, got {documents} \
         documents of which {too_short} are too short and {dropped} too long"
    )]
    NoRows {
        /// The set.
        set: String,
        /// Length of a row.
        seq_len: usize,
        /// All documents of the set.
        documents: u64,
        /// Those of fewer than two tokens.
        too_short: u64,
        /// Those longer than a row, under [`super::LongRows::Drop`].
        dropped: u64,
    },
    /// A signal asked for a stop; nothing half-done was left.
    #[error("interrupted while preparing the data")]
    Interrupted,
}

impl DataError {
    /// The kind of the operating system's error, if it was one: decides between "bad input" and
    /// "bad environment".
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io(error) | Self::Format(FormatError::Io(error)) => Some(error.kind()),
            _ => None,
        }
    }
}
