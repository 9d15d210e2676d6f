//! Builds a token cache: documents are tokenised in batches, in parallel, and written in order.

use std::path::Path;
use std::sync::Arc;

use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_text::Tokenizer;
use rayon::prelude::*;

use super::file::{CacheIdentity, CacheWriter};
use super::request::CacheRequest;
use crate::data::document::{Document, SourceLocation};
use crate::data::documents::DocumentStream;
use crate::data::encoding::{EncodedSequence, Encoding};
use crate::data::error::DataError;

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
    if write_all(request, &mut documents, &mut writer)? == 0 {
        let origin = request.source.names().join(", ");
        return Err(DataError::NoDocuments { origin, empty: documents.empty() });
    }
    check_unchanged(request, &identity)?;
    writer.finish(identity, documents.empty())?;
    Ok(staged.publish()?)
}

/// Returns the number of documents.
fn write_all(
    request: &CacheRequest<'_>,
    documents: &mut DocumentStream,
    writer: &mut CacheWriter,
) -> Result<u64, DataError> {
    let total = request.source.size()?;
    let names = request.source.names();
    let encoder = (request.tokenizer, request.encoding);
    let mut written = 0;
    loop {
        if (request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        let batch = next_batch(documents, BYTES_PER_THREAD * rayon::current_num_threads())?;
        if batch.is_empty() {
            return Ok(written);
        }
        let encoded: Vec<_> =
            batch.par_iter().map(|document| encode(encoder, &names, document)).collect();
        for (document, sequences) in batch.iter().zip(encoded) {
            for sequence in sequences? {
                writer.append(document, &sequence.dialogue, sequence.bytes)?;
            }
        }
        written += batch.len() as u64;
        (request.progress)(documents.done(), total);
    }
}

fn next_batch(documents: &mut DocumentStream, bytes: usize) -> Result<Vec<Document>, DataError> {
    let mut batch = Vec::new();
    let mut length = 0;
    while length < bytes {
        let Some(document) = documents.next().transpose()? else { break };
        length += document.text.len();
        batch.push(document);
    }
    Ok(batch)
}

/// Encodes a document and checks its ids.
fn encode(
    (tokenizer, encoding): (&Tokenizer, &Encoding),
    names: &[Arc<str>],
    document: &Document,
) -> Result<Vec<EncodedSequence>, DataError> {
    let location =
        || SourceLocation { source: Arc::clone(&names[document.file]), line: document.line };
    let sequences = encoding.sequences(tokenizer, &document.text);
    let sequences = sequences.map_err(|error| error.at(location()))?;
    let vocab_size = tokenizer.vocab_size();
    match sequences.iter().find_map(|one| out_of_range(&one.dialogue.ids, vocab_size)) {
        None => Ok(sequences),
        Some(id) => Err(DataError::IdOutOfRange { location: location(), vocab_size, id }),
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
    use crate::data::DocumentSource;
    use crate::data::document::DocumentFormat;

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
