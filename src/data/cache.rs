//! The token cache: every document of a set, tokenised once and mapped from then on.
//!
//! A cache lies in `<cache_dir>/<key>/`. The key is a hash of the layout's version, this crate's
//! version, the tokenizer's bytes and the data's fingerprint, so nothing is ever out of date: other
//! data has another key. It is built under `<key>.lock` by one process while others wait, and
//! published by rename. The layout of the files lives in `cache_file`, the work in `tokenise`.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_text::Tokenizer;

use super::cache_file::{CacheFiles, CacheIdentity, LAYOUT_VERSION};
use super::documents::Content;
use super::encoding::Encoding;
use super::error::DataError;
use super::lock::FileLock;
use super::row::Place;
use super::source::{Source, part};
use super::tokenise::tokenise;

/// Hexadecimal digits of the key that name the directory.
const NAME_DIGITS: usize = 32;

/// Which tokens are wanted, and who is told about the work.
pub struct CacheRequest<'a> {
    /// Where caches lie; made where needed.
    pub cache_dir: &'a Path,
    /// The documents.
    pub source: &'a Source,
    /// How text becomes tokens.
    pub tokenizer: &'a Tokenizer,
    /// What a document is and which of its tokens are trained.
    pub encoding: &'a Encoding,
    /// Polled for every batch of a few hundred kilobytes and while waiting; `true` ends the work
    /// with [`DataError::Interrupted`].
    pub interrupted: &'a dyn Fn() -> bool,
    /// Told (done, total) in bytes of files, or in documents of a generator, while building.
    pub progress: &'a dyn Fn(u64, u64),
}

impl<'a> CacheRequest<'a> {
    /// A request for plain text that nobody watches or interrupts.
    pub fn new(cache_dir: &'a Path, source: &'a Source, tokenizer: &'a Tokenizer) -> Self {
        let encoding = &Encoding::Text;
        let (interrupted, progress) = (&|| false, &|_, _| {});
        Self { cache_dir, source, tokenizer, encoding, interrupted, progress }
    }

    /// What of a line is a document.
    pub(crate) fn content(&self) -> Content {
        if self.encoding.reads_lines() { Content::Line } else { Content::Text }
    }
}

/// How a cache came about, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOrigin {
    /// It was there.
    Reused,
    /// It was made now.
    Built,
    /// One was there but damaged, and was replaced.
    Rebuilt {
        /// What was wrong.
        why: String,
    },
}

/// Sizes of a set, for messages and for bits per byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Documents with text.
    pub documents: u64,
    /// Tokens, those around each document included.
    pub tokens: u64,
    /// UTF-8 bytes of the texts.
    pub bytes: u64,
    /// Documents that were left out because they have no text.
    pub empty_documents: u64,
}

/// The tokens of a set. Cloning shares them.
#[derive(Clone, Debug)]
pub struct TokenCache(Arc<Contents>);

#[derive(Debug)]
struct Contents {
    files: CacheFiles,
    names: Arc<[Arc<str>]>,
    fingerprint: String,
    statistics: CacheStatistics,
    origin: CacheOrigin,
}

impl TokenCache {
    /// Opens the cache of this data and tokenizer, and builds it first where that is needed.
    ///
    /// An interruption leaves nothing behind but the lock file; so does an error.
    pub fn open_or_build(request: &CacheRequest<'_>) -> Result<Self, DataError> {
        let identity = identify(request)?;
        let dir = request.cache_dir.join(&identity.key[..NAME_DIGITS]);
        if let Ok(files) = CacheFiles::open(&dir, &identity) {
            return Ok(Self::new(request, identity, files, CacheOrigin::Reused));
        }
        fs_err::create_dir_all(request.cache_dir)?;
        let lock = FileLock::exclusive(&dir.with_extension("lock"), request.interrupted)?;
        let _lock = lock.ok_or(DataError::Interrupted)?;
        let origin = match CacheFiles::open(&dir, &identity) {
            Ok(files) => return Ok(Self::new(request, identity, files, CacheOrigin::Reused)),
            Err(why) if dir.exists() => CacheOrigin::Rebuilt { why },
            Err(_) => CacheOrigin::Built,
        };
        remove_leftovers(&dir)?;
        tokenise(request, identity.clone(), &dir)?;
        let files = CacheFiles::open(&dir, &identity).map_err(std::io::Error::other)?;
        Ok(Self::new(request, identity, files, origin))
    }

