//! Rows that contain what an evaluation set asks: runs of 13 words that both have.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::filter::RowFilter;
use crate::document::{DocumentFormat, RowContent, SourceLocation};
use crate::error::DataError;
use crate::normal::{run_hash, word_hashes};
use crate::row_json;
use crate::source::DocumentSource;

/// The runs of words of evaluation sets.
#[derive(Debug)]
pub struct ReferenceTexts {
    words: usize,
    /// The row that each run stands in.
    runs: HashMap<u64, u32>,
    names: Vec<String>,
    too_short: u64,
}

impl ReferenceTexts {
    /// No texts yet; runs of `words` words.
    pub fn new(words: usize) -> Self {
        Self { words, runs: HashMap::new(), names: Vec::new(), too_short: 0 }
    }

    /// Adds the texts of one row, such as question and answers. Runs do not go from one to the
    /// next.
    pub fn add<'a>(&mut self, name: String, texts: impl IntoIterator<Item = &'a str>) {
        // The number of the name that is pushed below, if it is.
        let row = self.names.len() as u32;
        let before = self.runs.len();
        let mut found = false;
        for text in texts {
            for run in word_hashes(text).windows(self.words) {
                found = true;
                self.runs.entry(run_hash(run)).or_insert(row);
            }
        }
        self.too_short += u64::from(!found);
        // Rows without a run of their own are never named.
        if self.runs.len() > before {
            self.names.push(name);
        }
    }

    /// Adds the rows of files: of each all texts, whatever its fields are called.
    ///
    /// # Errors
    /// If a row is not an object.
    pub fn add_files(&mut self, source: &DocumentSource) -> Result<(), DataError> {
        let names = source.names();
        for document in source.documents(DocumentFormat::Either)? {
            let document = document?;
            let source = Arc::clone(&names[document.file]);
            let place = SourceLocation { source, line: document.line };
            let name = place.to_string();
            match &document.content {
                RowContent::Text(text) => self.add(name, [text.as_str()]),
                row => {
                    let row = row_json::object(row).map_err(|fault| fault.at(place))?;
                    self.add(name, row.values().flat_map(texts_of));
                }
            }
        }
        Ok(())
    }

    /// Different runs.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Rows without a text of enough words; nothing is found of them.
    pub fn too_short(&self) -> u64 {
        self.too_short
    }
}

/// All texts in a value, in their order.
pub fn texts_of(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts_of).collect(),
        Value::Object(object) => object.values().flat_map(texts_of).collect(),
        _ => Vec::new(),
    }
}

/// Leaves out rows with a run of an evaluation set.
#[derive(Debug)]
pub struct Contamination<'a>(pub &'a ReferenceTexts);

impl RowFilter for Contamination<'_> {
    /// The row of the evaluation set that the first common run stands in.
    type Mark = Option<u32>;

    fn mark(&self, text: &str) -> Option<u32> {
        let words = word_hashes(text);
        words.windows(self.0.words).find_map(|run| self.0.runs.get(&run_hash(run)).copied())
    }

    fn reason(&mut self, mark: Option<u32>, _: &SourceLocation) -> Option<String> {
        Some(self.0.names[mark? as usize].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_evaluation_set_are_read_whatever_their_fields_are_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.jsonl");
        fs_err::write(&path, "{\"q\": \"a b c\", \"c\": [{\"t\": \"d e f\"}], \"n\": 3}\n")
            .unwrap();
        let mut texts = ReferenceTexts::new(3);
        texts.add_files(&DocumentSource::files(vec![path])).unwrap();
        assert_eq!((texts.runs(), texts.too_short()), (2, 0));
        assert!(Contamination(&texts).mark("x D E F").is_some());
        assert!(Contamination(&texts).mark("b c d").is_none(), "runs end with their text");
    }

    #[test]
    fn a_row_that_holds_thirteen_words_of_a_question_is_found() {
        let mut texts = ReferenceTexts::new(13);
        let thirteen = "One two three four five six seven eight nine ten eleven twelve thirteen?";
        texts.add("arc:1".to_owned(), ["short", thirteen]);
        texts.add("arc:2".to_owned(), ["too short"]);
        texts.add("arc:3".to_owned(), [format!("zero, {thirteen}").as_str()]);
        assert_eq!((texts.runs(), texts.too_short()), (2, 1));
        let mut filter = Contamination(&texts);
        let mut reason = |text: &str| {
            let mark = filter.mark(text);
            filter.reason(mark, &SourceLocation { source: "a".into(), line: 1 })
        };
        let inside = format!("He asked: {}", thirteen.to_uppercase().replace(' ', "\n"));
        assert_eq!(reason(&inside).as_deref(), Some("arc:1"));
        assert_eq!(
            reason("zero one two three four five six seven eight nine ten eleven twelve")
                .as_deref(),
            Some("arc:3")
        );
        assert_eq!(reason(&thirteen.replace("seven", "7")), None);
        assert_eq!(reason(""), None);
    }
}
