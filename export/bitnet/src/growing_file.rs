//! A file of JSON objects, one a line, that grows: what is written stays when the program is ended.

use std::io::Write;
use std::path::{Path, PathBuf};

use bitnet_format::Shown;
use bitnet_format::input::{LARGEST_TEXT, read_text};
use serde_json::Value;

use crate::failure::BadInput;

/// Rows in memory and in a file.
pub(crate) struct GrowingFile {
    path: PathBuf,
    pub(crate) rows: Vec<Value>,
}

impl GrowingFile {
    /// Reads the rows that a file has so far, none if there is no file. A last line that an earlier
    /// run did not finish is taken away.
    pub(crate) fn open(path: PathBuf) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        if !path.exists() {
            return Ok(Self { path, rows: Vec::new() });
        }
        let text = read_text(&path, LARGEST_TEXT)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut rows = Vec::new();
        for (number, line) in (1..).zip(text[..whole].lines()) {
            let row = serde_json::from_str::<Value>(line).ok().filter(Value::is_object);
            let wrong = || BadInput(format!("{}:{number}: expected a JSON object", path.shown()));
            rows.push(row.ok_or_else(wrong)?);
        }
        if whole < text.len() {
            fs_err::OpenOptions::new().write(true).open(&path)?.set_len(whole as u64)?;
        }
        Ok(Self { path, rows })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a row, at once.
    pub(crate) fn push(&mut self, row: Value) -> anyhow::Result<()> {
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(format!("{row}\n").as_bytes())?;
        self.rows.push(row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_stay_and_an_unfinished_line_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/rows.jsonl");
        let mut lines = GrowingFile::open(path.clone()).unwrap();
        lines.push(json!({"a": 1})).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("{text}{{\"a\": 2")).unwrap();
        let mut lines = GrowingFile::open(path.clone()).unwrap();
        lines.push(json!({"a": 3})).unwrap();
        assert_eq!(
            GrowingFile::open(path.clone()).unwrap().rows,
            [json!({"a": 1}), json!({"a": 3})]
        );
        fs_err::write(&path, "{}\nnothing\n").unwrap();
        let error = GrowingFile::open(path).err().unwrap().to_string();
        assert!(error.ends_with("rows.jsonl:2: expected a JSON object"), "{error}");
    }
}
