//! The documents of a set: lines of `.jsonl` files, whole `.txt` files, or the output of a
//! generator. Files are streamed; one document is in memory at a time.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::foreign::{FileRole, refuse, without_mark};
use bitnet_format::input::open_file;

use super::document::{Document, DocumentFormat, MAX_DOCUMENT_BYTES};
use super::error::DataError;
use super::json_lines::JsonLines;

/// A generator of documents: a pure function of an index.
#[derive(Clone)]
pub struct DocumentGenerator {
    /// Names everything that the documents depend on besides the index.
    pub(crate) key: String,
    pub(crate) count: u64,
    pub(crate) make: Arc<dyn Fn(u64) -> String + Send + Sync>,
}

impl fmt::Debug for DocumentGenerator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "DocumentGenerator({:?}, {})", self.key, self.count)
    }
}

/// The documents in order. Empty ones are skipped and counted; the first error ends the iteration.
#[derive(Debug)]
pub struct DocumentStream {
    input: Option<Input>,
    empty: u64,
}

#[derive(Debug)]
enum Input {
    Files(FileReader),
    Generator { generator: DocumentGenerator, next: u64 },
}

#[derive(Debug)]
struct FileReader {
    files: Vec<(PathBuf, FileKind)>,
    format: DocumentFormat,
    /// The index of the file that is opened next.
    next: usize,
    lines: Option<JsonLines>,
    /// Bytes of the files that are finished.
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum FileKind {
    JsonLines,
    PlainText,
}

impl DocumentStream {
    /// Checks only the names of the files: a wrong one is reported before any work is done.
    pub(crate) fn of_files(files: &[PathBuf], format: DocumentFormat) -> Result<Self, DataError> {
        if files.is_empty() {
            return Err(DataError::NoFiles);
        }
        let known = |path: &PathBuf| Ok((path.clone(), file_kind(path, format)?));
        let files = files.iter().map(known).collect::<Result<_, DataError>>()?;
        let reader = FileReader { files, format, next: 0, lines: None, bytes: 0 };
        Ok(Self { input: Some(Input::Files(reader)), empty: 0 })
    }

    pub(crate) fn of_generator(generator: DocumentGenerator) -> Self {
        Self { input: Some(Input::Generator { generator, next: 0 }), empty: 0 }
    }

    /// Progress: bytes of files, or documents of a generator.
    pub fn done(&self) -> u64 {
        match &self.input {
            Some(Input::Files(reader)) => reader.done(),
            Some(Input::Generator { next, .. }) => *next,
            None => 0,
        }
    }

    /// The number of documents without text so far.
    pub fn empty(&self) -> u64 {
        self.empty
    }
}

impl Iterator for DocumentStream {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = match self.input.as_mut()? {
                Input::Files(reader) => reader.read().transpose(),
                Input::Generator { generator, next } => generate(generator, next).map(Ok),
            };
            match next {
                Some(Ok(document)) if document.text.is_empty() => self.empty += 1,
                Some(Err(_)) => {
                    self.input = None;
                    return next;
                }
                _ => return next,
            }
        }
    }
}

fn generate(generator: &DocumentGenerator, next: &mut u64) -> Option<Document> {
    (*next < generator.count).then(|| {
        let text = (generator.make)(*next);
        *next += 1;
        Document { file: 0, line: *next, text }
    })
}

impl FileReader {
    fn done(&self) -> u64 {
        self.bytes + self.lines.as_ref().map_or(0, JsonLines::bytes)
    }

    fn read(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some((line, text)) = lines.next(self.format)? {
                    return Ok(Some(Document { file: self.next - 1, line, text }));
                }
                self.bytes += lines.bytes();
                self.lines = None;
            }
            let Some((path, kind)) = self.files.get(self.next) else { return Ok(None) };
            self.next += 1;
            match kind {
                FileKind::JsonLines => self.lines = Some(JsonLines::open(path)?),
                FileKind::PlainText => {
                    let text = read_text(path, MAX_DOCUMENT_BYTES)?;
                    self.bytes += text.len() as u64;
                    return Ok(Some(Document { file: self.next - 1, line: 1, text }));
                }
            }
        }
    }
}

fn file_kind(path: &Path, format: DocumentFormat) -> Result<FileKind, DataError> {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let expected = match (&*extension, format) {
        ("jsonl", _) => return Ok(FileKind::JsonLines),
        ("txt", DocumentFormat::Text) => return Ok(FileKind::PlainText),
        (_, DocumentFormat::Text) => ".jsonl or .txt",
        (_, DocumentFormat::JsonLine) => ".jsonl",
    };
    // Its content says more than its name.
    refuse(path, FileRole::Data)?;
    Err(DataError::Extension { path: path.to_owned(), expected, got: extension.into_owned() })
}

fn read_text(path: &Path, limit: u64) -> Result<String, DataError> {
    refuse(path, FileRole::Data)?;
    let mut bytes = Vec::new();
    open_file(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(DataError::TooLarge { path: path.to_owned(), line: 1 });
    }
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(path, &error))?;
    let marked = without_mark(&text).len() < text.len();
    Ok(if marked { without_mark(&text).to_owned() } else { text })
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
            let documents = DocumentStream::of_files(&files, DocumentFormat::Text)?;
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
        let mut reader = DocumentStream::of_files(&files, DocumentFormat::Text).unwrap();
        assert_eq!(reader.by_ref().count(), 1);
        assert_eq!((reader.empty(), reader.done()), (2, 25));
    }

    #[test]
    fn nothing_follows_an_error() {
        let folder = Folder::new(&[("a.jsonl", b"[]\n{\"text\":\"x\"}\n")]);
        let files = [folder.0.path().join("a.jsonl")];
        let mut documents = DocumentStream::of_files(&files, DocumentFormat::Text).unwrap();
        assert!(documents.next().unwrap().is_err());
        assert!(documents.next().is_none());
    }

    #[test]
    fn an_empty_set_is_an_error() {
        assert_eq!(
            DocumentStream::of_files(&[], DocumentFormat::Text).unwrap_err().to_string(),
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
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(matches!(read_text(&path, 4), Err(DataError::TooLarge { line: 1, .. })));
    }
}
