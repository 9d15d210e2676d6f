//! Builds a token cache: documents are tokenised in batches, in parallel, and written in order.

use std::path::Path;
use std::sync::Arc;

use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_text::Tokenizer;
use rayon::prelude::*;

use super::file::{CacheIdentity, CacheWriter};
use super::report::RowReport;
use super::request::CacheRequest;
use crate::document::{Document, SourceLocation};
use crate::documents::DocumentStream;
use crate::encoding::{EncodedRow, Encoding};
use crate::error::DataError;
use crate::fault::RowFault;
use crate::reading::{BadRows, ReadingRules};

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
    report.check(&request.source.rules(), &origin())?;
    if report.rows == report.empty + report.bad {
        return Err(DataError::NoDocuments { origin: origin(), empty: report.rows });
    }
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
    let skips = rules.bad_rows != BadRows::Error;
    let mut report = RowReport::default();
    loop {
        if (request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        let batch = next_batch(documents, BYTES_PER_THREAD * rayon::current_num_threads())?;
        if batch.is_empty() {
            return Ok(report);
        }
        let encode = |document: &Document| {
            encode((tokenizer, encoding), &rules, document)
                .map_err(|fault| fault.at(place(&names, document)))
        };
        let encoded: Vec<_> = batch.par_iter().map(encode).collect();
        for (document, row) in batch.iter().zip(encoded) {
            match row {
                Ok(row) => write(document, row, writer, &mut report)?,
                Err(error) if skips => report.add_bad(&error),
                Err(error) => return Err(error),
            }
        }
        report.rows += batch.len() as u64;
        (request.progress)(documents.done(), total);
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
    for sequence in row.sequences {
        writer.append(document, &sequence.dialogue, sequence.bytes)?;
    }
    *report.shapes.entry(row.shape).or_default() += 1;
    Ok(())
}

fn place(names: &[Arc<str>], document: &Document) -> SourceLocation {
    SourceLocation { source: Arc::clone(&names[document.file]), line: document.line }
}

fn next_batch(documents: &mut DocumentStream, bytes: usize) -> Result<Vec<Document>, DataError> {
    let mut batch = Vec::new();
    let mut length = 0;
    while length < bytes {
        let Some(document) = documents.next().transpose()? else { break };
        length += document.content.bytes().max(1);
        batch.push(document);
    }
    Ok(batch)
}

/// Encodes a row and checks its ids.
fn encode(
    (tokenizer, encoding): (&Tokenizer, &Encoding),
    rules: &ReadingRules,
    document: &Document,
) -> Result<EncodedRow, RowFault> {
    let row = encoding.sequences(tokenizer, &document.content, rules)?;
    let vocab_size = tokenizer.vocab_size();
    match row.sequences.iter().find_map(|one| out_of_range(&one.dialogue.ids, vocab_size)) {
        None => Ok(row),
        Some(id) => Err(RowFault::IdOutOfRange { vocab_size, id }),
    }
}

fn out_of_range(ids: &[u32], vocab_size: usize) -> Option<u32> {
    ids.iter().copied().find(|&id| id as usize >= vocab_size)
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
    use crate::DocumentSource;
    use crate::document::DocumentFormat;

    #[test]
    fn ids_must_lie_below_the_size_of_the_vocabulary() {
        assert_eq!(out_of_range(&[0, 1, 299], 300), None);
        assert_eq!(out_of_range(&[0, 300, 301], 300), Some(300));
    }

    #[test]
    fn a_batch_ends_with_the_document_that_fills_it() {
        let texts = ["abc", "de", "f", "g"].map(str::to_owned).to_vec();
        let mut documents =
            DocumentSource::in_memory("test", texts).documents(DocumentFormat::Text).unwrap();
        let mut sizes = || next_batch(&mut documents, 4).unwrap().len();
        assert_eq!([sizes(), sizes(), sizes()], [2, 2, 0]);
    }
}
