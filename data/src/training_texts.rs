//! The texts of sets for a tokenizer to be trained on, one in memory at a time.

use crate::documents::DocumentStream;
use crate::encoding::Encoding;
use crate::error::DataError;
use crate::source::DocumentSource;

/// The texts of several sources in order, those that their selections use. The first error ends
/// them; it is told by [`TrainingTexts::finish`].
#[derive(Debug)]
pub struct TrainingTexts<'a> {
    sources: std::slice::Iter<'a, DocumentSource>,
    encoding: &'a Encoding,
    current: Option<(&'a DocumentSource, DocumentStream)>,
    failed: Option<DataError>,
}

impl<'a> TrainingTexts<'a> {
    /// Texts as `encoding` finds them in rows.
    pub fn new(sources: &'a [DocumentSource], encoding: &'a Encoding) -> Self {
        Self { sources: sources.iter(), encoding, current: None, failed: None }
    }

    /// What ended the texts early, if anything did.
    ///
    /// # Errors
    /// A file or row that cannot be used, where such rows are not left out.
    pub fn finish(self) -> Result<(), DataError> {
        self.failed.map_or(Ok(()), Err)
    }

    fn read(&mut self) -> Result<Option<String>, DataError> {
        loop {
            let Some((source, documents)) = &mut self.current else {
                let Some(source) = self.sources.next() else { return Ok(None) };
                self.current = Some((source, source.documents(self.encoding.format())?));
                continue;
            };
            let Some(document) = documents.next().transpose()? else {
                self.current = None;
                continue;
            };
            match self.encoding.training_text(source, document) {
                Ok(Some(text)) => return Ok(Some(text)),
                Ok(None) => {}
                // Counted and limited when it is tokenised.
                Err(_) if source.skips_bad_rows() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Iterator for TrainingTexts<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.failed.is_some() {
            return None;
        }
        self.read().unwrap_or_else(|error| {
            self.failed = Some(error);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BadRows, ReadingRules, RowSelection};

    #[test]
    fn texts_are_those_that_are_used_and_a_bad_row_ends_them_or_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs_err::write(
            &path,
            "{\"text\":\"one\"}\n{\"text\":\"x\"}\n{\"no\":1}\n{\"text\":\"two\"}\n",
        )
        .unwrap();
        let texts = |bad_rows| {
            let selection = RowSelection { min_chars: 2, ..RowSelection::default() };
            let rules = ReadingRules { selection, bad_rows, ..ReadingRules::default() };
            let sources = [DocumentSource::Files(vec![path.clone()], rules)];
            let mut texts = TrainingTexts::new(&sources, &Encoding::Text);
            let found: Vec<String> = texts.by_ref().collect();
            (found, texts.finish().map_err(|error| error.to_string()))
        };
        assert_eq!(texts(BadRows::Skip), (vec!["one".to_owned(), "two".to_owned()], Ok(())));
        let (found, ended) = texts(BadRows::Error);
        assert_eq!(found, ["one"]);
        assert!(ended.unwrap_err().contains("a.jsonl:3 [text]"));
    }
}
