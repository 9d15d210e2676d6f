//! Files of other programs, recognised by their content and named with what to do about them.
//!
//! Every reader of a file calls [`refuse`] first. Only the beginning of the file is read;
//! nothing is unpacked, run or followed.

mod advice;
mod folder;
mod signature;

use std::io::Read;
use std::path::Path;

use crate::FormatError;

pub use folder::{missing_model, missing_tokenizer, missing_weights};
pub use signature::ForeignKind;

/// What a file was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// Text, conversations or preferences.
    Data,
    /// A model file.
    Model,
    /// The tensors of a model folder.
    Weights,
    /// A `tokenizer.json`.
    Tokenizer,
    /// A recipe or config.
    Recipe,
    /// A chat template.
    Template,
    /// Token ids, or settings in JSON.
    Json,
}

impl FileRole {
    fn expected(self) -> &'static str {
        match self {
            Self::Data => "rows or text: .jsonl, .json, .parquet, .csv, .tsv or .txt in UTF-8",
            Self::Model => "a folder with config.json and model.safetensors, or a GGUF file",
            Self::Weights => "safetensors",
            Self::Tokenizer => "a tokenizer.json",
            Self::Recipe => "a TOML file",
            Self::Template => "a Jinja template",
            Self::Json => "JSON",
        }
    }

    fn takes(self, kind: ForeignKind) -> bool {
        match self {
            Self::Model => kind == ForeignKind::Gguf,
            Self::Weights => kind == ForeignKind::Safetensors,
            _ => false,
        }
    }
}

/// Bytes that are looked at: the magic of a tar archive ends at 262.
const HEAD_BYTES: u64 = 512;

/// What a file of another program is; `None` for any other, and for what is not a readable file.
pub fn recognise(path: &Path) -> Option<ForeignKind> {
    // Opening a pipe or a device could wait for ever.
    if !fs_err::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    fs_err::File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    ForeignKind::of(&head)
}

/// An error that names the kind of a file if it is one that cannot be what it was given as.
///
/// # Errors
/// When the file is recognised. A file that does not open is left to its reader.
pub fn refuse(path: &Path, role: FileRole) -> Result<(), FormatError> {
    recognise(path).map_or(Ok(()), |kind| refuse_kind(path, kind, role))
}

/// The same of a file whose content begins with `head`: unpacked, for example.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_head(path: &Path, head: &[u8], role: FileRole) -> Result<(), FormatError> {
    ForeignKind::of(head).map_or(Ok(()), |kind| refuse_kind(path, kind, role))
}

fn refuse_kind(path: &Path, kind: ForeignKind, role: FileRole) -> Result<(), FormatError> {
    if role.takes(kind) {
        return Ok(());
    }
    Err(FormatError::container(path, refusal(path, kind, role)))
}

/// A text without the byte-order mark that some programs put before it.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The same for bytes that are yet to be read as text.
pub fn without_mark_bytes(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

/// `not …; expected …, got …` with a hint.
fn refusal(path: &Path, kind: ForeignKind, role: FileRole) -> String {
    let expected = role.expected();
    let hint = advice::advice(path, kind, role);
    format!("not read; expected {expected}, got {}\nhint: {hint}", kind.name())
}

#[cfg(test)]
mod tests;
