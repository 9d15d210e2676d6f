//! Caches, tokenizers and ways to look at messages that several test modules share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_text::{Dialogue, Message, Tokenizer, train_bpe};
use serde_json::{Map, Value};

use super::cache::file::{CacheFiles, CacheIdentity, CacheWriter, LAYOUT_VERSION};
use super::cache::{CacheOrigin, CacheRequest, TokenCache};
use super::document::{Document, RowContent};
use super::error::DataError;
use super::report::RowReport;
use super::source::DocumentSource;

/// One token per byte, between 256 (start) and 257 (end).
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let json = train_bpe(std::iter::once("ab".to_owned()), 264).unwrap();
    Tokenizer::from_bytes(Path::new("bytes.json"), &json).unwrap()
}

/// The object that a `json!` is.
pub(crate) fn json_object(value: Value) -> Map<String, Value> {
    let Value::Object(object) = value else { panic!("an object") };
    object
}

/// Names of the roles and texts.
pub(crate) fn role_texts(messages: &[Message]) -> Vec<(&str, &str)> {
    messages.iter().map(|one| (one.role.name(), one.content.as_str())).collect()
}

/// Opens or builds without interruption.
pub(crate) fn cached(
    cache_dir: &Path,
    source: &DocumentSource,
    tokenizer: &Tokenizer,
) -> Result<TokenCache, DataError> {
    TokenCache::open_or_build(&CacheRequest::new(cache_dir, source, tokenizer))
}

/// A cache of documents given as ids, called `sample:1`, `sample:2`, …
pub(crate) fn cache_of(documents: &[Vec<u32>]) -> TokenCache {
    let whole = |ids: &Vec<u32>| Dialogue { ids: ids.clone(), trained: vec![true; ids.len()] };
    written(&documents.iter().map(whole).collect::<Vec<_>>(), false)
}

/// The same for sequences with marks.
pub(crate) fn cache_of_dialogues(documents: &[Dialogue]) -> TokenCache {
    written(documents, true)
}

fn written(documents: &[Dialogue], marked: bool) -> TokenCache {
    let dir = tempfile::tempdir().unwrap();
    let (key, vocab_size) = (String::new(), 1 << 20);
    let (fingerprint, files, layout) = (String::new(), Vec::new(), LAYOUT_VERSION);
    let skips_bad = false;
    let identity = CacheIdentity { layout, key, fingerprint, vocab_size, marked, skips_bad, files };
    let mut writer = CacheWriter::create(dir.path(), &identity).unwrap();
    for (index, dialogue) in documents.iter().enumerate() {
        let content = RowContent::Text(String::new());
        let document = Document { file: 0, line: index as u64 + 1, content };
        writer.append(&document, dialogue, 4).unwrap();
    }
    writer.finish(identity.clone(), RowReport::default()).unwrap();
    // The mapping outlives the files.
    let files = CacheFiles::open(dir.path(), &identity).unwrap();
    TokenCache::of(files, Arc::new([Arc::from("sample")]), String::new(), CacheOrigin::Built)
}

/// Real text that lies beside the repository, if it is there; prints a line either way.
pub(crate) fn data_outside_the_repository() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let there = path.is_dir();
    let what = if there { "reads" } else { "skipped, nothing at" };
    eprintln!("outside the repository: {what} {}", path.display());
    there.then_some(path)
}
