//! Rows whose text a chat template made already: trained whole, or between markers.

use std::ops::Range;

use bitnet_text::Tokenizer;
use serde_json::Value;

use crate::conversation::has_turns;
use crate::encoded::EncodedSequence;
use crate::fault::{RowFault, field_error};
use crate::reading::TextMarkers;
use crate::rows::TEXT_FIELD;
use crate::turns::Object;

/// The text of a row that has one and no turns.
pub(crate) fn text(row: &Object) -> Option<&str> {
    row.get(TEXT_FIELD).and_then(Value::as_str).filter(|_| !has_turns(row))
}

/// The sequence of such a text; `None` if it is empty.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    markers: Option<&TextMarkers>,
) -> Result<Vec<EncodedSequence>, RowFault> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let answers = markers
        .map_or_else(|| std::iter::once(0..text.len()).collect(), |markers| markers.answers(text));
    if answers.is_empty() {
        let expected = "the marker of data.text_markers.response before an answer";
        return Err(field_error(TEXT_FIELD, expected, "a text without it").into());
    }
    let bytes = answers.iter().map(ExactSizeIterator::len).sum();
    Ok(vec![EncodedSequence { dialogue: tokenizer.encode_templated(text, &answers)?, bytes }])
}

impl TextMarkers {
    /// The text after each `response`, up to the next `instruction`.
    fn answers(&self, text: &str) -> Vec<Range<usize>> {
        let (mut answers, mut at) = (Vec::new(), 0);
        while let Some(found) = text[at..].find(&self.response) {
            let begin = at + found + self.response.len();
            let next = self.instruction.as_ref().and_then(|marker| text[begin..].find(marker));
            let end = next.map_or(text.len(), |next| begin + next);
            if begin < end {
                answers.push(begin..end);
            }
            // Behind the answer: a marker inside of it is what was said.
            at = end;
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_stand_between_the_markers() {
        let text = "<u>a<r>b<e><u>c<r>d<e>";
        let spans = |instruction: Option<&str>| {
            let instruction = instruction.map(str::to_owned);
            let markers = TextMarkers { response: "<r>".to_owned(), instruction };
            markers.answers(text).into_iter().map(|span| &text[span]).collect::<Vec<_>>()
        };
        assert_eq!(spans(Some("<u>")), ["b<e>", "d<e>"]);
        assert_eq!(spans(None), ["b<e><u>c<r>d<e>"]);
        let markers = TextMarkers { response: "<x>".to_owned(), instruction: None };
        assert!(markers.answers(text).is_empty());
    }
}
