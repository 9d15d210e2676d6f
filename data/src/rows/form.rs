//! What a file of data is: by its content, and by its name where the content leaves it open.

use std::path::Path;

use bitnet_format::foreign::{FileRole, ForeignKind, refuse_head};

use super::items::ItemPlace;
use super::options::FileOptions;
use super::table::TableForm;
use super::token_ids::TokenFiles;
use super::unpack::Unpacked;
use crate::document::DocumentFormat;
use crate::error::DataError;

/// What is read, for messages.
const ROWS: &str = ".jsonl, .json, .parquet, .csv or .tsv, plain or as .gz or .zst";
const ROWS_OR_TEXT: &str = ".jsonl, .json, .parquet, .csv, .tsv or .txt, plain or as .gz or .zst";
/// The list of rows in a `.json` file that is one object.
const LIST_FIELD: &str = "data";

const NAMES: &[&str] = &["jsonl", "ndjson", "json", "parquet", "csv", "tsv", "txt"];

/// Whether a file of this name is taken where a folder of data is named.
pub fn is_data_name(path: &Path) -> bool {
    NAMES.contains(&&*inner_extension(path))
}

/// How the rows of a file stand in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileForm {
    Lines,
    Items(ItemPlace),
    Table(TableForm),
    Parquet,
    Text,
    Tokens(TokenFiles),
}

impl FileForm {
    pub(super) fn of(
        path: &Path,
        file: &Unpacked,
        format: DocumentFormat,
        options: &FileOptions,
    ) -> Result<Self, DataError> {
        if let Some(tokens) = options.tokens {
            return Ok(Self::Tokens(tokens));
        }
        match ForeignKind::of(&file.head) {
            Some(ForeignKind::Parquet) if !file.packed => return Ok(Self::Parquet),
            // A weights file or an archive by its first bytes: the error says what it is.
            Some(_) => refuse_head(path, &file.head, FileRole::Data)?,
            None => {}
        }
        let extension = inner_extension(path);
        let known = match &*extension {
            "txt" | "text" if format != DocumentFormat::JsonLine => Some(Self::Text),
            "csv" => Some(table(&file.head, None)),
            "tsv" | "tab" => Some(table(&file.head, Some(b'\t'))),
            "jsonl" | "ndjson" => Some(json(&file.head, options.field.as_deref(), false)),
            "json" => Some(json(&file.head, options.field.as_deref(), true)),
            // Its reader says what is wrong with it.
            "parquet" if !file.packed => Some(Self::Parquet),
            "txt" | "text" | "parquet" => None,
            // Under any other name the first byte decides.
            _ if matches!(first(&file.head), Some(b'{' | b'[')) => {
                Some(json(&file.head, options.field.as_deref(), false))
            }
            _ => None,
        };
        let expected = if format == DocumentFormat::JsonLine { ROWS } else { ROWS_OR_TEXT };
        let (path, got) = (path.to_owned(), extension);
        known.ok_or(DataError::Extension { path, expected, got })
    }
}

/// The extension of the content: `jsonl` of `a.jsonl.gz`.
fn inner_extension(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let packed = [".gz", ".gzip", ".zst", ".zstd"];
    let name = packed.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.rsplit_once('.').map_or(String::new(), |(_, extension)| extension.to_owned())
}

fn first(head: &[u8]) -> Option<u8> {
    head.trim_ascii_start().first().copied()
}

/// Objects of a file that is named `.json` may be spread over lines.
fn json(head: &[u8], field: Option<&str>, spread: bool) -> FileForm {
    match (first(head), field) {
        (Some(b'['), _) => FileForm::Items(ItemPlace::List),
        (Some(b'{'), Some(field)) => FileForm::Items(ItemPlace::Field(field.to_owned())),
        (Some(b'{'), None) if spread && holds_list(head, LIST_FIELD) => {
            FileForm::Items(ItemPlace::Field(LIST_FIELD.to_owned()))
        }
        (Some(b'{'), None) if spread => FileForm::Items(ItemPlace::Sequence),
        _ => FileForm::Lines,
    }
}

/// Whether the object that begins here has a list under this key, as far as its beginning tells.
fn holds_list(head: &[u8], key: &str) -> bool {
    let (mut depth, mut at) = (0, 0);
    while at < head.len() {
        match head[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let end = string_end(head, at);
                let rest = head.get(end..).unwrap_or_default().trim_ascii_start();
                let after = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
                let named = head.get(at + 1..end.saturating_sub(1)) == Some(key.as_bytes());
                // Only a key of the outermost object, and only with a list: `"data": {` is
                // something else.
                if depth == 1 && named && after.is_some_and(|value| value.starts_with(b"[")) {
                    return true;
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    false
}

/// The position after the string that begins at `at`.
fn string_end(text: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < text.len() && text[end] != b'"' {
        end += 1 + usize::from(text[end] == b'\\');
    }
    end + 1
}

/// Cells end at commas, unless the first line has none and semicolons or tabs: spreadsheets of many
/// countries.
fn table(head: &[u8], delimiter: Option<u8>) -> FileForm {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let has = |byte: u8| line.contains(&byte);
    let found = match (has(b','), has(b';'), has(b'\t')) {
        (false, true, _) => b';',
        (false, false, true) => b'\t',
        _ => b',',
    };
    FileForm::Table(TableForm {
        delimiter: delimiter.unwrap_or(found),
        crlf: line.ends_with(b"\r"),
    })
}
