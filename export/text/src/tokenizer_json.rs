//! The parts of a `tokenizer.json` that the checks need, and parsing them. `check` validates them.

use std::fmt;
use std::io::Read;
use std::path::Path;

use bitnet_format::foreign::{FileRole, refuse};
use bitnet_format::input::open_file;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::TextError;
use crate::limits::MAX_FILE_BYTES;

#[derive(Deserialize)]
pub(crate) struct TokenizerJson {
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedEntry>,
    #[serde(default)]
    pub(crate) post_processor: Option<Value>,
    pub(crate) model: BpeModel,
}

#[derive(Deserialize, Clone)]
pub(crate) struct AddedEntry {
    pub(crate) id: u64,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) special: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
}

#[derive(Deserialize)]
pub(crate) struct BpeModel {
    pub(crate) dropout: Option<f64>,
    pub(crate) unk_token: Option<String>,
    pub(crate) continuing_subword_prefix: Option<String>,
    pub(crate) vocab: VocabEntries,
    pub(crate) merges: Vec<Merge>,
}

/// The other parts of a `tokenizer.json` that influence ids.
#[derive(Deserialize)]
pub(crate) struct Splitting {
    pub(crate) normalizer: Option<Value>,
    pub(crate) pre_tokenizer: Option<Value>,
    pub(crate) model: SplittingModel,
}

#[derive(Deserialize)]
pub(crate) struct SplittingModel {
    #[serde(default)]
    pub(crate) ignore_merges: bool,
    #[serde(default)]
    pub(crate) byte_fallback: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a merge as \"a b\" or [\"a\", \"b\"]")]
pub(crate) enum Merge {
    Pair(String, String),
    Line(String),
}

/// The vocabulary in file order. A map would hide duplicate tokens.
pub(crate) struct VocabEntries(pub(crate) Vec<(String, u64)>);

impl<'de> Deserialize<'de> for VocabEntries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = VocabEntries;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object of tokens and their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabEntries, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(VocabEntries(entries))
    }
}

/// Only the kind of the model: read first, because other kinds lack the fields of [`BpeModel`].
#[derive(Deserialize)]
struct ModelHeader {
    model: ModelType,
    #[serde(flatten)]
    _rest: IgnoredAny,
}

#[derive(Deserialize)]
struct ModelType {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Put before a text by some programs of Windows.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads a whole file of at most [`MAX_FILE_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    refuse(path, FileRole::Tokenizer)?;
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    // `take` bounds the read where the size is unknown, such as a pipe.
    if file.metadata()?.len() <= MAX_FILE_BYTES {
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= MAX_FILE_BYTES {
            if bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            return Ok(bytes);
        }
    }
    Err(TextError::FileTooLarge { path: path.to_owned() })
}

/// Parses a byte-pair tokenizer; any other kind is an error that names the kind.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<TokenizerJson, TextError> {
    begins_as_object(path, bytes)?;
    let head: ModelHeader = from_json(path, bytes)?;
    match head.model.kind {
        Some(got) if got != "BPE" => Err(TextError::NotBpe { path: path.to_owned(), got }),
        // A file that names no kind is taken for BPE; of another kind it lacks the fields.
        _ => from_json(path, bytes),
    }
}

fn from_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, TextError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = error.to_string();
        // The parser's text ends in the place, which the error has in fields of its own.
        let place = format!(" at line {line} column {column}");
        let what = what.strip_suffix(&place).unwrap_or(&what).to_owned();
        TextError::Json { path: path.to_owned(), line, column, what }
    })
}

/// A byte order mark, an empty file and a non-object get messages of their own: the parser's
/// ("expected value") would not help.
fn begins_as_object(path: &Path, bytes: &[u8]) -> Result<(), TextError> {
    let start = bytes.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(bytes.len());
    let got = match bytes[start..] {
        [b'{', ..] => return Ok(()),
        [] => "nothing".to_owned(),
        [0xef, 0xbb, 0xbf, ..] => "a byte order mark (U+FEFF)".to_owned(),
        [byte, ..] => format!("'{}'", byte.escape_ascii()),
    };
    let line = bytes[..start].split(|b| *b == b'\n').count();
    let column = 1 + bytes[..start].iter().rev().take_while(|b| **b != b'\n').count();
    let what = format!("expected '{{', got {got}");
    Err(TextError::Json { path: path.to_owned(), line, column, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        parse(Path::new("t.json"), bytes).err().expect("this input is broken").to_string()
    }

    #[test]
    fn a_value_that_is_not_an_object_is_reported_with_line_and_column() {
        let at = "t.json: not a tokenizer at line";
        assert_eq!(
            message(b"\xef\xbb\xbf{}"),
            format!("{at} 1, column 1: expected '{{', got a byte order mark (U+FEFF)")
        );
        assert_eq!(message(b"\n  [1]"), format!("{at} 2, column 3: expected '{{', got '['"));
        assert_eq!(message(b""), format!("{at} 1, column 1: expected '{{', got nothing"));
    }

    #[test]
    fn truncated_json_is_reported_with_line_and_column() {
        assert_eq!(
            message(b"{\"model\":\n{\"type\":\"BPE\""),
            "t.json: not a tokenizer at line 2, column 13: EOF while parsing an object"
        );
    }

    #[test]
    fn another_kind_of_model_is_named() {
        assert_eq!(
            message(br#"{"model":{"type":"Unigram","vocab":[["a",-1.5]]}}"#),
            "t.json [model.type]: unsupported; expected \"BPE\", got \"Unigram\""
        );
    }

    #[test]
    fn a_negative_id_is_reported_with_line_and_column() {
        assert_eq!(
            message(br#"{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}"#),
            "t.json: not a tokenizer at line 1, column 38: \
             invalid value: integer `-1`, expected u64"
        );
    }

    #[test]
    fn a_malformed_merge_is_reported_with_line_and_column() {
        let text = message(br#"{"model":{"type":"BPE","vocab":{"a":1},"merges":[["a","b","c"]]}}"#);
        assert!(text.contains("expected a merge as \"a b\""), "{text}");
    }

    #[test]
    fn a_huge_file_is_refused_without_reading_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs_err::File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        let text = read(&path).unwrap_err().to_string();
        assert!(
            text.ends_with("tokenizer.json: too large; expected at most 268435456 bytes, got more"),
            "{text}"
        );
    }
}
