//! A file that is read in parts, each when it is needed.
//!
//! Model files are larger than the memory that a conversion may use, and pages of a mapped file
//! count as memory; so tensors are read, not mapped. If another program truncates the file
//! meanwhile, reading returns an error instead of raising a signal.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::FormatError;
use crate::Shown;
use crate::input::open_file;

/// An open file of known length.
#[derive(Debug)]
pub(crate) struct FileParts {
    path: PathBuf,
    content: Content,
    len: u64,
}

#[derive(Debug)]
enum Content {
    File(Mutex<fs_err::File>),
    Memory(Vec<u8>),
}

impl FileParts {
    /// Opens `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, FormatError> {
        let file = open_file(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), content: Content::File(Mutex::new(file)), len })
    }

    /// The same for bytes in memory; `path` is for messages.
    pub(crate) fn in_memory(path: &Path, bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { path: path.to_owned(), content: Content::Memory(bytes), len }
    }

    /// The file's path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes of a range, which must lie inside [`FileParts::len`].
    pub(crate) fn read(&self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        assert!(range.start <= range.end && range.end <= self.len, "a range of this file");
        match &self.content {
            Content::File(file) => self.read_file(file, range),
            Content::Memory(bytes) => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
        }
    }

    fn read_file(&self, file: &Mutex<fs_err::File>, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        // Seeking and reading are two calls with one position between them. After a panic the
        // position may be anywhere, and the next seek sets it again.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(range.start))?;
        file.read_exact(&mut bytes).map_err(|error| self.read_error(&error))?;
        Ok(bytes)
    }

    fn read_error(&self, error: &std::io::Error) -> std::io::Error {
        let what = format!("failed to read {}: {error}", self.path.shown());
        std::io::Error::new(error.kind(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_read_and_a_cut_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs_err::write(&path, b"0123456789").unwrap();
        let parts = FileParts::open(&path).unwrap();
        for (range, expected) in [(7..10, &b"789"[..]), (0..2, b"01"), (5..5, b"")] {
            assert_eq!(parts.read(range).unwrap(), expected);
        }
        fs_err::write(&path, b"01").unwrap();
        assert!(parts.read(7..10).unwrap_err().to_string().contains("file"));
    }
}
