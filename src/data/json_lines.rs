//! Streams a `.jsonl` file: one JSON object a line.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bitnet_format::foreign::{FileRole, refuse, without_mark};
use bitnet_format::input::open_file;
use fs_err::File;
use serde_json::{Map, Value};

use super::document::{DocumentFormat, MAX_DOCUMENT_BYTES};
use super::error::DataError;

/// The field that holds the text of a document.
const TEXT_FIELD: &str = "text";

/// The lines of a file in order. Only `\n` ends a line, because JSON strings may contain U+2028.
/// Blank lines are skipped. A last line without `\n` counts if it is complete.
#[derive(Debug)]
pub(crate) struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    limit: u64,
    line: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

impl JsonLines {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        Self::with_limit(path, MAX_DOCUMENT_BYTES)
    }

    fn with_limit(path: &Path, limit: u64) -> Result<Self, DataError> {
        refuse(path, FileRole::Data)?;
        let reader = BufReader::with_capacity(1 << 18, open_file(path)?);
        Ok(Self { path: path.to_owned(), reader, limit, line: 0, bytes: 0, buffer: Vec::new() })
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next document and its line; `None` at the end of the file.
    pub(crate) fn next(
        &mut self,
        format: DocumentFormat,
    ) -> Result<Option<(u64, String)>, DataError> {
        while self.fill()? {
            let text = std::str::from_utf8(&self.buffer).map_err(|error| self.not_utf8(error))?;
            let text = if self.line == 1 { without_mark(text) } else { text };
            if text.trim_ascii().is_empty() {
                continue;
            }
            let object = self.parse(text)?;
            let text = match format {
                DocumentFormat::Text => self.text_field(object)?,
                DocumentFormat::JsonLine => text.trim_ascii().to_owned(),
            };
            return Ok(Some((self.line, text)));
        }
        Ok(None)
    }

    /// Puts one line into the buffer; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, DataError> {
        self.buffer.clear();
        let mut bounded = self.reader.by_ref().take(self.limit + 1);
        let read = bounded.read_until(b'\n', &mut self.buffer)? as u64;
        self.bytes += read;
        self.line += 1;
        if read > self.limit {
            return Err(DataError::TooLarge { path: self.path.clone(), line: self.line });
        }
        Ok(read > 0)
    }

    fn parse(&self, text: &str) -> Result<Map<String, Value>, DataError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(self.invalid(kind(&other).to_owned())),
            Err(error) if error.is_eof() && !self.buffer.ends_with(b"\n") => Err(self.torn()),
            Err(error) => Err(self.invalid(describe(&error))),
        }
    }

    fn text_field(&self, mut object: Map<String, Value>) -> Result<String, DataError> {
        match object.swap_remove(TEXT_FIELD) {
            Some(Value::String(text)) => Ok(text),
            other => Err(DataError::Field {
                path: self.path.clone(),
                line: self.line,
                field: TEXT_FIELD.to_owned(),
                expected: "a string",
                got: other.as_ref().map_or("no such key", kind).to_owned(),
            }),
        }
    }

    fn not_utf8(&self, error: std::str::Utf8Error) -> DataError {
        if error.error_len().is_none() {
            return self.torn(); // the bytes end within a character
        }
        let at = error.valid_up_to();
        let (path, line) = (self.path.clone(), self.line);
        DataError::NotUtf8 { path, line, column: at + 1, byte: self.buffer[at] }
    }

    fn torn(&self) -> DataError {
        DataError::Torn { path: self.path.clone(), line: self.line, bytes: self.buffer.len() }
    }

    fn invalid(&self, what: String) -> DataError {
        DataError::Json { path: self.path.clone(), line: self.line, what }
    }
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

/// The parser's message with its column. Its line is always 1 and is left out.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u64, String)>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs_err::write(&path, bytes).unwrap();
        let mut lines = JsonLines::with_limit(&path, 100)?;
        std::iter::from_fn(|| lines.next(DocumentFormat::JsonLine).transpose()).collect()
    }

    #[test]
    fn blank_lines_are_skipped_and_counted_in_line_numbers() {
        let lines = read(b"\n{\"a\":1}\r\n \t \n{\"a\":2}").unwrap();
        assert_eq!(lines, [(2, "{\"a\":1}".to_owned()), (4, "{\"a\":2}".to_owned())]);
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_no_part_of_it() {
        assert_eq!(read(b"\xef\xbb\xbf{\"a\":1}\n").unwrap(), [(1, "{\"a\":1}".to_owned())]);
        assert!(read(b"{}\n\xef\xbb\xbf{}\n").is_err(), "only there");
    }

    #[test]
    fn a_file_of_another_kind_is_named() {
        for (bytes, name) in [
            (&b"PAR1\x15\x04\x15\x10"[..], "Parquet"),
            (b"\x1f\x8b\x08\0\0", "gzip"),
            (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
            (b"<!DOCTYPE html><html>", "HTML"),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("hint: "), "{error}");
        }
    }

    #[test]
    fn only_a_line_feed_ends_a_line() {
        let line = "{\"a\":\"x\u{2028}y\u{85}z\"}";
        assert_eq!(read(format!("{line}\n").as_bytes()).unwrap(), [(1, line.to_owned())]);
    }

    #[test]
    fn a_line_longer_than_the_limit_is_refused_without_reading_it_all() {
        let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(200));
        assert!(matches!(read(long.as_bytes()), Err(DataError::TooLarge { line: 1, .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
