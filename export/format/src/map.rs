//! The bytes of a file: read into memory when small, mapped when large.
//!
//! The one `unsafe` of this crate. A mapped file that another program truncates ends this one
//! with SIGBUS; our own files are only ever replaced by rename, which leaves the mapping alive.
#![expect(unsafe_code, reason = "memory mapping cannot be expressed safely")]

use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// Files up to this size are read instead of mapped.
const LARGEST_OWNED: u64 = 256 << 20;

/// The whole content of a file.
#[derive(Debug)]
pub struct FileBytes(Bytes);

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mmap),
}

impl FileBytes {
    /// Reads or maps `path`, whichever suits its size.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if fs_err::metadata(path)?.len() > LARGEST_OWNED {
            return Self::map(path);
        }
        Ok(Self(Bytes::Owned(fs_err::read(path)?)))
    }

    /// Maps `path` whatever its size: for files that are read sparsely again and again.
    pub fn map(path: &Path) -> std::io::Result<Self> {
        let file = fs_err::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(Bytes::Owned(Vec::new()))); // an empty file cannot be mapped
        }
        // SAFETY: the map is read-only and private to this process's view; the first
        // lines of this file say what a concurrent truncation does.
        Ok(Self(Bytes::Mapped(unsafe { Mmap::map(file.file()) }?)))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_read_bytes_are_equal() {
        let dir = tempfile::tempdir().unwrap();
        for content in [&b""[..], b"abc"] {
            let path = dir.path().join("file");
            fs_err::write(&path, content).unwrap();
            assert_eq!(&*FileBytes::open(&path).unwrap(), content);
            assert_eq!(&*FileBytes::map(&path).unwrap(), content);
        }
    }
}
