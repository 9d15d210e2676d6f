//! Rows that say the same as one before: equal but for white space.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::filter::RowFilter;
use crate::document::SourceLocation;
use crate::normal::spaced;

/// 128 bits of a text's hash.
type Digest = [u8; 16];

/// Leaves out rows whose text, with white space as single spaces, stood in a row before. It holds
/// about 100 bytes for each different text.
#[derive(Debug, Default)]
pub struct ExactDuplicates {
    /// Where each text stood first.
    first: HashMap<Digest, (u32, u64)>,
    files: Vec<Arc<str>>,
}

impl ExactDuplicates {
    /// The number of a file in `files`; rows of a file follow each other.
    fn file(&mut self, name: &Arc<str>) -> u32 {
        // A place is two numbers then, and not a string for each text.
        if self.files.last() != Some(name) {
            self.files.push(Arc::clone(name));
        }
        self.files.len() as u32 - 1
    }
}

impl RowFilter for ExactDuplicates {
    type Mark = Digest;

    fn mark(&self, text: &str) -> Digest {
        let hash = blake3::hash(spaced(text).as_bytes());
        // 128 bits: among a billion texts two alike come about by chance once in 10²⁰ sets.
        hash.as_bytes()[..16].try_into().expect("32 bytes")
    }

    fn reason(&mut self, mark: Digest, place: &SourceLocation) -> Option<String> {
        let file = self.file(&place.source);
        match self.first.entry(mark) {
            Entry::Occupied(first) => {
                let (file, line) = *first.get();
                Some(format!("as {}:{line}", self.files[file as usize]))
            }
            Entry::Vacant(entry) => {
                entry.insert((file, place.line));
                None
            }
        }
    }
}
