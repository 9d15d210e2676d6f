//! Checks a large file by its size and a hash of parts of it.

use std::path::Path;

use bitnet_format::FileBytes;
use serde::{Deserialize, Serialize};

/// Files up to this size are hashed completely when a cache is opened. Of a larger file this many
/// bytes are hashed, in blocks spread evenly from start to end. That detects a file that was cut or
/// overwritten, but not every flipped bit.
const HASHED: usize = 64 << 20;
const HASHED_BLOCKS: usize = 64;

/// The size and checksum of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileCheck {
    bytes: u64,
    blake3: String,
}

impl FileCheck {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let blake3 = checksum(bytes, HASHED, HASHED_BLOCKS);
        Self { bytes: bytes.len() as u64, blake3 }
    }

    /// Maps the file if size and checksum match, and otherwise says what does not.
    pub(crate) fn open(&self, dir: &Path, name: &str) -> Result<FileBytes, String> {
        let bytes = FileBytes::map(&dir.join(name)).map_err(|error| error.to_string())?;
        let length = bytes.len() as u64;
        if length != self.bytes {
            return Err(format!("{name}: expected {} bytes, got {length}", self.bytes));
        }
        if Self::of(&bytes) != *self {
            return Err(format!("{name}: the checksum does not match"));
        }
        Ok(bytes)
    }
}

/// BLAKE3 of all bytes up to `hashed`, of evenly spread `blocks` of as many bytes together above.
fn checksum(bytes: &[u8], hashed: usize, blocks: usize) -> String {
    let mut hasher = blake3::Hasher::new();
    if bytes.len() <= hashed {
        hasher.update(bytes);
    } else {
        let block = hashed / blocks;
        // Blocks at both ends and evenly between: a file that was cut or is still being written
        // differs at its end, one that was begun anew at its start.
        let last = bytes.len() - block;
        for number in 0..blocks {
            // The first block begins at 0 and the last ends with the file.
            let start = (last as u128 * number as u128 / (blocks - 1) as u128) as usize;
            hasher.update(&bytes[start..start + block]);
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_large_file_sees_its_head_and_its_tail() {
        let mut bytes = vec![0; 1000];
        let first = checksum(&bytes, 100, 10);
        for at in [0, 9, 110, 990, 999] {
            bytes[at] = 1;
            assert_ne!(first, checksum(&bytes, 100, 10), "{at}");
            bytes[at] = 0;
        }
        assert_eq!(first, checksum(&bytes, 100, 10));
    }
}
