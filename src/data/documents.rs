//! Documents out of files: every line of a `.jsonl` file is one (for plain text: its field `text`),
//! and so is a `.txt` file. Files are streamed; what is held is one document.
//!
//! Ordering, tokenising and caching do not live here.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::json_lines::JsonLines;

/// The largest `.txt` file or line of a `.jsonl` file: all of Shakespeare fits ten times, a file that
/// lost its line ends does not.
pub const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// The field of a `.jsonl` object that holds the text.
const TEXT_FIELD: &str = "text";

/// One document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Which file of the list it is from, from 0.
    pub file: usize,
    /// Its line in the file, from 1.
    pub line: u64,
    /// The text, or the line of JSON; never empty.
    pub text: String,
}

/// What of a line is the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its field `text`; files of text are read too.
    Text,
    /// The whole line, which holds one JSON object.
    Line,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lines,
    Whole,
}

/// The documents of a list of files, in order. The first error ends the iteration.
#[derive(Debug)]
pub struct DocumentReader {
    files: Vec<(PathBuf, Kind)>,
    content: Content,
    /// The file that is opened next.
    next: usize,
    lines: Option<JsonLines>,
    /// Bytes of the files that are done with.
    bytes: u64,
    empty: u64,
}

impl DocumentReader {
    /// Looks at the names only: a wrong one is reported before any work is done.
    pub fn open(files: &[PathBuf], content: Content) -> Result<Self, DataError> {
        if files.is_empty() {
            return Err(DataError::NoFiles);
        }
        let known = |path: &PathBuf| Ok((path.clone(), kind(path, content)?));
        let files = files.iter().map(known).collect::<Result<_, DataError>>()?;
        Ok(Self { files, content, next: 0, lines: None, bytes: 0, empty: 0 })
    }

    /// Bytes of the files read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.lines.as_ref().map_or(0, JsonLines::bytes)
    }

    /// Documents without text met so far; they are skipped.
    pub fn empty(&self) -> u64 {
        self.empty
    }

    fn advance(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            let document = if self.lines.is_some() {
                self.next_line()?
            } else if self.next < self.files.len() {
                self.next_file()?
            } else {
                return Ok(None);
            };
            match document {
                Some(document) if document.text.is_empty() => self.empty += 1,
                Some(document) => return Ok(Some(document)),
                None => {}
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Document>, DataError> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        let Some(object) = lines.next().transpose()? else {
            self.bytes += lines.bytes();
            self.lines = None;
            return Ok(None);
        };
        let line = object.line;
        let text = match self.content {
            Content::Text => lines.string(object, TEXT_FIELD)?,
            Content::Line => lines.current().to_owned(),
        };
        Ok(Some(Document { file: self.next - 1, line, text }))
    }

    fn next_file(&mut self) -> Result<Option<Document>, DataError> {
        let (path, kind) = &self.files[self.next];
        self.next += 1;
        if *kind == Kind::Lines {
            self.lines = Some(JsonLines::open(path)?);
            return Ok(None);
        }
        let text = read_whole(path, MAX_DOCUMENT_BYTES)?;
        self.bytes += text.len() as u64;
        Ok(Some(Document { file: self.next - 1, line: 1, text }))
    }
}

impl Iterator for DocumentReader {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.lines = None;
            self.next = self.files.len();
        }
        next.transpose()
    }
}

fn kind(path: &Path, content: Content) -> Result<Kind, DataError> {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match (&*extension, content) {
        ("jsonl", _) => Ok(Kind::Lines),
        ("txt", Content::Text) => Ok(Kind::Whole),
        (other, _) => {
            let expected = if content == Content::Text { ".jsonl or .txt" } else { ".jsonl" };
            let (path, got) = (path.to_owned(), other.to_owned());
            Err(DataError::Extension { path, expected, got })
        }
    }
}

