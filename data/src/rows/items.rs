//! Objects of a JSON file one after the other: the items of a list, or values that follow each
//! other.
//!
//! Only strings and brackets are looked at, to find where an object ends; so a file of any size on
//! one line needs the memory of its largest object.

use std::path::{Path, PathBuf};

use super::unpack::{Bytes, fill};
use crate::document::{MAX_DOCUMENT_BYTES, RowContent};
use crate::error::DataError;

/// Where the objects stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ItemPlace {
    /// In the list that the file is.
    List,
    /// In the list under a key of the object that the file is.
    Field(String),
    /// One after the other.
    Sequence,
}

/// Items are numbered from 1; objects that follow each other have the line they begin in.
pub(super) struct JsonItems {
    path: PathBuf,
    bytes: Bytes,
    place: ItemPlace,
    ended: bool,
    number: u64,
    line: u64,
    buffer: Vec<u8>,
    limit: usize,
}

impl JsonItems {
    pub(super) fn new(path: &Path, bytes: Bytes, place: &ItemPlace) -> Result<Self, DataError> {
        let mut items = Self {
            path: path.to_owned(),
            bytes,
            place: place.clone(),
            ended: false,
            number: 0,
            line: 1,
            buffer: Vec::new(),
            limit: MAX_DOCUMENT_BYTES as usize,
        };
        match place {
            ItemPlace::List => items.expect(b'[', "a list")?,
            ItemPlace::Field(field) => items.enter(field)?,
            ItemPlace::Sequence => {}
        }
        Ok(items)
    }

    /// The next item with its number or line.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let in_list = self.place != ItemPlace::Sequence;
        let found = if in_list { self.next_in_list()? } else { self.peek(b",")?.is_some() };
        if !found {
            return Ok(None);
        }
        self.number += 1;
        let line = if in_list { self.number } else { self.line };
        self.value(true)?;
        if self.buffer.is_empty() {
            // A bracket or colon that no value begins with.
            self.expect(b'{', "an object")?;
        }
        Ok(Some((line, RowContent::Json(std::mem::take(&mut self.buffer)))))
    }

    /// Goes to the next item of the list; false at the end of the file, which must come then.
    fn next_in_list(&mut self) -> Result<bool, DataError> {
        match self.peek(b"")? {
            Some(b']') => {
                self.bytes.consume(1);
                self.ended = true;
                self.rest()?;
                return Ok(false);
            }
            None => return Err(self.torn()),
            Some(_) if self.number == 0 => {}
            Some(_) => self.expect(b',', "a comma or ] behind an item")?,
        }
        // Behind a comma the list goes on, so that a file cut there is not taken for whole.
        self.peek(b"")?.map(|_| true).ok_or_else(|| self.torn())
    }

    /// What stands behind the list: the end of the file, or of the object it is in and then of the file.
    fn rest(&mut self) -> Result<(), DataError> {
        if let ItemPlace::Field(field) = self.place.clone() {
            while self.peek(b"")? == Some(b',') {
                self.bytes.consume(1);
                if self.key()? == field {
                    let what = format!("{field:?} stands twice; expected one list of rows");
                    return Err(DataError::file(&self.path, what));
                }
                self.peek(b"")?;
                self.value(false)?;
            }
            if self.peek(b"")?.is_none() {
                return Err(self.torn());
            }
            self.expect(b'}', "a comma or } behind the list")?;
        }
        match self.peek(b"")? {
            None => Ok(()),
            Some(found) => {
                let (line, found) = (self.line, found as char);
                let what = format!(
                    "line {line}: invalid JSON; expected the end of the file behind the list, got {found:?}"
                );
                Err(DataError::file(&self.path, what))
            }
        }
    }

    /// The key of an object's entry; what follows is its value.
    fn key(&mut self) -> Result<String, DataError> {
        if self.peek(b"")? != Some(b'"') {
            self.expect(b'"', "a key")?;
        }
        self.value(true)?;
        let key = std::mem::take(&mut self.buffer);
        self.expect(b':', "a value behind a key")?;
        Ok(serde_json::from_slice(&key).unwrap_or_default())
    }

    /// Goes to the items of the list under a key of the object.
    fn enter(&mut self, field: &str) -> Result<(), DataError> {
        self.expect(b'{', "an object")?;
        loop {
            if self.peek(b",")? != Some(b'"') {
                let what = format!("no list of rows; expected one under {field:?} (data.field)");
                return Err(DataError::file(&self.path, what));
            }
            if self.key()? == field {
                return self.expect(b'[', "a list of rows under the key that data.field names");
            }
            self.peek(b"")?;
            // The value of another key is passed over without being kept, however large it is.
            self.value(false)?;
        }
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<(), DataError> {
        match self.peek(b"")? {
            Some(found) if found == byte => {
                self.bytes.consume(1);
                Ok(())
            }
            found => {
                let got =
                    found.map_or("the end".to_owned(), |found| format!("{:?}", found as char));
                let what = format!("line {}: invalid JSON; expected {what}, got {got}", self.line);
                Err(DataError::file(&self.path, what))
            }
        }
    }

    /// The next byte that is neither whitespace nor one of `skipped`.
    fn peek(&mut self, skipped: &[u8]) -> Result<Option<u8>, DataError> {
        loop {
            let Some(&byte) = fill(&self.path, &mut self.bytes)?.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() && !skipped.contains(&byte) {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.bytes.consume(1);
        }
    }

    /// Goes over one value and keeps its bytes if they are wanted.
    fn value(&mut self, kept: bool) -> Result<(), DataError> {
        let mut scan = ValueScan::default();
        loop {
            let chunk = fill(&self.path, &mut self.bytes)?;
            if chunk.is_empty() {
                return if scan.may_end() { Ok(()) } else { Err(self.torn()) };
            }
            let (used, ended) = scan.advance(chunk);
            if kept {
                self.buffer.extend_from_slice(&chunk[..used]);
            }
            self.line += chunk[..used].split(|&byte| byte == b'\n').count() as u64 - 1;
            self.bytes.consume(used);
            if self.buffer.len() > self.limit {
                let (path, line) = (self.path.clone(), self.number.max(1));
                return Err(DataError::TooLarge { path, line });
            }
            if ended {
                return Ok(());
            }
        }
    }

    fn torn(&self) -> DataError {
        let (path, line) = (self.path.clone(), self.number.max(1));
        DataError::Torn { path, line, bytes: self.buffer.len() }
    }
}

/// Where a value ends.
#[derive(Default)]
struct ValueScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ValueScan {
    /// How many bytes belong to the value, and whether it ends with them.
    fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                if self.in_string || self.depth > 0 {
                    continue;
                }
                return (at + 1, true);
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                // At depth 1 the bracket belongs to the value; at depth 0 it ends what is around
                // the value and is left: `at + depth` says both.
                b'}' | b']' if self.depth <= 1 => return (at + self.depth, true),
                b'}' | b']' => self.depth -= 1,
                // A number ends before the byte that shows its end.
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if self.depth == 0 => return (at, true),
                _ => {}
            }
        }
        (bytes.len(), false)
    }

    /// Whether the file may end here: after a number.
    fn may_end(&self) -> bool {
        self.depth == 0 && !self.in_string
    }
}
