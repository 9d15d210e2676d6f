//! Turning documents into a token cache: in parallel, in batches, in order.
//!
//! Whether that is needed, and where the result goes, is decided in `cache`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_text::{Dialogue, Tokenizer};
use rayon::prelude::*;

use super::cache::CacheRequest;
use super::cache_file::{CacheIdentity, CacheWriter};
use super::conversation::Mistake;
use super::documents::Document;
use super::encoding::{Encoding, Trouble};
use super::error::DataError;
use super::row::Place;
use super::source::SourceDocuments;

/// Text that each thread is given at a time; decides memory and the latency of an interruption,
/// never the result.
const BYTES_PER_THREAD: usize = 512 << 10;

/// Tokenises everything into `target`, which appears only when complete.
pub(crate) fn tokenise(
    request: &CacheRequest<'_>,
    identity: CacheIdentity,
    target: &Path,
) -> Result<(), DataError> {
    let staged = StagedDir::beside(target, OnExisting::Replace)?;
    let mut writer = CacheWriter::create(staged.path(), &identity)?;
    let mut documents = request.source.documents(request.content())?;
    if write_all(request, &mut documents, &mut writer)? == 0 {
        let origin = request.source.names().join(", ");
        return Err(DataError::NoDocuments { origin, empty: documents.empty() });
    }
    check_unchanged(request, &identity)?;
    writer.finish(identity, documents.empty())?;
    Ok(staged.publish()?)
}

/// Gives the number of documents.
fn write_all(
    request: &CacheRequest<'_>,
    documents: &mut SourceDocuments,
    writer: &mut CacheWriter,
) -> Result<u64, DataError> {
    let total = request.source.size()?;
    let names = request.source.names();
    let encoder = Encoder { tokenizer: request.tokenizer, encoding: request.encoding, names };
    let mut written = 0;
    loop {
        if (request.interrupted)() {
            return Err(DataError::Interrupted);
        }
        let batch = next_batch(documents, BYTES_PER_THREAD * rayon::current_num_threads())?;
        if batch.is_empty() {
            return Ok(written);
        }
        let encoded: Vec<_> = batch.par_iter().map(|document| encoder.encode(document)).collect();
        for (document, sequences) in batch.iter().zip(encoded) {
            for sequence in sequences? {
                writer.append(document, &sequence)?;
            }
        }
        written += batch.len() as u64;
        (request.progress)(documents.done(), total);
    }
}

fn next_batch(documents: &mut SourceDocuments, bytes: usize) -> Result<Vec<Document>, DataError> {
    let mut batch = Vec::new();
    let mut length = 0;
    while length < bytes {
        let Some(document) = documents.next().transpose()? else { break };
        length += document.text.len();
        batch.push(document);
    }
    Ok(batch)
}

struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    encoding: &'a Encoding,
    names: Arc<[Arc<str>]>,
}

impl Encoder<'_> {
    fn encode(&self, document: &Document) -> Result<Vec<Dialogue>, DataError> {
        let sequences = self.encoding.sequences(self.tokenizer, &document.text);
        let sequences = sequences.map_err(|trouble| self.explain(document, trouble))?;
        let vocab_size = self.tokenizer.vocab_size();
        match sequences.iter().find_map(|one| out_of_range(&one.ids, vocab_size)) {
            None => Ok(sequences),
            Some(id) => {
                Err(DataError::IdOutOfRange { place: self.place(document), vocab_size, id })
            }
        }
    }

    fn explain(&self, document: &Document, trouble: Trouble) -> DataError {
        let place = self.place(document);
        match trouble {
            Trouble::Text(error) => DataError::Encode { place, what: error.to_string() },
            Trouble::Row(Mistake { field, expected, got }) => DataError::Field {
                path: PathBuf::from(&*place.source),
                line: place.line,
                field,
                expected,
                got,
            },
        }
    }

    fn place(&self, document: &Document) -> Place {
        Place { source: Arc::clone(&self.names[document.file]), line: document.line }
    }
}

fn out_of_range(ids: &[u32], vocab_size: usize) -> Option<u32> {
    ids.iter().copied().find(|&id| id as usize >= vocab_size)
}

/// Hashing costs next to nothing beside tokenising, and a wrong cache would never be noticed.
fn check_unchanged(request: &CacheRequest<'_>, identity: &CacheIdentity) -> Result<(), DataError> {
    if request.source.fingerprint(request.interrupted)? == identity.fingerprint {
        return Ok(());
    }
    Err(DataError::Changed { origin: request.source.names().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Source;
    use crate::data::documents::Content;

    #[test]
    fn ids_must_lie_below_the_size_of_the_vocabulary() {
        assert_eq!(out_of_range(&[0, 1, 299], 300), None);
        assert_eq!(out_of_range(&[0, 300, 301], 300), Some(300));
    }

    #[test]
    fn a_batch_ends_with_the_document_that_fills_it() {
        let texts = ["abc", "de", "f", "g"].map(str::to_owned).to_vec();
        let mut documents = Source::in_memory("test", texts).documents(Content::Text).unwrap();
        let mut sizes = || next_batch(&mut documents, 4).unwrap().len();
        assert_eq!([sizes(), sizes(), sizes()], [2, 2, 0]);
    }
}
