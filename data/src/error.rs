//! The errors of this module.

use std::io;
use std::path::{Path, PathBuf};

use bitnet_format::FormatError;
use bitnet_format::Shown;

use super::document::{MAX_DOCUMENT_BYTES, SourceLocation};

/// What is wrong with the data.
///
/// Messages have the form `<file>:<line> [<field>]: <what>; expected …, got …`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An error of the operating system: missing file, permission, full disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The cache cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file of the cache changed its size while it was in use.
    #[error(
        "{}: has {got} bytes; expected {expected}: another program changed it while in use", .path.shown())]
    CacheChanged {
        /// The file.
        path: PathBuf,
        /// Its size when it was opened.
        expected: u64,
        /// Its size now.
        got: u64,
    },
    /// A set without files, for example because a pattern matched nothing.
    #[error("the data set has no files; expected at least one file, got none")]
    NoFiles,
    /// A kind of file that cannot be read.
    #[error("{}: unknown kind of file; expected {expected}, got {got:?}", .path.shown())]
    Extension {
        /// The file.
        path: PathBuf,
        /// The supported extensions.
        expected: &'static str,
        /// Its extension.
        got: String,
    },
    /// A file that cannot be read as what it is.
    #[error("{}: {what}", .path.shown())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what is there.
        what: String,
    },
    /// A file that is not UTF-8.
    #[error("{}:{line}: not UTF-8 at column {column}; expected text, got byte 0x{byte:02x}", .path.shown())]
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
    /// A row that its file does not hold whole.
    #[error("{}:{line}: a row that cannot be read; {what}", .path.shown())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Line or row, from 1.
        line: u64,
        /// What was expected and what is there.
        what: String,
    },
    /// Several rows cannot be used where none may be left out.
    #[error(
        "{first}\n{others}\n{bad} of the {rows} rows read{so_far} cannot be used (a share of {:.4}); \
         data.bad_rows = \"skip\" leaves such rows out", *.bad as f64 / (*.rows).max(1) as f64)]
    BadRows {
        /// What is wrong with the first.
        first: Box<DataError>,
        /// The next nine, a line each.
        others: String,
        /// Rows that cannot be used.
        bad: u64,
        /// All rows that were read.
        rows: u64,
        /// ` so far` where reading ended early.
        so_far: &'static str,
    },
    /// More rows cannot be used than the recipe allows.
    #[error(
        "{origin}: {bad} of {rows} rows cannot be used; expected at most a share of {limit} \
         (data.max_bad_share), got {:.4}\n{examples}", *.bad as f64 / (*.rows).max(1) as f64)]
    TooManyBad {
        /// The files.
        origin: String,
        /// Rows that cannot be used.
        bad: u64,
        /// All rows.
        rows: u64,
        /// The largest share.
        limit: f64,
        /// The first of them, a line each.
        examples: String,
    },
    /// A row of a `.jsonl` file does not parse.
    #[error("{}:{line}: invalid JSON; expected one object a line, got {what}", .path.shown())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What the parser found, with its column.
        what: String,
    },
    /// The file ends in the middle of an object. It was cut short, or is still being written.
    #[error("{}:{line}: the last line is torn; expected a whole object, got {bytes} bytes", .path.shown())]
    Torn {
        /// The file.
        path: PathBuf,
        /// The last line, from 1.
        line: u64,
        /// Length of the incomplete line.
        bytes: usize,
    },
    /// A missing field, or a field of another type.
    #[error("{}:{line} [{field}]: wrong value; expected {expected}, got {got}", .path.shown())]
    Field {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field.
        field: String,
        /// The expected value.
        expected: &'static str,
        /// The actual value.
        got: String,
    },
    /// A document so large that tokenising it would fill the memory.
    #[error(
        "{}:{line}: document too large; expected at most {MAX_DOCUMENT_BYTES} bytes, got more. \
         Split it into several documents", .path.shown())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
    },
    /// A set without text.
    #[error(
        "{origin}: no documents; expected at least one with text, got {empty} empty ones{others}"
    )]
    NoDocuments {
        /// The files or the generator.
        origin: String,
        /// Documents that were skipped.
        empty: u64,
        /// `, 7 duplicates left out`, and what else became of the rows.
        others: String,
    },
    /// All sets of a mixture were read as often as they may be.
    #[error(
        "[data]: no rows left; expected a set that was read less than max_epochs times, got {sets}"
    )]
    UsedUp {
        /// The sets.
        sets: String,
    },
    /// The tokenizer could not encode a document.
    #[error("{location}: cannot be tokenised: {what}")]
    Encode {
        /// The document.
        location: SourceLocation,
        /// The tokenizer's error.
        what: String,
    },
    /// The tokenizer returned an id outside the vocabulary.
    #[error("{location}: token id out of range; expected below {vocab_size}, got {id}")]
    IdOutOfRange {
        /// The document.
        location: SourceLocation,
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
    /// A mixture names an unknown set.
    #[error("[data]: unknown set; expected one of {known}, got {set:?}")]
    UnknownSet {
        /// The name.
        set: String,
        /// The known sets.
        known: String,
    },
    /// A weight that is negative or not finite.
    #[error("[data] {set:?}: bad weight; expected a finite number from 0, got {got}")]
    Weight {
        /// The set.
        set: String,
        /// Its weight.
        got: f64,
    },
    /// A mixture in which no set has a positive weight.
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
        /// Documents of fewer than two tokens.
        too_short: u64,
        /// Documents longer than a row, under [`super::LongDocuments::Drop`].
        dropped: u64,
    },
    /// Stopped by a signal; nothing incomplete is left on disk.
    #[error("interrupted while preparing the data")]
    Interrupted,
}

impl DataError {
    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }

    /// The kind of an error of the operating system. It tells a bad environment from bad input.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io(error) | Self::Format(FormatError::Io(error)) => Some(error.kind()),
            _ => None,
        }
    }
}
