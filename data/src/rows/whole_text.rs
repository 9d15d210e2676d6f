//! Documents of a text file: the whole file, or what stands between blank lines.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::options::TextSplit;
use super::unpack::{Bytes, read_error};
use crate::document::{MAX_DOCUMENT_BYTES, RowContent};
use crate::error::DataError;

pub(super) struct WholeText {
    path: PathBuf,
    bytes: Bytes,
    split: TextSplit,
    /// The next line, from 1.
    line: u64,
    limit: u64,
    ended: bool,
}

impl WholeText {
    pub(super) fn new(path: &Path, bytes: Bytes, split: TextSplit) -> Self {
        let (path, limit) = (path.to_owned(), MAX_DOCUMENT_BYTES);
        Self { path, bytes, split, line: 1, limit, ended: false }
    }

    /// The next document with the line it begins in.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let first = self.line;
        let mut text = Vec::new();
        match self.split {
            TextSplit::File => self.read_all(&mut text)?,
            TextSplit::BlankLine => return self.block(),
        }
        self.ended = true;
        Ok(Some((first, self.text(first, text)?)))
    }

    fn read_all(&mut self, text: &mut Vec<u8>) -> Result<(), DataError> {
        let mut bounded = self.bytes.by_ref().take(self.limit + 1);
        bounded.read_to_end(text).map_err(|error| read_error(&self.path, error))?;
        self.within(text, 1)
    }

    /// The lines up to a blank one.
    fn block(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        let (mut text, mut first) = (Vec::new(), self.line);
        loop {
            let before = text.len();
            let mut bounded = self.bytes.by_ref().take(self.limit + 1);
            let read = bounded.read_until(b'\n', &mut text);
            let read = read.map_err(|error| read_error(&self.path, error))?;
            self.within(&text, first)?;
            self.line += 1;
            let blank = text[before..].trim_ascii().is_empty();
            if blank {
                text.truncate(before);
            }
            // Blank lines before a document belong to none; several between two count as one.
            if read == 0 || blank && !text.is_empty() {
                break;
            }
            if blank {
                first = self.line;
            }
        }
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some((first, self.text(first, text.trim_ascii_end().to_vec())?)))
    }

    fn within(&self, text: &[u8], line: u64) -> Result<(), DataError> {
        if text.len() as u64 > self.limit {
            return Err(DataError::TooLarge { path: self.path.clone(), line });
        }
        Ok(())
    }

    fn text(&self, first: u64, bytes: Vec<u8>) -> Result<RowContent, DataError> {
        String::from_utf8(bytes).map(RowContent::Text).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let (before, rest) = error.as_bytes().split_at(at);
            let begin = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            let lines = before.split(|&byte| byte == b'\n').count() as u64;
            let (path, line) = (self.path.clone(), first + lines - 1);
            DataError::NotUtf8 { path, line, column: at - begin + 1, byte: rest[0] }
        })
    }
}
