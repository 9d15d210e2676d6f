//! The documents of a set: rows of files, whole text files, or the output of a generator. Files are
//! streamed; one document is in memory at a time.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::document::{Document, DocumentFormat, RowContent};
use super::error::DataError;
use super::rows::{self, FileOptions, FileRows};

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

/// The documents in order, those without text included; the first error ends the iteration.
#[derive(Debug)]
pub struct DocumentStream {
    input: Option<Input>,
}

#[derive(Debug)]
enum Input {
    Files(Box<FileReader>),
    Generator { generator: DocumentGenerator, format: DocumentFormat, next: u64 },
}

#[derive(Debug)]
struct FileReader {
    files: Vec<PathBuf>,
    options: FileOptions,
    format: DocumentFormat,
    /// The index of the file that is opened next.
    next: usize,
    rows: Option<FileRows>,
    /// Bytes of the files that are finished.
    bytes: u64,
}

impl DocumentStream {
    /// Looks only at the beginnings of the files: a wrong one is reported before any work is done.
    pub(crate) fn of_files(
        files: &[PathBuf],
        options: &FileOptions,
        format: DocumentFormat,
    ) -> Result<Self, DataError> {
        if files.is_empty() {
            return Err(DataError::NoFiles);
        }
        files.iter().try_for_each(|path| rows::check(path, format, options))?;
        let (files, options) = (files.to_vec(), options.clone());
        let reader = FileReader { files, options, format, next: 0, rows: None, bytes: 0 };
        Ok(Self { input: Some(Input::Files(Box::new(reader))) })
    }

    pub(crate) fn of_generator(generator: DocumentGenerator, format: DocumentFormat) -> Self {
        Self { input: Some(Input::Generator { generator, format, next: 0 }) }
    }

    /// The next documents, up to the one that brings them to `bytes`; none at the end.
    pub(crate) fn batch(&mut self, bytes: usize) -> Result<Vec<Document>, DataError> {
        let (mut batch, mut length) = (Vec::new(), 0);
        while length < bytes {
            let Some(document) = self.next().transpose()? else { break };
            // At least one: documents without text must fill a batch too, or a file of them would
            // be one batch.
            length += document.content.bytes().max(1);
            batch.push(document);
        }
        Ok(batch)
    }

    /// Progress: bytes of files, or documents of a generator.
    pub fn done(&self) -> u64 {
        match &self.input {
            Some(Input::Files(reader)) => reader.done(),
            Some(Input::Generator { next, .. }) => *next,
            None => 0,
        }
    }
}

impl Iterator for DocumentStream {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match self.input.as_mut()? {
            Input::Files(reader) => reader.read().transpose(),
            Input::Generator { generator, format, next } => {
                generate(generator, *format, next).map(Ok)
            }
        };
        // After an error the stream is over: rows after a broken one may be anything.
        if matches!(next, Some(Err(_))) {
            self.input = None;
        }
        next
    }
}

fn generate(
    generator: &DocumentGenerator,
    format: DocumentFormat,
    next: &mut u64,
) -> Option<Document> {
    (*next < generator.count).then(|| {
        let text = (generator.make)(*next);
        *next += 1;
        let content = match format {
            DocumentFormat::Text | DocumentFormat::Either => RowContent::Text(text),
            DocumentFormat::JsonLine => RowContent::Json(text.into_bytes()),
        };
        Document { file: 0, line: *next, content }
    })
}

impl FileReader {
    fn done(&self) -> u64 {
        self.bytes + self.rows.as_ref().map_or(0, FileRows::done)
    }

    fn read(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(rows) = &mut self.rows {
                if let Some((line, content)) = rows.next()? {
                    return Ok(Some(Document { file: self.next - 1, line, content }));
                }
                self.bytes += rows.done();
                self.rows = None;
            }
            let Some(path) = self.files.get(self.next) else { return Ok(None) };
            self.next += 1;
            // One file is open at a time, however many there are.
            self.rows = Some(FileRows::open(path, self.format, &self.options)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DocumentSource;

    #[test]
    fn a_batch_ends_with_the_document_that_fills_it() {
        let texts = ["abc", "de", "f", "g"].map(str::to_owned).to_vec();
        let mut documents =
            DocumentSource::in_memory("test", texts).documents(DocumentFormat::Text).unwrap();
        let mut sizes = || documents.batch(4).unwrap().len();
        assert_eq!([sizes(), sizes(), sizes()], [2, 2, 0]);
    }
}
