//! Opening files that are read: only regular ones, and whole ones only up to a size.
//!
//! A named pipe would wait for ever, and `/dev/zero` has no end.

use std::io::Read;
use std::path::Path;

use fs_err::File;

use crate::FormatError;

/// No file that describes something (a config, an index, ids, a recipe, a template) is larger.
pub const LARGEST_TEXT: u64 = 64 << 20;

/// Opens a regular file, or a link to one, for reading.
///
/// # Errors
/// Says what it is where it is something else.
pub fn open_file(path: &Path) -> Result<File, FormatError> {
    // Asked before opening: opening a named pipe waits for a writer. Where nothing can be asked,
    // opening says why.
    match fs_err::metadata(path).ok().as_ref().and_then(special) {
        Some(what) => {
            Err(FormatError::container(path, format!("is {what}; expected a regular file")))
        }
        None => Ok(File::open(path)?),
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// A larger file is not read.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::new();
    // One byte more: the file may have grown since its size was asked.
    open_file(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let what = format!("is too large; expected at most {limit} bytes, got more");
        return Err(FormatError::container(path, what));
    }
    Ok(bytes)
}

/// The same as text.
///
/// # Errors
/// As [`read_bytes`], and bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FormatError> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format!("is not UTF-8 at byte {at}; expected text");
        FormatError::container(path, what)
    })
}

fn special(meta: &std::fs::Metadata) -> Option<&'static str> {
    match (meta.is_file(), meta.is_dir()) {
        (true, _) => None,
        (_, true) => Some("a directory"),
        _ => Some("a pipe, a socket or a device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        let limit = 4;
        let error = read_text(path, limit).unwrap_err().to_string();
        error.replace(&format!("{}: ", path.display()), "")
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs_err::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        fs_err::write(&path, "fives").unwrap();
        assert_eq!(refused(&path), "is too large; expected at most 4 bytes, got more");
        fs_err::write(&path, b"ab\xff").unwrap();
        assert_eq!(refused(&path), "is not UTF-8 at byte 2; expected text");
        assert!(matches!(read_text(&dir.path().join("no"), 4), Err(FormatError::Io(_))));
    }

    #[test]
    fn a_file_that_is_not_regular_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(refused(dir.path()), "is a directory; expected a regular file");
        if cfg!(unix) {
            let expected = "is a pipe, a socket or a device; expected a regular file";
            assert_eq!(refused(Path::new("/dev/zero")), expected);
            let pipe = dir.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status();
            if made.is_ok_and(|status| status.success()) {
                assert_eq!(refused(&pipe), expected);
            }
        }
    }
}
