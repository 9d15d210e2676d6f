//! Where documents come from, and the fingerprint of the data. `documents` reads them.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::Shown;
use bitnet_format::input::open_file;
use serde::{Deserialize, Serialize};

use super::document::DocumentFormat;
use super::documents::{DocumentGenerator, DocumentStream};
use super::error::DataError;
use super::reading::{BadRows, ReadingRules};
use super::rows::FileOptions;
use super::selection::RowSelection;

/// Bytes of a file that are hashed between two calls of `interrupted`.
const HASHED_AT_ONCE: usize = 1 << 20;
/// Documents of a generator that are hashed, evenly spread.
const GENERATED_SAMPLES: u64 = 16;

/// Documents in a fixed order.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a run holds a handful of them")]
pub enum DocumentSource {
    /// Files, and how they are read.
    Files(Vec<PathBuf>, ReadingRules),
    /// Documents that are generated on demand.
    Generated(DocumentGenerator),
}

/// What the fingerprint of a data set takes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileFingerprint {
    name: String,
    bytes: u64,
    blake3: String,
}

impl DocumentSource {
    /// Files that are read as they are.
    pub fn files(files: Vec<PathBuf>) -> Self {
        Self::Files(files, ReadingRules::default())
    }

    /// How rows are read; generated ones need no rules.
    pub(crate) fn rules(&self) -> Cow<'_, ReadingRules> {
        match self {
            Self::Files(_, rules) => Cow::Borrowed(rules),
            Self::Generated(_) => Cow::default(),
        }
    }

    /// Whether rows that cannot be used are left out.
    pub fn skips_bad_rows(&self) -> bool {
        self.rules().bad_rows == BadRows::Skip
    }

    /// The same source with another choice of its rows. Generated ones are all used.
    #[must_use]
    pub fn selecting(mut self, change: impl FnOnce(&mut RowSelection)) -> Self {
        if let Self::Files(_, rules) = &mut self {
            change(&mut rules.selection);
        }
        self
    }

    /// The documents `make(0)` to `make(count - 1)`; `key` names everything that `make` depends
    /// on besides the index.
    pub fn generated(
        key: String,
        count: u64,
        make: impl Fn(u64) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::Generated(DocumentGenerator { key, count, make: Arc::new(make) })
    }

    /// Documents already in memory.
    pub fn in_memory(name: &str, texts: Vec<String>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for text in &texts {
            hash_part(&mut hasher, text.as_bytes());
        }
        let key = format!("{name} {}", &hasher.finalize().to_hex()[..16]);
        let count = texts.len() as u64;
        Self::generated(key, count, move |index| texts[index as usize].clone())
    }

    /// All documents in order.
    pub fn documents(&self, format: DocumentFormat) -> Result<DocumentStream, DataError> {
        match self {
            Self::Files(files, rules) => {
                let chosen_by = rules.selection.fields.keys().cloned().collect();
                // Parquet reads only the columns that are named, so those that choose rows must be
                // among them.
                let options = FileOptions { chosen_by, ..rules.files.clone() };
                DocumentStream::of_files(files, &options, format)
            }
            Self::Generated(generator) => {
                Ok(DocumentStream::of_generator(generator.clone(), format))
            }
        }
    }

    /// 64 hexadecimal digits that change with every byte of the files, with their names and order,
    /// but not with their folders.
    ///
    /// The fingerprint of a generator covers its key, the number of documents and 16 of them.
    pub fn fingerprint(&self, interrupted: &dyn Fn() -> bool) -> Result<String, DataError> {
        Ok(self.identify(interrupted)?.0)
    }

    /// The fingerprint, and the files that it covers.
    pub(crate) fn identify(
        &self,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(String, Vec<FileFingerprint>), DataError> {
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train data set v1");
        let mut records = Vec::new();
        match self {
            Self::Files(files, _) => {
                if files.is_empty() {
                    return Err(DataError::NoFiles);
                }
                for path in files {
                    let record = FileFingerprint::of(path, interrupted)?;
                    // The name without its folder: data that was moved is still the same data.
                    hash_part(&mut hasher, record.name.as_bytes());
                    hash_part(&mut hasher, &record.bytes.to_le_bytes());
                    hash_part(&mut hasher, record.blake3.as_bytes());
                    records.push(record);
                }
            }
            Self::Generated(generator) => generator.hash_into(&mut hasher),
        }
        Ok((hasher.finalize().to_hex().to_string(), records))
    }

    /// The final value of [`DocumentStream::done`]: bytes of files, documents of a generator.
    pub(crate) fn size(&self) -> Result<u64, DataError> {
        match self {
            Self::Files(files, _) => {
                let size = |path| Ok(fs_err::metadata(path)?.len());
                files.iter().map(size).sum()
            }
            Self::Generated(generator) => Ok(generator.count),
        }
    }

    /// The names of the files in messages, in the order of `Document::file`.
    pub(crate) fn names(&self) -> Arc<[Arc<str>]> {
        match self {
            Self::Files(files, _) => files.iter().map(|path| path.shown().into()).collect(),
            Self::Generated(generator) => [generator.key.as_str().into()].into(),
        }
    }
}

