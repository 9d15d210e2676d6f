//! The rows of a split: where their file may lie under the data folder, and how it is read.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bitnet_format::Shown;
use bitnet_format::foreign::without_mark_bytes;
use bitnet_format::input::open_file;
use serde_json::Value;

use crate::error::EvalError;
use crate::parquet_files::{self, PartsProblem};

/// A longer line is no row of a data set.
const LARGEST_LINE: usize = 64 << 20;

/// The rows of one split, with the file that they came from.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) rows: Vec<Value>,
    /// Hash of the file's bytes.
    pub(crate) hash: String,
}

impl DataFile {
    /// Rows that no file holds; `name` stands for it in messages.
    ///
    /// # Errors
    /// No row, a row without fields.
    pub(crate) fn in_memory(name: &str, rows: Vec<Value>) -> Result<Self, EvalError> {
        let mut hasher = blake3::Hasher::new();
        for row in &rows {
            hasher.update(row.to_string().as_bytes());
        }
        let hash = hasher.finalize().to_hex().to_string();
        Self { path: PathBuf::from(name), rows, hash }.with_rows()
    }

    /// Checks that there are rows, and that each has fields.
    fn with_rows(self) -> Result<Self, EvalError> {
        if let Some(at) = self.rows.iter().position(|row: &Value| !row.is_object()) {
            return Err(self.wrong(at, "row", "expected an object with the fields of a row"));
        }
        if self.rows.is_empty() {
            let what = "the file holds no row; expected at least one";
            return Err(self.wrong(0, "row", what));
        }
        Ok(self)
    }

    /// An error about a row, by its index.
    pub(crate) fn wrong(&self, row: usize, field: &str, what: impl Into<String>) -> EvalError {
        EvalError::row(&self.path, row + 1, field, what)
    }
}

/// The files of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SplitFiles {
    /// One of rows of JSON.
    Rows(PathBuf),
    /// One or several of Parquet, in order.
    Parquet(Vec<PathBuf>),
}

/// What names a split's file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitName<'a> {
    /// For messages.
    pub(crate) task: &'a str,
    /// As on the hub: `owner/name`.
    pub(crate) dataset: &'a str,
    /// The configuration.
    pub(crate) name: Option<&'a str>,
    pub(crate) split: &'a str,
    /// Whether its rows are evaluated; only these may lie in a file with the task's own name.
    pub(crate) is_evaluated: bool,
}

impl SplitName<'_> {
    /// Paths below the data folder without their ending, the most exact first.
    fn stems(&self) -> Vec<String> {
        let short = self.dataset.rsplit('/').next().unwrap_or(self.dataset);
        let flat = self.dataset.replace('/', "___");
        let mut stems = Vec::new();
        // The hub's own path; the same with `___`, as the cache of `datasets` spells it; then what
        // people name folders by hand.
        for folder in [self.dataset, &flat, short, self.task] {
            if let Some(name) = self.name {
                stems.push(format!("{folder}/{name}/{}", self.split));
                stems.push(format!("{folder}/{name}_{}", self.split));
            }
            stems.push(format!("{folder}/data/{}", self.split));
            stems.push(format!("{folder}/{}", self.split));
        }
        stems.push(format!("{}_{}", self.task, self.split));
        if self.is_evaluated {
            stems.push(self.task.to_owned());
        }
        let mut seen = Vec::new();
        stems.retain(|stem| {
            !seen.contains(stem) && {
                seen.push(stem.clone());
                true
            }
        });
        stems
    }

    /// The names that a message shows: those of the hub, and the flat ones.
    fn shown(&self) -> Vec<String> {
        let stems = self.stems();
        let own = |stem: &&String| stem.starts_with(self.dataset) || !stem.contains('/');
        let mut names: Vec<String> =
            stems.iter().filter(own).map(|stem| format!("{stem}.jsonl")).collect();
        names.push("the same as .json and .parquet".to_owned());
        names
    }

    /// Reads the split.
    pub(crate) fn read(&self, dir: &Path) -> Result<DataFile, EvalError> {
        match self.find(dir)? {
            Some(SplitFiles::Rows(path)) => read_file(&path),
            Some(SplitFiles::Parquet(parts)) => read_parquet(&parts),
            None => Err(self.missing(dir, self.shown())),
        }
    }

    /// Its files below `dir`; `None` where there are none.
    ///
    /// # Errors
    /// Parts that are missing or contradict each other.
    pub(crate) fn find(&self, dir: &Path) -> Result<Option<SplitFiles>, EvalError> {
        for stem in self.stems() {
            let plain = ["jsonl", "json"].map(|end| dir.join(format!("{stem}.{end}")));
            if let Some(path) = plain.into_iter().find(|path| path.is_file()) {
                return Ok(Some(SplitFiles::Rows(path)));
            }
            let parts = parquet_files::find(&dir.join(stem)).map_err(|problem| match problem {
                PartsProblem::Mixed(names) => PartsProblem::mixed(&names),
                PartsProblem::Missing(missing) => {
                    let name =
                        |path: &PathBuf| path.strip_prefix(dir).unwrap_or(path).shown().to_string();
                    self.missing(dir, missing.iter().map(name).collect())
                }
            })?;
            if !parts.is_empty() {
                return Ok(Some(SplitFiles::Parquet(parts)));
            }
        }
        Ok(None)
    }

    fn missing(&self, dir: &Path, looked: Vec<String>) -> EvalError {
        let (task, split) = (self.task.to_owned(), self.split.to_owned());
        EvalError::MissingData { task, split, dir: dir.to_owned(), looked }
    }
}

