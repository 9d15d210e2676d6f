//! The rows of files in batches: read in order, parsed and worked on by all cores.

use std::sync::Arc;

use rayon::prelude::*;

use super::canonical::CanonicalRow;
use crate::document::{Document, DocumentFormat, SourceLocation};
use crate::documents::DocumentStream;
use crate::error::DataError;
use crate::report::{RowReport, RowTally};
use crate::source::DocumentSource;
use crate::turn_order::TurnChanges;
use crate::turns::TurnRules;

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
    /// The rows of the next batch, where they were read already.
    ahead: Option<Vec<Document>>,
    names: Arc<[Arc<str>]>,
    total: u64,
    tally: RowTally,
    reordering: TurnChanges,
}

impl<'a> RowBatches<'a> {
    pub(super) fn of(request: &'a CorpusRequest<'a>) -> Result<Self, DataError> {
        let stream = request.source.documents(DocumentFormat::Either)?;
        let (names, total) = (request.source.names(), request.source.size()?);
        let ahead = None;
        Ok(Self {
            request,
            stream,
            ahead,
            names,
            total,
            tally: RowTally::default(),
            reordering: TurnChanges::default(),
        })
    }

    /// What `work` makes of the rows of the next batch that can be used; `None` at the end.
    pub(super) fn next<T: Send>(
        &mut self,
        work: impl Fn(&Document, CanonicalRow) -> T + Sync,
    ) -> Result<Option<Vec<(Document, T)>>, DataError> {
        if (self.request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        let size = BYTES_PER_THREAD * rayon::current_num_threads();
        let batch = self.ahead.take().map_or_else(|| self.stream.batch(size), Ok)?;
        if batch.is_empty() {
            return Ok(None);
        }
        let rules = self.request.source.rules();
        let (stream, names) = (&mut self.stream, &self.names);
        let read = |document: Document| {
            // One for each row: it counts what is left out of that row.
            let turns = TurnRules::of(&rules);
            match CanonicalRow::read(&document.content, &rules, &turns) {
                Ok(row) => {
                    let found = (row.shape().to_owned(), turns.dropped(), row.reordering());
                    let made = work(&document, row);
                    Ok((found, (document, made)))
                }
                Err(fault) => Err(fault.at(place(names, &document))),
            }
        };
        self.tally.report.rows += batch.len() as u64;
        // The next rows are unpacked and read while these are worked on.
        let (ahead, worked): (_, Vec<_>) =
            rayon::join(|| stream.batch(size), || batch.into_par_iter().map(read).collect());
        let mut rows = Vec::with_capacity(worked.len());
        for row in worked {
            match row {
                Ok(((shape, dropped, reordering), row)) => {
                    self.tally.report.turns += TurnChanges::dropped(dropped);
                    self.reordering += reordering;
                    *self.tally.report.shapes.entry(shape).or_default() += 1;
                    rows.push(row);
                }
                Err(error) => self.tally.add_bad(error),
            }
        }
        self.tally.check_so_far(&rules)?;
        self.ahead = Some(ahead?);
        (self.request.progress)(self.stream.done(), self.total);
        Ok(Some(rows))
    }

    /// Where a row stands.
    pub(super) fn place(&self, document: &Document) -> SourceLocation {
        place(&self.names, document)
    }

    /// What a template that demands turns in alternation would do to the turns so far.
    pub(super) fn reordering(&self) -> TurnChanges {
        self.reordering
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