impl DocumentGenerator {
    fn hash_into(&self, hasher: &mut blake3::Hasher) {
        hash_part(hasher, self.key.as_bytes());
        hash_part(hasher, &self.count.to_le_bytes());
        // A few documents stand for all: they change where the generator does, and making all of
        // them would take as long as reading the set.
        let samples = GENERATED_SAMPLES.min(self.count);
        for sample in 0..samples {
            // In u128, since the product may not fit 64 bits.
            let index = u128::from(self.count) * u128::from(sample) / u128::from(samples);
            hash_part(hasher, (self.make)(index as u64).as_bytes());
        }
    }
}

impl FileFingerprint {
    /// The hash of its content.
    pub(crate) fn content(&self) -> String {
        self.blake3.clone()
    }

    fn of(path: &Path, interrupted: &dyn Fn() -> bool) -> Result<Self, DataError> {
        let mut file = open_file(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASHED_AT_ONCE];
        loop {
            if interrupted() {
                return Err(DataError::Interrupted);
            }
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (bytes, blake3) = (hasher.count(), hasher.finalize().to_hex().to_string());
        Ok(Self { name, bytes, blake3 })
    }
}

/// Hashes a part with its length, so that different lists of parts never hash alike.
pub(crate) fn hash_part(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(files: &[PathBuf]) -> String {
        DocumentSource::files(files.to_vec()).fingerprint(&|| false).unwrap()
    }

    fn folder() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a.txt", "b.txt"].map(|name| dir.path().join(name)).to_vec();
        for path in &files {
            fs_err::write(path, "same text").unwrap();
        }
        (dir, files)
    }

    #[test]
    fn editing_one_byte_adding_and_reordering_change_the_fingerprint() {
        let (_dir, files) = folder();
        let first = fingerprint(&files);
        assert_eq!(first, fingerprint(&files));
        assert_eq!(first.len(), 64);
        let reversed: Vec<_> = files.iter().rev().cloned().collect();
        assert_ne!(first, fingerprint(&reversed));
        assert_ne!(first, fingerprint(&[files.clone(), files.clone()].concat()));
        assert_ne!(first, fingerprint(&files[..1]));
        fs_err::write(&files[1], "same texT").unwrap();
        assert_ne!(first, fingerprint(&files));
    }

    #[test]
    fn the_folder_does_not_matter() {
        let ((_one, first), (_two, second)) = (folder(), folder());
        assert_eq!(fingerprint(&first), fingerprint(&second));
    }

    #[test]
    fn hashing_stops_when_interrupted() {
        let (_dir, files) = folder();
        let stopped = DocumentSource::files(files).fingerprint(&|| true);
        assert!(matches!(stopped, Err(DataError::Interrupted)));
    }

    #[test]
    fn a_generator_that_changes_under_its_key_gets_another_fingerprint() {
        let source =
            |word: &'static str| DocumentSource::generated("k".into(), 100, move |_| word.into());
        let fingerprint = |word| source(word).fingerprint(&|| false).unwrap();
        assert_ne!(fingerprint("a"), fingerprint("b"));
    }

    #[test]
    fn generated_documents_count_progress() {
        let texts = ["x", "", "z"].map(str::to_owned).to_vec();
        let mut documents =
            DocumentSource::in_memory("test", texts).documents(DocumentFormat::Text).unwrap();
        let lines: Vec<_> = documents.by_ref().map(|one| one.unwrap().line).collect();
        assert_eq!((lines, documents.done()), (vec![1, 2, 3], 3));
    }
}
