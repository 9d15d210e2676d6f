//! The files of a token cache. All numbers are little-endian.
//!
//! ```text
//! tokens.bin     id id id | id id | id id id id …     u16, or u32 for a large vocabulary
//!                doc 0      doc 1   doc 2
//! documents.bin  end 3 …  | end 5 … | end 9 …         32 bytes each: end, text bytes, file, line
//! meta.json      the identity of the cache; size and checksum of the other two
//! ```
//!
//! A document's tokens run from the `end` before it to its own. In a marked cache an id is stored
//! as `2 * id + trained`, so ids and loss mask are read in one pass.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bitnet_format::FileBytes;
use bitnet_text::Dialogue;
use fs_err::File;
use serde::{Deserialize, Serialize};

use super::checksum::FileCheck;
use crate::document::Document;
use crate::error::DataError;
use crate::report::RowReport;
use crate::source::FileFingerprint;

/// Version of the layout; part of every cache's key.
pub(crate) const LAYOUT_VERSION: u32 = 3;

const TOKENS_FILE: &str = "tokens.bin";
const DOCUMENTS_FILE: &str = "documents.bin";
const META_FILE: &str = "meta.json";

/// Vocabularies up to this size have ids of two bytes.
const NARROW_VOCAB: usize = 1 << 16;
const RECORD_BYTES: usize = 32;

/// The record of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DocumentRecord {
    /// The number of tokens of all documents up to this one.
    pub(crate) end: u64,
    /// Length of the text in bytes.
    pub(crate) text_bytes: u64,
    /// The index of its file.
    pub(crate) file: u64,
    /// Its line in the file.
    pub(crate) line: u64,
}

impl DocumentRecord {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let fields = [self.end, self.text_bytes, self.file, self.line];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let field = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were cut"))
        };
        Self { end: field(0), text_bytes: field(8), file: field(16), line: field(24) }
    }
}

/// Identifies a cache; stored in `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheIdentity {
    pub(crate) layout: u32,
    pub(crate) key: String,
    pub(crate) fingerprint: String,
    pub(crate) vocab_size: usize,
    /// Whether ids carry a mark; without it, every token is trained.
    pub(crate) marked: bool,
    /// Whether rows that cannot be used were left out.
    pub(crate) skips_bad: bool,
    pub(crate) files: Vec<FileFingerprint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheMeta {
    identity: CacheIdentity,
    report: RowReport,
    tokens: FileCheck,
    documents: FileCheck,
}

/// Writes a cache document by document.
#[derive(Debug)]
pub(crate) struct CacheWriter {
    dir: PathBuf,
    tokens: BufWriter<File>,
    documents: BufWriter<File>,
    token_bytes: usize,
    marked: bool,
    end: u64,
}

impl CacheWriter {
    pub(crate) fn create(dir: &Path, identity: &CacheIdentity) -> Result<Self, DataError> {
        let file = |name| Ok::<_, DataError>(BufWriter::new(File::create(dir.join(name))?));
        let (tokens, documents) = (file(TOKENS_FILE)?, file(DOCUMENTS_FILE)?);
        let (dir, token_bytes) = (dir.to_owned(), identity.token_bytes());
        Ok(Self { dir, tokens, documents, token_bytes, marked: identity.marked, end: 0 })
    }

    /// Appends a sequence of a document, which scores `bytes` bytes of text. Its ids are below the
    /// vocabulary size.
    pub(crate) fn append(
        &mut self,
        document: &Document,
        of: &Dialogue,
        bytes: usize,
    ) -> Result<(), DataError> {
        for (id, trained) in of.ids.iter().zip(&of.trained) {
            // The mark is the lowest bit: one read gives both, and only marked caches pay for it in
            // vocabulary.
            let cell = if self.marked { id << 1 | u32::from(*trained) } else { *id };
            self.tokens.write_all(&cell.to_le_bytes()[..self.token_bytes])?;
        }
        self.end += of.ids.len() as u64;
        let record = DocumentRecord {
            end: self.end,
            text_bytes: bytes as u64,
            file: document.file as u64,
            line: document.line,
        };
        Ok(self.documents.write_all(&record.to_bytes())?)
    }

