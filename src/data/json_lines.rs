//! `.jsonl` files, one object a line, streamed. What the objects mean is for those who ask:
//! `documents` for plain text, the fine-tuning stages for conversations.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use fs_err::File;
use serde_json::{Map, Value};

use super::documents::MAX_DOCUMENT_BYTES;
use super::error::DataError;

/// One line of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonLine {
    /// Its number, from 1.
    pub line: u64,
    /// What stands in it.
    pub object: Map<String, Value>,
}

/// The objects of a file in order. Lines end at `\n` and nowhere else (JSON strings may hold
/// U+2028), blank lines are skipped, and a last line without `\n` counts when it is whole.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    reader: BufReader<File>,
    limit: u64,
    line: u64,
    bytes: u64,
    buffer: Vec<u8>,
    failed: bool,
}

impl JsonLines {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::with_limit(path, MAX_DOCUMENT_BYTES)
    }

    fn with_limit(path: &Path, limit: u64) -> Result<Self, DataError> {
        let reader = BufReader::with_capacity(1 << 18, File::open(path)?);
        let path = path.to_owned();
        Ok(Self { path, reader, limit, line: 0, bytes: 0, buffer: Vec::new(), failed: false })
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The text of the line that was read last.
    pub(crate) fn current(&self) -> &str {
        std::str::from_utf8(&self.buffer)
            .expect("a line was checked when it was parsed")
            .trim_ascii()
    }

    /// The string in `field` of a line, or what is wrong with it.
    pub fn string(&self, line: JsonLine, field: &str) -> Result<String, DataError> {
        let JsonLine { line, mut object } = line;
        match object.swap_remove(field) {
            Some(Value::String(text)) => Ok(text),
            other => Err(DataError::Field {
                path: self.path.clone(),
                line,
                field: field.to_owned(),
                expected: "a string",
                got: other.as_ref().map_or("no such key", kind).to_owned(),
            }),
        }
    }

    /// Reads the next line that is not blank; `None` at the end.
    fn advance(&mut self) -> Result<Option<JsonLine>, DataError> {
        while self.fill()? {
            if !self.buffer.trim_ascii().is_empty() {
                let object = self.parse()?;
                return Ok(Some(JsonLine { line: self.line, object }));
            }
        }
        Ok(None)
    }

    /// Puts one raw line into the buffer; `false` at the end of the file.
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

    fn parse(&self) -> Result<Map<String, Value>, DataError> {
        let text = std::str::from_utf8(&self.buffer).map_err(|error| self.not_utf8(error))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(self.invalid(kind(&other).to_owned())),
            Err(error) if error.is_eof() && !self.is_ended() => Err(self.torn()),
            Err(error) => Err(self.invalid(describe(&error))),
        }
    }

    /// Whether the line in the buffer ends as lines do.
    fn is_ended(&self) -> bool {
        self.buffer.ends_with(b"\n")
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

impl Iterator for JsonLines {
    type Item = Result<JsonLine, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// What a JSON value is, in the words of a message.
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

/// The parser's words, with the column and without its line, which is always the first.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<JsonLine>, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs_err::write(&path, bytes).unwrap();
        JsonLines::with_limit(&path, 100).unwrap().collect()
    }

    #[test]
    fn blank_lines_are_skipped_and_counted_in_line_numbers() {
        let rows = read(b"\n{\"a\":1}\r\n \t \n{\"a\":2}").unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn only_a_line_feed_ends_a_line() {
        let rows = read("{\"a\":\"x\u{2028}y\u{85}z\"}\n".as_bytes()).unwrap();
        assert_eq!(rows[0].object["a"], "x\u{2028}y\u{85}z");
    }

    #[test]
    fn a_line_longer_than_the_limit_is_refused_without_reading_it_all() {
        let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(200));
        assert!(matches!(read(long.as_bytes()), Err(DataError::TooLarge { line: 1, .. })));
    }

    #[test]
    fn nothing_follows_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs_err::write(&path, "[]\n{}\n").unwrap();
        let mut lines = JsonLines::open(&path).unwrap();
        assert!(lines.next().unwrap().is_err());
        assert!(lines.next().is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
