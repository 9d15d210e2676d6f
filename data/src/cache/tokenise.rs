//! Builds a token cache: documents are tokenised in batches, in parallel, and written in order.

use std::path::Path;
use std::sync::Arc;

use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_text::Tokenizer;
use rayon::ThreadPool;
use rayon::prelude::*;

use super::file::{CacheIdentity, CacheWriter};
use super::request::CacheRequest;
use crate::corpus::{ExactDuplicates, RowFilter};
use crate::document::{Document, RowContent, SourceLocation, TokenDocument};
use crate::documents::DocumentStream;
use crate::encoded::EncodedRow;
use crate::encoding::Encoding;
use crate::error::DataError;
use crate::fault::RowFault;
use crate::reading::ReadingRules;
use crate::report::{RowReport, RowTally};
use crate::selection::RowFate;

/// Text per thread and batch. It affects memory and the latency of an interruption, never the
/// result.
const BYTES_PER_THREAD: usize = 512 << 10;

/// Builds the cache in `target`, which appears only when complete.
pub(super) fn build(
    request: &CacheRequest<'_>,
    identity: CacheIdentity,
    target: &Path,
) -> Result<(), DataError> {
    let staged = StagedDir::beside(target, OnExisting::Replace)?;
    let mut writer = CacheWriter::create(staged.path(), &identity)?;
    let mut documents = request.source.documents(request.encoding.format())?;
    let report = write_all(request, &mut documents, &mut writer)?;
    let origin = || request.source.names().join(", ");
    if report.rows == report.unused() {
        let (empty, others) = (report.empty, report.left_out_words());
        return Err(DataError::NoDocuments { origin: origin(), empty, others });
    }
    // A file that changed while it was read would give a cache of neither version.
    check_unchanged(request, &identity)?;
    writer.finish(identity, report)?;
    Ok(staged.publish()?)
}