    fn new(
        request: &CacheRequest<'_>,
        identity: CacheIdentity,
        files: CacheFiles,
        origin: CacheOrigin,
    ) -> Self {
        Self::of(files, request.source.names(), identity.fingerprint, origin)
    }

    pub(super) fn of(
        files: CacheFiles,
        names: Arc<[Arc<str>]>,
        fingerprint: String,
        origin: CacheOrigin,
    ) -> Self {
        let statistics = CacheStatistics {
            documents: files.documents() as u64,
            tokens: files.start(files.documents()),
            bytes: files.records().map(|record| record.text_bytes).sum(),
            empty_documents: files.empty_documents(),
        };
        Self(Arc::new(Contents { files, names, fingerprint, statistics, origin }))
    }

    /// Sizes of the set.
    pub fn statistics(&self) -> CacheStatistics {
        self.0.statistics
    }

    /// [`Source::fingerprint`] of the data.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// How this cache came about.
    pub fn origin(&self) -> &CacheOrigin {
        &self.0.origin
    }

    /// What names this cache among others: data, tokenizer and encoding together.
    pub fn key(&self) -> &str {
        self.0.files.key()
    }

    /// Whether only some tokens are trained: conversations and preferences.
    pub fn is_marked(&self) -> bool {
        self.0.files.is_marked()
    }

    /// Number of sequences: of documents, or twice that of preferences.
    pub fn documents(&self) -> usize {
        self.0.files.documents()
    }

    /// Tokens of a document, those around it included.
    pub fn length(&self, document: usize) -> u64 {
        self.0.files.record(document).end - self.0.files.start(document)
    }

    /// Appends tokens of a document, counted from its first, to `out`.
    ///
    /// # Panics
    /// When the document has not so many.
    pub fn extend(&self, document: usize, tokens: Range<usize>, out: &mut Vec<i32>) {
        assert!(tokens.end as u64 <= self.length(document), "tokens within the document");
        let start = self.0.files.start(document);
        self.0.files.extend(start + tokens.start as u64, start + tokens.end as u64, out);
    }

    /// Appends for the tokens of a document whether they are trained, 1 or 0.
    ///
    /// # Panics
    /// When the document has not so many.
    pub fn extend_mask(&self, document: usize, tokens: Range<usize>, out: &mut Vec<f32>) {
        assert!(tokens.end as u64 <= self.length(document), "tokens within the document");
        let start = self.0.files.start(document);
        self.0.files.extend_mask(start + tokens.start as u64, start + tokens.end as u64, out);
    }

    /// Whether any of these tokens of a document is trained.
    pub(crate) fn trains_any(&self, document: usize, tokens: Range<usize>) -> bool {
        let mut mask = Vec::with_capacity(tokens.len());
        self.extend_mask(document, tokens, &mut mask);
        mask.contains(&1.0)
    }

    /// The first trained token of a document.
    pub(crate) fn first_trained(&self, document: usize) -> Option<usize> {
        let mut mask = Vec::new();
        self.extend_mask(document, 0..self.length(document) as usize, &mut mask);
        mask.iter().position(|&trained| trained > 0.0)
    }

    /// Where a document comes from.
    pub fn place(&self, document: usize) -> Place {
        let record = self.0.files.record(document);
        Place { source: Arc::clone(&self.0.names[record.file as usize]), line: record.line }
    }
}

fn identify(request: &CacheRequest<'_>) -> Result<CacheIdentity, DataError> {
    request.source.documents(request.content())?; // names are checked before anything is hashed
    let (fingerprint, files) = request.source.identify(request.interrupted)?;
    let mut hasher = blake3::Hasher::new_derive_key("bitnet-train token cache");
    part(&mut hasher, &LAYOUT_VERSION.to_le_bytes());
    part(&mut hasher, env!("CARGO_PKG_VERSION").as_bytes());
    part(&mut hasher, blake3::hash(request.tokenizer.json()).as_bytes());
    part(&mut hasher, fingerprint.as_bytes());
    part(&mut hasher, request.encoding.identity().as_bytes());
    let key = hasher.finalize().to_hex().to_string();
    let vocab_size = request.tokenizer.vocab_size();
    let marked = request.encoding.is_marked();
    Ok(CacheIdentity { layout: LAYOUT_VERSION, key, fingerprint, vocab_size, marked, files })
}

/// Removes what killed processes left of this cache. Only the holder of the lock calls it.
fn remove_leftovers(dir: &Path) -> Result<(), DataError> {
    let prefix = format!("{}.tmp-", dir.file_name().unwrap_or_default().to_string_lossy());
    let parent = dir.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    for entry in fs_err::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs_err::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
