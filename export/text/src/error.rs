//! The errors of this crate. The modules that detect them are elsewhere.

use std::path::{Path, PathBuf};

use bitnet_format::FormatError;
use bitnet_format::Shown;

use crate::limits::{MAX_FILE_BYTES, MAX_TRAIN_BYTES, MAX_VOCAB, MIN_VOCAB};

/// What went wrong while reading, using or training a tokenizer, or with a chat template.
///
/// Messages have the form `<file> [<field>]: <what>; expected …, got …`.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The operating system refused: missing file, permission, a folder instead of a file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A GGUF file does not open.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A GGUF file cannot express this tokenizer, or holds none.
    #[error("{} [{field}]: {what}", .path.shown())]
    Inexpressible {
        /// The file.
        path: PathBuf,
        /// The key at fault.
        field: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// The file is larger than any tokenizer, so it was not read.
    #[error("{}: too large; expected at most {MAX_FILE_BYTES} bytes, got more", .path.shown())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON, is cut short, or lacks a field every tokenizer has.
    #[error("{}: not a tokenizer at line {line}, column {column}: {what}", .path.shown())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1; 0 where the line has just begun.
        column: usize,
        /// What the parser met there.
        what: String,
    },
    /// The model is of another kind.
    #[error("{} [model.type]: unsupported; expected \"BPE\", got {got:?}", .path.shown())]
    NotBpe {
        /// The file.
        path: PathBuf,
        /// The kind it names.
        got: String,
    },
    /// Merges are dropped at random, so the same text would give other ids each time.
    #[error("{} [model.dropout]: ids would be random; expected null or 0, got {got}", .path.shown())]
    Dropout {
        /// The file.
        path: PathBuf,
        /// The probability it asks for.
        got: f64,
    },
    /// The vocabulary names a token twice.
    #[error("{} [model.vocab]: {token:?} appears twice; expected every token once", .path.shown())]
    TokenTwice {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
    },
    /// Two tokens have the same id.
    #[error(
        "{} [{field}]: id {id} is taken; expected one token an id, got {first:?} and {second:?}", .path.shown())]
    IdTwice {
        /// The file.
        path: PathBuf,
        /// `model.vocab` or `added_tokens`.
        field: &'static str,
        /// The shared id.
        id: u32,
        /// The token that had it first.
        first: String,
        /// The token that wants it too.
        second: String,
    },
    /// An id so large that the embedding table would be mostly empty.
    #[error("{} [{field}]: id of {token:?} too large; expected below {limit}, got {id}", .path.shown())]
    IdTooLarge {
        /// The file.
        path: PathBuf,
        /// `model.vocab` or `added_tokens`.
        field: &'static str,
        /// The token.
        token: String,
        /// Its id.
        id: u64,
        /// The first id that is too large: twice the number of tokens.
        limit: u64,
    },
    /// A merge is not two tokens of the vocabulary that join to a third.
    #[error("{} [model.merges.{index}]: {what}", .path.shown())]
    Merge {
        /// The file.
        path: PathBuf,
        /// Which merge, from 0.
        index: usize,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// `unk_token` names no token.
    #[error("{} [model.unk_token]: expected a token of the vocabulary, got {token:?}", .path.shown())]
    UnkToken {
        /// The file.
        path: PathBuf,
        /// The name.
        token: String,
    },
    /// An added token contradicts the vocabulary, another added token, or its own purpose.
    #[error("{} [added_tokens {token:?}]: {what}", .path.shown())]
    Added {
        /// The file.
        path: PathBuf,
        /// The added token.
        token: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// The post-processor names a token that is not there, or gives it another id.
    #[error("{} [{field}]: {what}", .path.shown())]
    PostProcessor {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        field: String,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// Plain text could become a special token.
    #[error(
        "{} [added_tokens {token:?}]: plain text becomes this special token; expected none to", .path.shown())]
    SpecialFromText {
        /// The file.
        path: PathBuf,
        /// The special token.
        token: String,
    },
    /// The `tokenizers` library refused the file.
    #[error("{}: cannot be loaded: {what}", .path.shown())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the library said.
        what: String,
    },
    /// The `tokenizers` library could not encode a text.
    #[error("{}: cannot encode the text: {what}", .path.shown())]
    Encode {
        /// The tokenizer's file.
        path: PathBuf,
        /// What the library said.
        what: String,
    },
    /// No token of the tokenizer can end a turn of a conversation.
    #[error(
        "{} [added_tokens]: nothing ends a turn; expected {token:?} or an end-of-text token, \
         got neither", .path.shown())]
    NoTurnEnd {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token that should be there.
        token: &'static str,
    },
    /// A chat template does not parse, does not terminate, or loses a message.
    #[error("{}: {what}", place(path, *line))]
    ChatTemplate {
        /// The template's file.
        path: PathBuf,
        /// Line, from 1, where one is at fault.
        line: Option<usize>,
        /// What is wrong, with what was expected.
        what: String,
    },
    /// A vocabulary size outside the trainable range.
    #[error("[vocab_size]: out of range; expected {MIN_VOCAB} to {MAX_VOCAB}, got {got}")]
    VocabSize {
        /// The size asked for.
        got: usize,
    },
    /// More text than the pair counters can hold.
    #[error(
        "training text: too large; expected a sample of at most {MAX_TRAIN_BYTES} bytes, got more"
    )]
    TrainTooLarge,
    /// The `tokenizers` library could not train.
    #[error("tokenizer training failed: {what}")]
    Train {
        /// What the library said.
        what: String,
    },
}

/// `<file>:<line>`, or the file alone.
fn place(path: &Path, line: Option<usize>) -> String {
    let path = path.shown();
    line.map_or_else(|| path.to_string(), |line| format!("{path}:{line}"))
}

impl TextError {
    pub(crate) fn merge(path: &Path, index: usize, what: String) -> Self {
        Self::Merge { path: path.to_owned(), index, what }
    }

    pub(crate) fn added(path: &Path, token: &str, what: impl Into<String>) -> Self {
        Self::Added { path: path.to_owned(), token: token.to_owned(), what: what.into() }
    }

    pub(crate) fn post(path: &Path, field: &str, what: impl Into<String>) -> Self {
        Self::PostProcessor { path: path.to_owned(), field: field.to_owned(), what: what.into() }
    }

    pub(crate) fn load(path: &Path, what: impl Into<String>) -> Self {
        Self::Load { path: path.to_owned(), what: what.into() }
    }
}