    /// Completes the cache with `meta.json`.
    pub(crate) fn finish(
        mut self,
        identity: CacheIdentity,
        report: RowReport,
    ) -> Result<(), DataError> {
        self.tokens.flush()?;
        self.documents.flush()?;
        let check =
            |name| Ok::<_, DataError>(FileCheck::of(&FileBytes::map(&self.dir.join(name))?));
        // Sizes and checksums are of the files as they lie on disk, read back after the flush.
        let (tokens, documents) = (check(TOKENS_FILE)?, check(DOCUMENTS_FILE)?);
        let meta = CacheMeta { identity, report, tokens, documents };
        let text = serde_json::to_vec_pretty(&meta).expect("plain fields become JSON");
        Ok(fs_err::write(self.dir.join(META_FILE), text)?)
    }
}

/// The memory-mapped files of a cache with valid sizes, checksums and index.
#[derive(Debug)]
pub(crate) struct CacheFiles {
    meta: CacheMeta,
    tokens: FileBytes,
    documents: FileBytes,
    /// The two files that are mapped.
    opened: [File; 2],
    token_bytes: usize,
}

impl CacheFiles {
    /// Maps and checks the files. The error says why the cache must be rebuilt.
    pub(crate) fn open(dir: &Path, identity: &CacheIdentity) -> Result<Self, String> {
        let text = fs_err::read(dir.join(META_FILE)).map_err(|error| error.to_string())?;
        let meta: CacheMeta =
            serde_json::from_slice(&text).map_err(|error| format!("{META_FILE}: {error}"))?;
        // The folder's name holds 32 digits of the key; the whole identity is compared here.
        if meta.identity != *identity {
            return Err(format!("{META_FILE}: it is of other data"));
        }
        let tokens = meta.tokens.open(dir, TOKENS_FILE)?;
        let documents = meta.documents.open(dir, DOCUMENTS_FILE)?;
        let token_bytes = identity.token_bytes();
        let open = |name| File::open(dir.join(name)).map_err(|error| error.to_string());
        // Held open beside the maps: a cut file is noticed by its size before a page of it is
        // touched, which would end the process with SIGBUS.
        let opened = [open(TOKENS_FILE)?, open(DOCUMENTS_FILE)?];
        let files = Self { meta, tokens, documents, opened, token_bytes };
        files.check_index()?;
        Ok(files)
    }

    /// Whether the mapped files still have their sizes: reading beyond their ends would end the
    /// process.
    pub(crate) fn check_sizes(&self) -> Result<(), DataError> {
        for (file, bytes) in self.opened.iter().zip([&self.tokens, &self.documents]) {
            let (expected, got) = (bytes.len() as u64, file.metadata()?.len());
            if got != expected {
                let path = file.path().to_owned();
                return Err(DataError::CacheChanged { path, expected, got });
            }
        }
        Ok(())
    }

    /// Number of documents.
    pub(crate) fn documents(&self) -> usize {
        self.documents.len() / RECORD_BYTES
    }

    /// The hash of each text file's content.
    pub(crate) fn contents(&self) -> impl Iterator<Item = String> {
        self.meta.identity.files.iter().map(FileFingerprint::content)
    }

