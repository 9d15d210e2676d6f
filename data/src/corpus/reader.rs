//! The rows of files in batches: read in order, parsed and worked on by all cores.

use std::sync::Arc;

use rayon::prelude::*;

use super::canonical::CanonicalRow;
use crate::document::{Document, DocumentFormat, SourceLocation};
use crate::documents::DocumentStream;
use crate::error::DataError;
use crate::report::{RowReport, RowTally};
use crate::source::DocumentSource;

/// Bytes of rows per thread and batch. They decide memory, never a result.
const BYTES_PER_THREAD: usize = 512 << 10;

/// Files to work on, with callbacks for progress and interruption.
pub struct CorpusRequest<'a> {
    /// The rows.
    pub source: &'a DocumentSource,
    /// Called for every batch; `true` stops the work with [`DataError::Interrupted`].
    pub interrupted: &'a dyn Fn() -> bool,
    /// Called for every batch with (done, total) in bytes of files.
    pub progress: &'a dyn Fn(u64, u64),
}

/// The rows of a request, a batch at a time.
pub(super) struct RowBatches<'a> {
    request: &'a CorpusRequest<'a>,
    stream: DocumentStream,
    names: Arc<[Arc<str>]>,
    total: u64,
    tally: RowTally,
}

impl<'a> RowBatches<'a> {
    pub(super) fn of(request: &'a CorpusRequest<'a>) -> Result<Self, DataError> {
        let stream = request.source.documents(DocumentFormat::Either)?;
        let (names, total) = (request.source.names(), request.source.size()?);
        Ok(Self { request, stream, names, total, tally: RowTally::default() })
    }

    /// What `work` makes of the rows of the next batch that can be used; `None` at the end.
    pub(super) fn next<T: Send>(
        &mut self,
        work: impl Fn(&Document, CanonicalRow) -> T + Sync,
    ) -> Result<Option<Vec<(Document, T)>>, DataError> {
        if (self.request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        let batch = self.stream.batch(BYTES_PER_THREAD * rayon::current_num_threads())?;
        if batch.is_empty() {
            return Ok(None);
        }
        let rules = self.request.source.rules();
        let read = |document: Document| match CanonicalRow::of(&document.content, &rules) {
            Ok(row) => {
                let shape = row.shape().to_owned();
                let made = work(&document, row);
                Ok((shape, (document, made)))
            }
            Err(fault) => Err(fault.at(place(&self.names, &document))),
        };
        self.tally.report.rows += batch.len() as u64;
        let worked: Vec<_> = batch.into_par_iter().map(read).collect();
        let mut rows = Vec::with_capacity(worked.len());
        for row in worked {
            match row {
                Ok((shape, row)) => {
                    *self.tally.report.shapes.entry(shape).or_default() += 1;
                    rows.push(row);
                }
                Err(error) => self.tally.add_bad(error),
            }
        }
        self.tally.check_so_far(&rules)?;
        (self.request.progress)(self.stream.done(), self.total);
        Ok(Some(rows))
    }

    /// Where a row stands.
    pub(super) fn place(&self, document: &Document) -> SourceLocation {
        place(&self.names, document)
    }

    /// The names of the files.
    pub(super) fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// The counts, once all rows were read.
    pub(super) fn finish(self) -> Result<RowReport, DataError> {
        self.tally.finish(&self.request.source.rules(), &self.names.join(", "))
    }
}

fn place(names: &[Arc<str>], document: &Document) -> SourceLocation {
    SourceLocation { source: Arc::clone(&names[document.file]), line: document.line }
}