fn read_whole(path: &Path, limit: u64) -> Result<String, DataError> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(DataError::TooLarge { path: path.to_owned(), line: 1 });
    }
    String::from_utf8(bytes).map_err(|error| not_utf8(path, &error))
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> DataError {
    let at = error.utf8_error().valid_up_to();
    let (before, rest) = error.as_bytes().split_at(at);
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    DataError::NotUtf8 {
        path: path.to_owned(),
        line: before.split(|&byte| byte == b'\n').count() as u64,
        column: at - line_start + 1,
        byte: rest[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            for (name, bytes) in files {
                fs_err::write(folder.0.path().join(name), bytes).unwrap();
            }
            folder
        }

        fn read(&self, names: &[&str]) -> Result<Vec<(usize, u64, String)>, DataError> {
            let files: Vec<_> = names.iter().map(|name| self.0.path().join(name)).collect();
            let documents = DocumentReader::open(&files, Content::Text)?;
            documents.map(|one| one.map(|one| (one.file, one.line, one.text))).collect()
        }

        /// The message of reading one file, without the folder's name.
        fn message(&self, name: &str) -> String {
            let text = self.read(&[name]).unwrap_err().to_string();
            text.replace(&format!("{}/", self.0.path().display()), "")
        }
    }

    fn message(name: &str, bytes: &[u8]) -> String {
        Folder::new(&[(name, bytes)]).message(name)
    }

    #[test]
    fn files_give_their_documents_in_order() {
        let folder = Folder::new(&[
            ("b.jsonl", b"{\"text\":\"one\",\"id\":7}\n\n{\"text\":\"two\"}"),
            ("a.txt", b"a whole\nfile\n"),
        ]);
        let got = folder.read(&["b.jsonl", "a.txt", "b.jsonl"]).unwrap();
        let whole = "a whole\nfile\n";
        let expected = [(0, 1, "one"), (0, 3, "two"), (1, 1, whole), (2, 1, "one"), (2, 3, "two")];
        assert_eq!(got, expected.map(|(file, line, text)| (file, line, text.to_owned())));
    }

    #[test]
    fn empty_texts_are_skipped_and_counted_and_bytes_add_up() {
        let folder =
            Folder::new(&[("a.jsonl", b"{\"text\":\"\"}\n{\"text\":\"x\"}\n"), ("b.txt", b"")]);
        let files = ["a.jsonl", "b.txt"].map(|name| folder.0.path().join(name));
        let mut reader = DocumentReader::open(&files, Content::Text).unwrap();
        assert_eq!(reader.by_ref().count(), 1);
        assert_eq!((reader.empty(), reader.bytes()), (2, 25));
    }

    #[test]
    fn an_empty_set_is_an_error() {
        assert_eq!(
            DocumentReader::open(&[], Content::Text).unwrap_err().to_string(),
            "the data set has no files; expected at least one .jsonl or .txt file, got none"
        );
    }

    #[test]
    fn another_kind_of_file_is_an_error_before_anything_is_read() {
        let folder = Folder::new(&[("a.txt", b"x")]);
        assert!(matches!(folder.read(&["a.txt", "b.csv"]), Err(DataError::Extension { .. })));
        assert_eq!(
            folder.message("b.parquet"),
            "b.parquet: unknown kind of file; expected .jsonl or .txt, got \"parquet\""
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = Folder::new(&[]);
        assert!(folder.message("no.jsonl").contains("no.jsonl"));
        let kind = folder.read(&["no.txt"]).unwrap_err().io_kind();
        assert_eq!(kind, Some(std::io::ErrorKind::NotFound));
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_with_line_and_column() {
        assert_eq!(
            message("a.jsonl", b"{\"text\":\"x\"}\n{\"text\":\"\xff\"}\n"),
            "a.jsonl:2: not UTF-8 at column 10; expected text, got byte 0xff"
        );
        assert_eq!(
            message("a.txt", b"first\nse\xc3cond"),
            "a.txt:2: not UTF-8 at column 3; expected text, got byte 0xc3"
        );
    }

    #[test]
    fn invalid_json_is_an_error() {
        assert_eq!(
            message("a.jsonl", b"{\"text\":\"x\"}\n{\"text\" \"x\"}\n"),
            "a.jsonl:2: invalid JSON; expected one object a line, got expected `:` at column 9"
        );
        assert!(message("a.jsonl", b"{\"text\":\"x\"} {}\n").contains("trailing characters"));
        assert!(message("a.jsonl", b"{\"text\":\n").contains("a.jsonl:1: invalid JSON"));
    }

    #[test]
    fn a_line_that_is_no_object_is_an_error() {
        assert_eq!(
            message("a.jsonl", b"\"only a string\"\n"),
            "a.jsonl:1: invalid JSON; expected one object a line, got a string"
        );
    }

    #[test]
    fn a_row_without_text_is_an_error() {
        assert_eq!(
            message("a.jsonl", b"{\"messages\":[]}\n"),
            "a.jsonl:1 [text]: wrong value; expected a string, got no such key"
        );
    }

    #[test]
    fn a_text_of_another_type_is_an_error() {
        for (value, kind) in [("null", "null"), ("3", "a number"), ("[\"x\"]", "an array")] {
            assert_eq!(
                message("a.jsonl", format!("{{\"text\":{value}}}\n").as_bytes()),
                format!("a.jsonl:1 [text]: wrong value; expected a string, got {kind}")
            );
        }
    }

    #[test]
    fn a_torn_last_line_is_an_error_and_a_whole_one_without_its_end_is_not() {
        let torn = b"{\"text\":\"x\"}\n{\"text\":\"\xc3\xa9";
        for length in [14, 20, torn.len() - 1, torn.len()] {
            let message = message("a.jsonl", &torn[..length]);
            assert!(message.starts_with("a.jsonl:2: the last line is torn;"), "{message}");
        }
        let folder = Folder::new(&[("a.jsonl", b"{\"text\":\"x\"}")]);
        assert_eq!(folder.read(&["a.jsonl"]).unwrap().len(), 1);
    }

    #[test]
    fn a_text_file_above_the_limit_is_refused() {
        let folder = Folder::new(&[("a.txt", b"12345")]);
        let path = folder.0.path().join("a.txt");
        assert_eq!(read_whole(&path, 5).unwrap(), "12345");
        assert!(matches!(read_whole(&path, 4), Err(DataError::TooLarge { line: 1, .. })));
    }
}
