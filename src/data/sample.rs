//! Caches and tokenizers that several test modules share. Nothing outside tests lives here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_text::{Tokenizer, train_bpe};

use super::cache::{CacheOrigin, CacheRequest, TokenCache};
use super::cache_file::{CacheFiles, CacheIdentity, CacheWriter, LAYOUT_VERSION};
use super::documents::Document;
use super::error::DataError;
use super::source::Source;

/// One token a byte, between 256 and 257.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let json = train_bpe(std::iter::once("ab".to_owned()), 264).unwrap();
    Tokenizer::from_bytes(Path::new("bytes.json"), &json).unwrap()
}

/// Opens or builds without interruption.
pub(crate) fn cached(
    cache_dir: &Path,
    source: &Source,
    tokenizer: &Tokenizer,
) -> Result<TokenCache, DataError> {
    let (interrupted, progress) = (&|| false, &|_, _| {});
    TokenCache::open_or_build(&CacheRequest { cache_dir, source, tokenizer, interrupted, progress })
}

/// A cache of documents given as ids, called `sample:1`, `sample:2`, …
pub(crate) fn cache_of(documents: &[Vec<u32>]) -> TokenCache {
    let dir = tempfile::tempdir().unwrap();
    let (key, vocab_size) = (String::new(), 1 << 20);
    let (fingerprint, files) = (String::new(), Vec::new());
    let identity = CacheIdentity { layout: LAYOUT_VERSION, key, fingerprint, vocab_size, files };
    let mut writer = CacheWriter::create(dir.path(), vocab_size).unwrap();
    for (index, ids) in documents.iter().enumerate() {
        let document = Document { file: 0, line: index as u64 + 1, text: "text".to_owned() };
        writer.append(&document, ids).unwrap();
    }
    writer.finish(identity.clone(), 0).unwrap();
    // The mapping outlives the files.
    let files = CacheFiles::open(dir.path(), &identity).unwrap();
    TokenCache::of(files, Arc::new([Arc::from("sample")]), String::new(), CacheOrigin::Built)
}

/// The real data, or a visible line and `None` where it is absent.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}
