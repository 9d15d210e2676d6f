//! The token cache: every document of a set, tokenised once and memory-mapped from then on.
//!
//! ```text
//! <cache_dir>/
//!   3f2a…e1.lock       held while the cache is built; other processes wait
//!   3f2a…e1.tmp-…/     the cache under construction, renamed when complete
//!   3f2a…e1/           the first 32 digits of its key
//!     tokens.bin       the ids of all documents, one after the other
//!     documents.bin    one record per document
//!     meta.json        identity, sizes and checksums of the two
//! ```
//!
//! The key is a hash of everything the tokens depend on, so a cache is never out of date: other
//! data has another key. The final folder appears by one rename, so it is either absent or
//! complete, even if a process is killed. `file` describes the files, `tokenise` builds them.

mod checksum;
pub(super) mod file;
mod request;
mod tokenise;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::SourceLocation;
use super::error::DataError;
use super::lock::FileLock;
use super::report::RowReport;
use file::{CacheFiles, CacheIdentity};
pub use request::CacheRequest;

/// Hexadecimal digits of the key that name the directory.
const NAME_DIGITS: usize = 32;

/// How a cache was obtained, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOrigin {
    /// It existed.
    Reused,
    /// It was built now.
    Built,
    /// It existed, was damaged, and was replaced.
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
    /// Tokens, including those around each document.
    pub tokens: u64,
    /// UTF-8 bytes of the texts; of conversations, those of their answers.
    pub bytes: u64,
    /// Documents without text, which were skipped.
    pub empty_documents: u64,
}

/// The tokens of a set. Cloning shares them.
#[derive(Clone, Debug)]
pub struct TokenCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: CacheFiles,
    names: Arc<[Arc<str>]>,
    fingerprint: String,
    statistics: CacheStatistics,
    origin: CacheOrigin,
}

impl TokenCache {
    /// Opens the cache of this data and tokenizer, and builds it first if needed.
    ///
    /// An interruption or an error leaves only the lock file.
    ///
    /// # Errors
    /// A file or row that cannot be used; with [`BadRows::Skip`](crate::BadRows), more of them than
    /// its share.
    pub fn open_or_build(request: &CacheRequest<'_>) -> Result<Self, DataError> {
        let cache = Self::opened_or_built(request)?;
        let origin = request.source.names().join(", ");
        // Here too and not only when it is built: the largest share of bad rows is no part of the
        // key, so a cache may have been built under a laxer one.
        cache.report().check(&request.source.rules(), &origin)?;
        Ok(cache)
    }

    fn opened_or_built(request: &CacheRequest<'_>) -> Result<Self, DataError> {
        let identity = request.identify()?;
        let dir = request.cache_dir.join(&identity.key[..NAME_DIGITS]);
        // Usually here, without a lock: a folder with the final name is complete.
        if let Ok(files) = CacheFiles::open(&dir, &identity) {
            return Ok(Self::new(request, identity, files, CacheOrigin::Reused));
        }
        fs_err::create_dir_all(request.cache_dir)?;
        let lock = FileLock::exclusive(&dir.with_extension("lock"), request.interrupted)?;
        let _lock = lock.ok_or(DataError::Interrupted)?;
        // Once more under the lock: another process may have built it while this one waited.
        let origin = match CacheFiles::open(&dir, &identity) {
            Ok(files) => return Ok(Self::new(request, identity, files, CacheOrigin::Reused)),
            Err(why) if dir.exists() => CacheOrigin::Rebuilt { why },
            Err(_) => CacheOrigin::Built,
        };
        // Only the holder of the lock builds, so any temporary folder is of a process that is gone.
        remove_leftovers(&dir)?;
        tokenise::build(request, identity.clone(), &dir)?;
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
            empty_documents: files.report().empty,
        };
        Self(Arc::new(Inner { files, names, fingerprint, statistics, origin }))
    }

    /// Whether its files are still as they were opened.
    ///
    /// # Errors
    /// Names a file that another program cut or extended.
    pub fn check_sizes(&self) -> Result<(), DataError> {
        self.0.files.check_sizes()
    }

    /// The files by name, each with the hash of its content; none of generated documents.
    pub fn contents(&self) -> impl Iterator<Item = (Arc<str>, String)> {
        self.0.names.iter().cloned().zip(self.0.files.contents())
    }

    /// Sizes of the set.
    pub fn statistics(&self) -> CacheStatistics {
        self.0.statistics
    }

    /// What was found in the rows.
    pub fn report(&self) -> &RowReport {
        self.0.files.report()
    }

    /// `DocumentSource::fingerprint` of the data.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// How this cache was obtained.
    pub fn origin(&self) -> &CacheOrigin {
        &self.0.origin
    }

    /// Identifies data, tokenizer and encoding together.
    pub fn key(&self) -> &str {
        self.0.files.key()
    }

    /// Whether only some tokens are trained: conversations and preferences.
    pub fn is_marked(&self) -> bool {
        self.0.files.is_marked()
    }

    /// The number of sequences: one per document, two per preference.
    pub fn documents(&self) -> usize {
        self.0.files.documents()
    }

    /// Tokens of a document, including those around it.
    pub fn length(&self, document: usize) -> u64 {
        self.0.files.record(document).end - self.0.files.start(document)
    }

    /// Appends tokens of a document, counted from its first, to `out`.
    ///
    /// # Panics
    /// If the document has fewer tokens.
    pub fn extend(&self, document: usize, tokens: Range<usize>, out: &mut Vec<i32>) {
        assert!(tokens.end as u64 <= self.length(document), "tokens within the document");
        let start = self.0.files.start(document);
        self.0.files.extend(start + tokens.start as u64, start + tokens.end as u64, out);
    }

    /// Appends for tokens of a document whether they are trained, 1 or 0.
    ///
    /// # Panics
    /// If the document has fewer tokens.
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
    pub fn location(&self, document: usize) -> SourceLocation {
        let record = self.0.files.record(document);
        SourceLocation {
            source: Arc::clone(&self.0.names[record.file as usize]),
            line: record.line,
        }
    }
}

/// Removes what killed processes left of this cache. The caller holds the lock.
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
