//! The lines of a `.jsonl` file: one JSON object a line.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::unpack::{Bytes, read_error};
use crate::document::{MAX_DOCUMENT_BYTES, RowContent};
use crate::error::DataError;

/// The lines of a file in order. Only `\n` ends a line, because JSON strings may contain U+2028.
/// Blank lines are skipped. A last line without `\n` counts if it is complete.
pub(super) struct JsonLines {
    path: PathBuf,
    bytes: Bytes,
    limit: u64,
    line: u64,
}

impl JsonLines {
    pub(super) fn new(path: &Path, bytes: Bytes) -> Self {
        Self { path: path.to_owned(), bytes, limit: MAX_DOCUMENT_BYTES, line: 0 }
    }

    /// The next line that is not blank, with its end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        loop {
            let mut buffer = Vec::new();
            // One byte more than may be, so that a line of exactly the limit is told from a longer
            // one, and a file without line ends is not read whole.
            let mut bounded = self.bytes.by_ref().take(self.limit + 1);
            let read = bounded.read_until(b'\n', &mut buffer);
            let read = read.map_err(|error| read_error(&self.path, error))? as u64;
            self.line += 1;
            if read > self.limit {
                return Err(DataError::TooLarge { path: self.path.clone(), line: self.line });
            }
            if read == 0 {
                return Ok(None);
            }
            if !buffer.trim_ascii().is_empty() {
                return Ok(Some((self.line, RowContent::Json(buffer))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_above_the_limit_is_refused() {
        let bytes: Bytes = Box::new(&b"{\"text\":\"x\"}\n{\"text\":\"xy\"}\n"[..]);
        let mut lines = JsonLines { limit: 13, ..JsonLines::new("a.jsonl".as_ref(), bytes) };
        assert!(lines.next().unwrap().is_some());
        assert!(matches!(lines.next(), Err(DataError::TooLarge { line: 2, .. })));
    }
}