/// Reads the Parquet files of a split as one.
fn read_parquet(paths: &[PathBuf]) -> Result<DataFile, EvalError> {
    let (mut hasher, mut rows) = (blake3::Hasher::new(), Vec::new());
    for path in paths {
        parquet_files::read(path, &mut hasher, &mut rows)?;
    }
    let path = paths[0].clone();
    DataFile { path, rows, hash: hasher.finalize().to_hex().to_string() }.with_rows()
}

/// Reads a `.jsonl` file, or a `.json` file with one list.
pub(crate) fn read_file(path: &Path) -> Result<DataFile, EvalError> {
    let mut reader = BufReader::new(open_file(path)?);
    let mut hasher = blake3::Hasher::new();
    let (mut rows, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    if path.extension().is_some_and(|end| end == "json") {
        std::io::copy(&mut reader, &mut line)?;
        hasher.update(&line);
        // `line` holds the whole file here: one list.
        rows = serde_json::from_slice(without_mark_bytes(&line))
            .map_err(|error| EvalError::row(path, error.line(), "json", error.to_string()))?;
    } else {
        while read_line(&mut reader, &mut line)? > 0 {
            number += 1;
            hasher.update(&line);
            if line.len() > LARGEST_LINE {
                let what = format!("is too long; expected at most {LARGEST_LINE} bytes");
                return Err(EvalError::row(path, number, "line", what));
            }
            // Editors on Windows begin a file with a byte-order mark.
            let text = if number == 1 { without_mark_bytes(&line) } else { &line };
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let row = serde_json::from_slice(text);
            rows.push(
                row.map_err(|error| EvalError::row(path, number, "line", error.to_string()))?,
            );
        }
    }
    let hash = hasher.finalize().to_hex().to_string();
    DataFile { path: path.to_owned(), rows, hash }.with_rows()
}

/// Reads a line, or of one that is too long so much that this is seen.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    line.clear();
    // A file without a line end would otherwise be in memory as a whole before it is refused.
    reader.take(LARGEST_LINE as u64 + 1).read_until(b'\n', line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::Compression;

    #[test]
    fn splits_are_found_under_the_names_that_people_give_them() {
        let name = SplitName {
            task: "arc_easy",
            dataset: "allenai/ai2_arc",
            name: Some("ARC-Easy"),
            split: "test",
            is_evaluated: true,
        };
        for place in [
            "allenai/ai2_arc/ARC-Easy/test.jsonl",
            "ai2_arc/ARC-Easy_test.json",
            "arc_easy_test.jsonl",
            "arc_easy/test.jsonl",
            "allenai___ai2_arc/ARC-Easy/test.jsonl",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(place);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            let text = if place.ends_with("json") { "[{\"a\": 1}]" } else { "{\"a\": 1}\n\n" };
            // A byte-order mark is no part of the first row, of either kind of file.
            let mark = if place.contains("_test") { "\u{feff}" } else { "" };
            fs_err::write(&path, [mark, text].concat()).unwrap();
            let rows = name.read(dir.path()).unwrap();
            assert_eq!((rows.rows.len(), rows.path), (1, path));
        }
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("allenai/ai2_arc/ARC-Easy/test-00000-of-00002.parquet");
        parquet_files::tests::write(&part, &["a", "b"], Compression::SNAPPY);
        let error = name.read(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("looked for allenai/ai2_arc/ARC-Easy/test-00001-of-00002.parquet"));
        fs_err::copy(&part, part.with_file_name("test-00001-of-00002.parquet")).unwrap();
        assert_eq!(name.read(dir.path()).unwrap().rows.len(), 4);
        let error = name.read(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("arc_easy: no data for split \"test\" under /nowhere"), "{error}");
        assert!(error.contains("allenai/ai2_arc/ARC-Easy/test.jsonl"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_not_read_whole() {
        let mut endless = BufReader::new(std::io::repeat(b'x').take(2 * LARGEST_LINE as u64));
        let mut line = Vec::new();
        assert_eq!(read_line(&mut endless, &mut line).unwrap(), LARGEST_LINE + 1);
        assert_eq!(read_line(&mut "a\nb".as_bytes(), &mut line).unwrap(), 2);
    }

    #[test]
    fn broken_rows_are_reported_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, place) in [
            ("a.jsonl", "{}\n{\n", ":2 [line]"),
            ("b.jsonl", "{}\n3\n", ":2 [row]"),
            ("c.jsonl", "\n", ":1 [row]"),
            ("d.json", "{}", ":1 [json]"),
        ] {
            let path = dir.path().join(name);
            fs_err::write(&path, text).unwrap();
            let error = read_file(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}{place}")), "{error}");
        }
    }
}
