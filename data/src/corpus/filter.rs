//! Separates rows: each is kept or left out, by what its text says and by the rows before it.

use std::path::Path;

use super::reader::{CorpusRequest, RowBatches};
use super::row_file::{RowFile, line};
use crate::document::SourceLocation;
use crate::error::DataError;
use crate::report::RowReport;

/// Decides which rows are left out.
pub trait RowFilter: Sync {
    /// What is taken from a text, on all cores.
    type Mark: Send;

    /// The mark of a row's text.
    fn mark(&self, text: &str) -> Self::Mark;

    /// Why a row is left out, if it is. Called for every row in order.
    fn reason(&mut self, mark: Self::Mark, place: &SourceLocation) -> Option<String>;
}

/// A row that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it stands.
    pub place: SourceLocation,
    /// Why.
    pub reason: String,
}

/// Where rows go.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowOutputs<'a> {
    /// The file of the rows that are kept, if they are written. An existing one is replaced.
    pub kept: Option<&'a Path>,
    /// The file of those that are left out.
    pub left_out: Option<&'a Path>,
}

/// Statistics of a pass that separates rows.
#[derive(Clone, Debug, PartialEq)]
pub struct SeparatedRows {
    /// What was read.
    pub report: RowReport,
    /// Rows that were kept.
    pub kept: u64,
    /// Rows that were left out.
    pub left_out: u64,
}

/// Sends every row to one of two files, as it was read, and tells `listed` of those left out.
///
/// # Errors
/// As [`convert`](super::convert()).
pub fn separate<F: RowFilter>(
    request: &CorpusRequest<'_>,
    filter: &mut F,
    outputs: RowOutputs<'_>,
    listed: &mut dyn FnMut(LeftOut),
) -> Result<SeparatedRows, DataError> {
    let mut rows = RowBatches::of(request)?;
    let mut kept_file = outputs.kept.map(RowFile::create).transpose()?;
    let mut left_out_file = outputs.left_out.map(RowFile::create).transpose()?;
    let (mut kept, mut left_out) = (0, 0);
    while let Some(batch) = rows.next(|_, row| filter.mark(&row.text()))? {
        for (document, mark) in batch {
            let place = rows.place(&document);
            let file = if let Some(reason) = filter.reason(mark, &place) {
                left_out += 1;
                listed(LeftOut { place, reason });
                &mut left_out_file
            } else {
                kept += 1;
                &mut kept_file
            };
            if let Some(file) = file {
                file.write(&line(&document.content))?;
            }
        }
    }
    let report = rows.finish()?;
    // After `finish`, which refuses a set with too many bad rows: neither file appears then.
    [kept_file, left_out_file].into_iter().flatten().try_for_each(RowFile::publish)?;
    Ok(SeparatedRows { report, kept, left_out })
}