fn write_all(
    request: &CacheRequest<'_>,
    documents: &mut DocumentStream,
    writer: &mut CacheWriter,
) -> Result<RowReport, DataError> {
    let (total, names) = (request.source.size()?, request.source.names());
    let rules = request.source.rules();
    let (tokenizer, encoding) = (request.tokenizer, request.encoding);
    let (mut tally, mut duplicates) = (RowTally::default(), ExactDuplicates::default());
    let threads =
        request.pool.map_or_else(rayon::current_num_threads, ThreadPool::current_num_threads);
    let size = BYTES_PER_THREAD * threads;
    let mut batch = documents.batch(size)?;
    loop {
        if (request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        if batch.is_empty() {
            return tally.finish(&rules, &names.join(", "));
        }
        let encode = |document: &Document| {
            used_row((tokenizer, encoding), &rules, &duplicates, document)
                .map_err(|fault| fault.at(place(&names, document)))
        };
        // The next rows are unpacked and read while these are encoded.
        let mut together = || {
            let encoded = || batch.par_iter().map(encode).collect::<Vec<_>>();
            rayon::join(|| documents.batch(size), encoded)
        };
        let (next, encoded) = match request.pool {
            Some(pool) => pool.install(together),
            None => together(),
        };
        // Written in the order of the files: the cache is the same for any number of threads.
        for (document, row) in batch.iter().zip(encoded) {
            match row {
                Ok(UsedRow::Encoded(row, mark)) => {
                    let place = place(&names, document);
                    // In the order of the files, on one thread: which of two equal rows is the
                    // first must not depend on the speed of others.
                    if mark.is_some_and(|mark| duplicates.reason(mark, &place).is_some()) {
                        tally.report.duplicates += 1;
                    } else {
                        write(document, row, writer, &mut tally.report)?;
                    }
                }
                Ok(UsedRow::Filtered) => tally.report.filtered += 1,
                Ok(UsedRow::OtherSide) => tally.report.other_side += 1,
                Err(error) => tally.add_bad(error),
            }
        }
        tally.report.rows += batch.len() as u64;
        tally.check_so_far(&rules)?;
        (request.progress)(documents.done(), total);
        batch = next?;
    }
}

fn write(
    document: &Document,
    row: EncodedRow,
    writer: &mut CacheWriter,
    report: &mut RowReport,
) -> Result<(), DataError> {
    if row.sequences.is_empty() {
        report.empty += 1;
        return Ok(());
    }
    report.turns += row.turns;
    for sequence in row.sequences {
        writer.append(document, &sequence.dialogue, sequence.bytes)?;
    }
    *report.shapes.entry(row.shape).or_default() += 1;
    Ok(())
}

fn place(names: &[Arc<str>], document: &Document) -> SourceLocation {
    SourceLocation { source: Arc::clone(&names[document.file]), line: document.line }
}

/// What becomes of a row.
enum UsedRow {
    /// Its sequences, and the mark that its duplicates have where they are left out.
    Encoded(EncodedRow, Option<<ExactDuplicates as RowFilter>::Mark>),
    Filtered,
    OtherSide,
}

/// Encodes a row that the selection uses.
fn used_row(
    encoder: (&Tokenizer, &Encoding),
    rules: &ReadingRules,
    duplicates: &ExactDuplicates,
    document: &Document,
) -> Result<UsedRow, RowFault> {
    let selection = &rules.selection;
    if !selection.is_needed() {
        return Ok(UsedRow::Encoded(encode(encoder, rules, document)?, None));
    }
    if !selection.takes_fields(&document.content)? {
        return Ok(UsedRow::Filtered);
    }
    // Before the row is encoded: a row that is left out costs no tokens. `plain_text` parses it
    // once more.
    let text = encoder.1.plain_text(&document.content, rules)?;
    Ok(match selection.fate(&text) {
        RowFate::Filtered => UsedRow::Filtered,
        RowFate::OtherSide => UsedRow::OtherSide,
        RowFate::Used => {
            let mark = selection.deduplicated.then(|| duplicates.mark(&text));
            UsedRow::Encoded(encode(encoder, rules, document)?, mark)
        }
    })
}

/// Encodes a row and checks its ids.
fn encode(
    (tokenizer, encoding): (&Tokenizer, &Encoding),
    rules: &ReadingRules,
    document: &Document,
) -> Result<EncodedRow, RowFault> {
    let row = encoding.sequences(tokenizer, &document.content, rules)?;
    let vocab_size = tokenizer.vocab_size();
    let ids = match &document.content {
        // Without what stands around them, so that the place of a wrong one is known.
        RowContent::Tokens(TokenDocument { ids, width, .. }) => {
            out_of_range(ids, vocab_size).map(|(at, id)| (at as u64 * width, id))
        }
        _ => row
            .sequences
            .iter()
            .find_map(|one| out_of_range(&one.dialogue.ids, vocab_size).map(|(_, id)| (0, id))),
    };
    match ids {
        None => Ok(row),
        Some((behind, id)) => Err(RowFault::IdOutOfRange { vocab_size, id, behind }),
    }
}

/// The first id beyond the vocabulary, with its place.
fn out_of_range(ids: &[u32], vocab_size: usize) -> Option<(usize, u32)> {
    ids.iter().copied().enumerate().find(|&(_, id)| id as usize >= vocab_size)
}

/// Hashes the data again. That is cheap compared with tokenising, and nothing else would detect a
/// cache of data that changed meanwhile.
fn check_unchanged(request: &CacheRequest<'_>, identity: &CacheIdentity) -> Result<(), DataError> {
    if request.source.fingerprint(request.interrupted)? == identity.fingerprint {
        return Ok(());
    }
    Err(DataError::Changed { origin: request.source.names().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_must_lie_below_the_size_of_the_vocabulary() {
        assert_eq!(out_of_range(&[0, 1, 299], 300), None);
        assert_eq!(out_of_range(&[0, 300, 301], 300), Some((1, 300)));
    }
}