    pub(crate) fn record(&self, document: usize) -> DocumentRecord {
        DocumentRecord::from_bytes(&self.documents[document * RECORD_BYTES..][..RECORD_BYTES])
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = DocumentRecord> {
        (0..self.documents()).map(|document| self.record(document))
    }

    /// Tokens of all documents before this one.
    pub(crate) fn start(&self, document: usize) -> u64 {
        if document == 0 { 0 } else { self.record(document - 1).end }
    }

    pub(crate) fn report(&self) -> &RowReport {
        &self.meta.report
    }

    pub(crate) fn key(&self) -> &str {
        &self.meta.identity.key
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.meta.identity.marked
    }

    /// Appends the tokens `from..to`, counted over all documents.
    pub(crate) fn extend(&self, from: u64, to: u64, out: &mut Vec<i32>) {
        let first = out.len();
        self.extend_cells(from, to, out);
        if self.is_marked() {
            out[first..].iter_mut().for_each(|cell| *cell >>= 1);
        }
    }

    /// Appends for the tokens `from..to` whether they are trained, 1 or 0.
    pub(crate) fn extend_mask(&self, from: u64, to: u64, out: &mut Vec<f32>) {
        if !self.is_marked() {
            return out.resize(out.len() + (to - from) as usize, 1.0);
        }
        // Read a second time: ids and mask go to vectors of their own, and the pages are in memory.
        let mut cells = Vec::with_capacity((to - from) as usize);
        self.extend_cells(from, to, &mut cells);
        out.extend(cells.iter().map(|cell| (cell & 1) as f32));
    }

    fn extend_cells(&self, from: u64, to: u64, out: &mut Vec<i32>) {
        let bytes = &self.tokens[from as usize * self.token_bytes..to as usize * self.token_bytes];
        match self.token_bytes {
            2 => out.extend(chunks(bytes).map(|id| i32::from(u16::from_le_bytes(id)))),
            _ => out.extend(chunks(bytes).map(|id| u32::from_le_bytes(id) as i32)),
        }
    }

    /// The records must count up to exactly the tokens in the file.
    fn check_index(&self) -> Result<(), String> {
        let whole = self.documents.len().is_multiple_of(RECORD_BYTES);
        // A checksum proves that the files are as they were written. This proves that they were
        // written right: after it no read of a document can go beyond the map.
        let mut ends = self.records().map(|record| record.end);
        let mut last = 0;
        let rising = ends.all(|end| std::mem::replace(&mut last, end) <= end);
        let fits = last.checked_mul(self.token_bytes as u64) == Some(self.tokens.len() as u64);
        let files = self.meta.identity.files.len().max(1) as u64;
        let named = self.records().all(|record| record.file < files);
        if whole && rising && fits && named && self.documents() > 0 {
            return Ok(());
        }
        Err(format!("{DOCUMENTS_FILE}: does not fit {TOKENS_FILE}"))
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    let (chunks, _) = bytes.as_chunks();
    chunks.iter().copied()
}

impl CacheIdentity {
    fn token_bytes(&self) -> usize {
        let cells = if self.marked { 2 * self.vocab_size } else { self.vocab_size };
        if cells <= NARROW_VOCAB { 2 } else { 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::RowContent;

    fn identity(vocab_size: usize) -> CacheIdentity {
        let (key, fingerprint) = ("k".to_owned(), "f".to_owned());
        let (files, marked, skips_bad) = (Vec::new(), false, false);
        CacheIdentity {
            layout: LAYOUT_VERSION,
            key,
            fingerprint,
            vocab_size,
            marked,
            skips_bad,
            files,
        }
    }

    fn whole(ids: &[u32]) -> Dialogue {
        Dialogue { ids: ids.to_vec(), trained: vec![true; ids.len()] }
    }

    fn written(vocab_size: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = CacheWriter::create(dir.path(), &identity(vocab_size)).unwrap();
        let document = |line| Document { file: 0, line, content: RowContent::Text(String::new()) };
        writer.append(&document(1), &whole(&[1, 258]), 2).unwrap();
        writer.append(&document(7), &whole(&[65_535]), 2).unwrap();
        let report = RowReport { empty: 3, ..RowReport::default() };
        writer.finish(identity(vocab_size), report).unwrap();
        dir
    }

    #[test]
    fn the_layout_is_frozen() {
        let narrow = written(NARROW_VOCAB);
        let bytes = |dir: &tempfile::TempDir, name| fs_err::read(dir.path().join(name)).unwrap();
        assert_eq!(bytes(&narrow, TOKENS_FILE), [1, 0, 2, 1, 255, 255]);
        let mut records = [0; 64];
        (records[0], records[8], records[24]) = (2, 2, 1);
        (records[32], records[40], records[56]) = (3, 2, 7);
        assert_eq!(bytes(&narrow, DOCUMENTS_FILE), records);
        let wide = written(NARROW_VOCAB + 1);
        assert_eq!(bytes(&wide, TOKENS_FILE), [1, 0, 0, 0, 2, 1, 0, 0, 255, 255, 0, 0]);
    }

    #[test]
    fn both_widths_are_read_back() {
        for vocab_size in [NARROW_VOCAB, NARROW_VOCAB + 1] {
            let dir = written(vocab_size);
            let files = CacheFiles::open(dir.path(), &identity(vocab_size)).unwrap();
            let mut tokens = Vec::new();
            files.extend(1, 3, &mut tokens);
            assert_eq!(tokens, [258, 65_535]);
            assert_eq!((files.documents(), files.start(1), files.report().empty), (2, 2, 3));
            assert_eq!(files.record(1), DocumentRecord { end: 3, text_bytes: 2, file: 0, line: 7 });
        }
    }

    #[test]
    fn marks_double_the_ids_and_are_read_back() {
        for (vocab_size, width) in [(NARROW_VOCAB / 2, 2), (NARROW_VOCAB / 2 + 1, 4)] {
            let dir = tempfile::tempdir().unwrap();
            let identity = CacheIdentity { marked: true, ..identity(vocab_size) };
            let mut writer = CacheWriter::create(dir.path(), &identity).unwrap();
            let document = Document { file: 0, line: 1, content: RowContent::Text(String::new()) };
            let dialogue = Dialogue { ids: vec![7, 32_767, 3], trained: vec![false, true, true] };
            writer.append(&document, &dialogue, 1).unwrap();
            writer.finish(identity.clone(), RowReport::default()).unwrap();
            let files = CacheFiles::open(dir.path(), &identity).unwrap();
            assert_eq!(fs_err::read(dir.path().join(TOKENS_FILE)).unwrap().len(), 3 * width);
            let (mut tokens, mut mask) = (vec![9], vec![0.5]);
            files.extend(1, 3, &mut tokens);
            files.extend_mask(0, 2, &mut mask);
            assert_eq!((tokens, mask), (vec![9, 32_767, 3], vec![0.5, 0.0, 1.0]));
        }
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1);
        let extend = |bytes: &mut Vec<u8>| bytes.push(0);
        let empty = Vec::clear;
        let flip = |bytes: &mut Vec<u8>| bytes[2] ^= 1;
        let damages: [fn(&mut Vec<u8>); 4] = [cut, extend, empty, flip];
        for name in [TOKENS_FILE, DOCUMENTS_FILE, META_FILE] {
            for (kind, damage) in damages.iter().enumerate() {
                let dir = written(300);
                let path = dir.path().join(name);
                let mut bytes = fs_err::read(&path).unwrap();
                damage(&mut bytes);
                fs_err::write(&path, bytes).unwrap();
                let reason = CacheFiles::open(dir.path(), &identity(300)).unwrap_err();
                assert!(reason.contains(name), "{name} {kind}: {reason}");
            }
            let dir = written(300);
            fs_err::remove_file(dir.path().join(name)).unwrap();
            assert!(CacheFiles::open(dir.path(), &identity(300)).unwrap_err().contains(name));
        }
    }

    #[test]
    fn a_wrong_index_with_a_valid_checksum_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = CacheWriter::create(dir.path(), &identity(300)).unwrap();
        let document = Document { file: 5, line: 1, content: RowContent::Text(String::new()) };
        writer.append(&document, &whole(&[1, 2]), 1).unwrap();
        writer.finish(identity(300), RowReport::default()).unwrap();
        let reason = CacheFiles::open(dir.path(), &identity(300)).unwrap_err();
        assert_eq!(reason, "documents.bin: does not fit tokens.bin");
    }

    #[test]
    fn a_file_that_is_cut_while_in_use_is_an_error_with_its_name() {
        for name in [TOKENS_FILE, DOCUMENTS_FILE] {
            let dir = written(300);
            let files = CacheFiles::open(dir.path(), &identity(300)).unwrap();
            files.check_sizes().unwrap();
            let path = dir.path().join(name);
            let file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(1).unwrap();
            let error = files.check_sizes().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("has 1 bytes"), "{error}");
        }
    }

    #[test]
    fn a_cache_of_other_data_is_not_used() {
        let reason = CacheFiles::open(written(300).path(), &identity(301)).unwrap_err();
        assert_eq!(reason, "meta.json: it is of other data");
    }
}
