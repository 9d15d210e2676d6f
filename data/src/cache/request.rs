//! A request for a token cache, and what identifies the cache it names.

use std::path::Path;

use bitnet_text::Tokenizer;

use super::file::{CacheIdentity, LAYOUT_VERSION};
use crate::encoding::Encoding;
use crate::error::DataError;
use crate::reading::BadRows;
use crate::source::{DocumentSource, hash_part};

/// Which tokens are wanted, with callbacks for progress and interruption.
pub struct CacheRequest<'a> {
    /// The folder of all caches; created if missing.
    pub cache_dir: &'a Path,
    /// The documents.
    pub source: &'a DocumentSource,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// What a document is and which of its tokens are trained.
    pub encoding: &'a Encoding,
    /// Called for every batch of a few hundred kilobytes and while waiting; `true` stops the work
    /// with [`DataError::Interrupted`].
    pub interrupted: &'a dyn Fn() -> bool,
    /// Threads that tokenise instead of those of the caller.
    pub pool: Option<&'a rayon::ThreadPool>,
    /// Called while building with (done, total) in bytes of files, or in documents of a generator.
    pub progress: &'a dyn Fn(u64, u64),
}

impl<'a> CacheRequest<'a> {
    /// A request for plain text, without callbacks.
    pub fn new(cache_dir: &'a Path, source: &'a DocumentSource, tokenizer: &'a Tokenizer) -> Self {
        let encoding = &Encoding::Text;
        let (interrupted, progress) = (&|| false, &|_, _| {});
        Self { cache_dir, source, tokenizer, encoding, interrupted, progress, pool: None }
    }

    /// The cache of this request. Its key covers everything the tokens depend on: layout, crate
    /// version, tokenizer, data and encoding.
    pub(super) fn identify(&self) -> Result<CacheIdentity, DataError> {
        self.source.documents(self.encoding.format())?; // checks names before hashing anything
        let (fingerprint, files) = self.source.identify(self.interrupted)?;
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train token cache");
        hash_part(&mut hasher, &LAYOUT_VERSION.to_le_bytes());
        // A later version may read rows or cut text otherwise.
        hash_part(&mut hasher, env!("CARGO_PKG_VERSION").as_bytes());
        hash_part(&mut hasher, blake3::hash(self.tokenizer.json()).as_bytes());
        hash_part(&mut hasher, self.tokenizer.control_identity().as_bytes());
        hash_part(&mut hasher, fingerprint.as_bytes());
        hash_part(&mut hasher, self.encoding.identity().as_bytes());
        let rules = self.source.rules();
        // Whether, not how many: the same rows are left out whatever share was allowed.
        let skips_bad = rules.bad_rows != BadRows::Error;
        let described =
            serde_json::to_vec(&(&*rules, skips_bad)).expect("plain fields become JSON");
        hash_part(&mut hasher, &described);
        let key = hasher.finalize().to_hex().to_string();
        let vocab_size = self.tokenizer.vocab_size();
        let marked = self.encoding.is_marked();
        let layout = LAYOUT_VERSION;
        Ok(CacheIdentity { layout, key, fingerprint, vocab_size, marked, skips_bad, files })
    }
}
