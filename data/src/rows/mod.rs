//! A file of data as a stream of rows, whatever its form: JSON lines, a JSON array, Parquet, CSV or
//! text, plain or packed with gzip or Zstandard.
//!
//! ```text
//! unpack (gzip, zstd) → form (what it is) → lines | items | table | ParquetRows | token_ids | whole_text
//! ```
//!
//! One row is in memory at a time. Nothing is parsed that need not be to find the end of a row:
//! that is done later, on all cores.

mod form;
mod items;
mod lines;
mod options;
mod table;
mod token_ids;
mod unpack;
mod whole_text;

use std::path::Path;

use bitnet_parquet::ParquetRows;

use crate::document::{DocumentFormat, RowContent};
use crate::error::DataError;

use form::FileForm;
pub use form::is_data_name;
use items::JsonItems;
use lines::JsonLines;
pub(crate) use options::TEXT_FIELD;
pub use options::{FileOptions, TextSplit};
use table::TableRows;
use token_ids::TokenIds;
pub use token_ids::{TokenFiles, TokenType};
use unpack::Unpacked;
use whole_text::WholeText;

/// The rows of a file in their order.
pub(crate) struct FileRows {
    rows: Rows,
    /// Bytes of the file that were read.
    read: unpack::BytesRead,
}

enum Rows {
    Lines(JsonLines),
    Items(JsonItems),
    Table(TableRows),
    Parquet(ParquetRows),
    Text(WholeText),
    Tokens(TokenIds),
}

impl std::fmt::Debug for FileRows {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "FileRows at {}", self.done())
    }
}

/// Looks only at the beginning of a file: whether it can hold rows of this kind.
pub(crate) fn check(
    path: &Path,
    format: DocumentFormat,
    options: &FileOptions,
) -> Result<(), DataError> {
    let unpacked = Unpacked::open(path)?;
    FileForm::of(path, &unpacked, format, options).map(|_| ())
}

impl FileRows {
    pub(crate) fn open(
        path: &Path,
        format: DocumentFormat,
        options: &FileOptions,
    ) -> Result<Self, DataError> {
        let unpacked = Unpacked::open(path)?;
        let form = FileForm::of(path, &unpacked, format, options)?;
        let (bytes, read, head) = (unpacked.bytes, unpacked.read, unpacked.head);
        let rows = match form {
            FileForm::Lines => Rows::Lines(JsonLines::new(path, bytes)),
            FileForm::Items(place) => Rows::Items(JsonItems::new(path, bytes, &place)?),
            FileForm::Table(form) => Rows::Table(TableRows::new(path, bytes, form)?),
            FileForm::Parquet => Rows::Parquet(ParquetRows::open(path, &options.wanted(format))?),
            FileForm::Tokens(how) => Rows::Tokens(TokenIds::open(path, bytes, &head, how)?),
            FileForm::Text => Rows::Text(WholeText::new(path, bytes, options.text_split)),
        };
        Ok(Self { rows, read })
    }

    /// Bytes of the file that its rows so far took.
    pub(crate) fn done(&self) -> u64 {
        match &self.rows {
            // Its reader opens the file by itself, so that nothing goes through the counter.
            Rows::Parquet(rows) => rows.done(),
            _ => self.read.get(),
        }
    }

    /// The next row with its line, or its number where a file has no lines, or its first byte in a
    /// token file; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        match &mut self.rows {
            Rows::Lines(rows) => rows.next(),
            Rows::Items(rows) => rows.next(),
            Rows::Table(rows) => rows.next(),
            Rows::Parquet(rows) => {
                let row = rows.next().transpose()?;
                Ok(row.map(|row| (rows.number(), RowContent::Object(row))))
            }
            Rows::Text(rows) => rows.next(),
            Rows::Tokens(rows) => rows.next(),
        }
    }
}

#[cfg(test)]
mod tests;
