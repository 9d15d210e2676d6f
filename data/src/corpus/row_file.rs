//! A file of rows under construction: one JSON object a line.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::path::Path;

use bitnet_format::staged::{OnExisting, StagedFile};
use fs_err::File;
use serde_json::{Value, json};

use crate::document::RowContent;
use crate::error::DataError;
use crate::row_json;

/// Rows that appear under the file's name when all are written.
#[derive(Debug)]
pub struct RowFile {
    staged: StagedFile,
    writer: BufWriter<File>,
}

impl RowFile {
    /// A file beside the path, which it takes the place of when it is published: the caller has
    /// made sure of what may be replaced.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        let staged = StagedFile::beside(path, OnExisting::Replace)?;
        let writer = BufWriter::new(File::create(staged.path())?);
        Ok(Self { staged, writer })
    }

    /// Appends one row, given without its line end.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, row: &[u8]) -> Result<(), DataError> {
        self.writer.write_all(row)?;
        Ok(self.writer.write_all(b"\n")?)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When the rest cannot be written or the file not be moved.
    pub fn publish(mut self) -> Result<(), DataError> {
        self.writer.flush()?;
        Ok(self.staged.publish()?)
    }
}

/// A row as a line, with all the fields that it was read with.
pub(super) fn line(content: &RowContent) -> Cow<'_, [u8]> {
    let whole = |row: Value| Cow::Owned(row.to_string().into_bytes());
    match content {
        // Byte for byte where that is a line already: order of keys, numbers and escapes stay.
        RowContent::Json(bytes) if !bytes.trim_ascii().contains(&b'\n') && is_json(bytes) => {
            Cow::Borrowed(bytes.trim_ascii())
        }
        RowContent::Text(text) => whole(json!({"text": text})),
        // Mended, or brought from several lines to one.
        other => {
            whole(Value::Object(row_json::object(other).map(Cow::into_owned).unwrap_or_default()))
        }
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_with_its_own_bytes_where_it_was_one() {
        let json = |text: &str| line(&RowContent::Json(text.into())).into_owned();
        assert_eq!(json("{\"a\":  1e0}\r\n"), b"{\"a\":  1e0}");
        assert_eq!(json("{\"a\":\n 1}"), b"{\"a\":1}");
        assert_eq!(json("{\"a\": NaN}"), b"{\"a\":null}");
        assert_eq!(*line(&RowContent::Text("a\nb".into())), *br#"{"text":"a\nb"}"#);
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let mut file = RowFile::create(&path).unwrap();
        file.write(b"{}").unwrap();
        assert!(!path.exists());
        file.publish().unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"{}\n");
        drop(RowFile::create(&path).unwrap());
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
