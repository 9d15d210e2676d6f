//! Rows of a CSV or TSV file with a header: every cell is text.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use csv::ByteRecord;
use serde_json::{Map, Value};

use super::unpack::{Bytes, read_error};
use crate::document::{MAX_DOCUMENT_BYTES, RowContent};
use crate::error::DataError;

/// How the cells and rows of a table end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableForm {
    pub(super) delimiter: u8,
    /// Rows end in CR and LF; the parser counts the line when it comes to the next row.
    pub(super) crlf: bool,
}

pub(super) struct TableRows {
    path: PathBuf,
    reader: csv::Reader<Bounded>,
    header: Vec<String>,
    record: ByteRecord,
    left: Arc<AtomicU64>,
    is_torn: Arc<AtomicBool>,
    /// What is added to the parser's lines.
    ahead: u64,
}

/// Ends a row that never ends, and knows whether the file ends within a quoted cell: a quote that nobody
/// closed makes one cell of all that follows.
struct Bounded {
    bytes: Bytes,
    left: Arc<AtomicU64>,
    delimiter: u8,
    place: CellPlace,
    is_torn: Arc<AtomicBool>,
}

/// Where a byte of a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellPlace {
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted cell: its end, or the first half of a quote that is meant.
    Quote,
}

impl CellPlace {
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::Quote,
            (Self::Quoted, _) | (Self::Start | Self::Quote, b'"') => Self::Quoted,
            (_, b'\r' | b'\n') => Self::Start,
            (_, byte) if byte == delimiter => Self::Start,
            _ => Self::Plain,
        }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        let place = |place: CellPlace, byte: &u8| place.after(*byte, self.delimiter);
        self.place = buffer[..read].iter().fold(self.place, place);
        if read == 0 && !buffer.is_empty() {
            self.is_torn.store(self.place == CellPlace::Quoted, Ordering::Relaxed);
        }
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        if left == 0 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(read) }
    }
}

impl TableRows {
    pub(super) fn new(path: &Path, bytes: Bytes, form: TableForm) -> Result<Self, DataError> {
        let left = Arc::new(AtomicU64::new(MAX_DOCUMENT_BYTES));
        let is_torn = Arc::new(AtomicBool::new(false));
        let bounded = Bounded {
            bytes,
            left: Arc::clone(&left),
            delimiter: form.delimiter,
            place: CellPlace::Start,
            is_torn: Arc::clone(&is_torn),
        };
        let reader = csv::ReaderBuilder::new()
            .delimiter(form.delimiter)
            // The header is read like a row, so that it has the same bound and its line is counted.
            .has_headers(false)
            // Rows of another length are bad rows, not the end of the file.
            .flexible(true)
            .from_reader(bounded);
        let (path, header, record) = (path.to_owned(), Vec::new(), ByteRecord::new());
        let ahead = u64::from(form.crlf);
        let mut table = Self { path, reader, header, record, left, is_torn, ahead };
        if table.fill()?.is_some() {
            let names = table.record.iter().map(|name| std::str::from_utf8(name).map(str::trim));
            let header = names.map(|name| name.map(str::to_owned)).collect::<Result<_, _>>();
            table.header = header.map_err(|_| {
                DataError::file(&table.path, "not UTF-8 in its header; expected text")
            })?;
            let mut names = BTreeSet::new();
            // Columns without a name are common, and nothing asks for them.
            let mut named = table.header.iter().filter(|name| !name.is_empty());
            if let Some(twice) = named.find(|name| !names.insert(*name)) {
                let what = format!("two columns {twice:?} in its header; expected different names");
                return Err(DataError::file(&table.path, what));
            }
        }
        Ok(table)
    }

    /// Reads one record and returns its line.
    fn fill(&mut self) -> Result<Option<u64>, DataError> {
        self.left.store(MAX_DOCUMENT_BYTES, Ordering::Relaxed);
        let line = self.reader.position().line();
        let filled = self.reader.read_byte_record(&mut self.record);
        let filled = filled.map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                DataError::TooLarge { path: self.path.clone(), line }
            }
            csv::ErrorKind::Io(error) => read_error(&self.path, error),
            other => DataError::file(&self.path, format!("bad table: {other:?}")),
        })?;
        let line = self.record.position().map_or(line, csv::Position::line);
        if filled && self.is_torn.load(Ordering::Relaxed) {
            let (path, line) = (self.path.clone(), line + self.ahead);
            return Err(DataError::Torn { path, line, bytes: self.record.as_slice().len() });
        }
        Ok(filled.then_some(line))
    }

    /// The next row with the line it begins in.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        let line = self.fill()?;
        Ok(line.map(|line| (line + self.ahead, self.row())))
    }

    fn row(&self) -> RowContent {
        let (expected, got) = (self.header.len(), self.record.len());
        if expected != got {
            return RowContent::Unreadable(format!("expected {expected} cells, got {got}"));
        }
        let mut row = Map::with_capacity(expected);
        for (name, cell) in self.header.iter().zip(&self.record) {
            let Ok(cell) = std::str::from_utf8(cell) else {
                return RowContent::Unreadable(format!(
                    "expected text in {name:?}, got other bytes"
                ));
            };
            row.insert(name.clone(), Value::String(cell.to_owned()));
        }
        RowContent::Object(row)
    }
}
