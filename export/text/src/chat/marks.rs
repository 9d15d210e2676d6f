//! Invisible marks in what a template renders: they keep message text apart from the template's
//! own, so that only the template can write special tokens, and show which part is an answer.
//!
//! ```text
//! message    say <|eot_id|>                 a user spells a special token
//! guarded    say <⊘|eot_id|>                the guard breaks the spelling
//! rendered   ⟦…⟧                            what `{% generation %}` encloses
//! ```
//!
//! All marks are private-use characters that neither the messages nor the template contain.

use std::ops::Range;

use serde_json::Value;

use super::message::Dialogue;
use crate::error::TextError;
use crate::special::SpecialToken;
use crate::tokenizer::Tokenizer;

/// One set of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// Stands inside the spelling of a special token that a message contains.
    pub(super) guard: char,
    /// Where a part that the template marks as trained begins and ends.
    pub(super) open: char,
    pub(super) close: char,
    /// Stands for an answer when the place of one is searched.
    pub(super) answer: char,
}

impl Marks {
    /// Marks that no text of `texts` contains; `None` if there are no such characters left.
    pub(super) fn absent_from(texts: &[&str]) -> Option<Self> {
        // Private-use characters: no text should have them, and a set that does is passed over.
        let plane = (0xf_0000_u32..0xf_fff0).step_by(4).map(|first| {
            [0, 1, 2, 3].map(|at| char::from_u32(first + at).expect("private use, no surrogate"))
        });
        let mut free = plane.filter(|set| texts.iter().all(|text| !text.contains(set)));
        free.next().map(|[guard, open, close, answer]| Self { guard, open, close, answer })
    }

    /// `value` with every special token that its texts spell broken by a guard.
    pub(super) fn guard(self, value: &Value, tokenizer: &Tokenizer) -> Value {
        match value {
            Value::String(text) => self.guard_text(text, tokenizer).into(),
            Value::Array(items) => {
                items.iter().map(|item| self.guard(item, tokenizer)).collect::<Vec<_>>().into()
            }
            Value::Object(fields) => fields
                .iter()
                .map(|(key, field)| (key.clone(), self.guard(field, tokenizer)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    fn guard_text(self, text: &str, tokenizer: &Tokenizer) -> String {
        let mut guarded = String::with_capacity(text.len());
        for (at, letter) in text.char_indices() {
            guarded.push(letter);
            if tokenizer.special_at(&text[at..]).is_some() {
                // After the first character of the spelling: `<⊘|eot_id|>` is no special token
                // wherever a template puts it, and removing the guard later gives the text back.
                guarded.push(self.guard);
            }
        }
        guarded
    }
}

/// A rendered conversation without its marks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    /// All characters that the template wrote.
    pub(super) text: String,
    /// The text in parts: runs of plain text, and special tokens of the template.
    pub(super) parts: Vec<(Range<usize>, Option<u32>)>,
    /// What the template itself marks as trained.
    pub(super) marked: Vec<Range<usize>>,
}

impl Rendered {
    /// Splits what a template wrote at special tokens; the longest spelling wins.
    pub(super) fn read(raw: &str, marks: Marks, tokenizer: &Tokenizer) -> Self {
        let mut rendered = Self::default();
        let (mut at, mut plain, mut opened) = (0, 0, None);
        while let Some(letter) = raw[at..].chars().next() {
            // A special token here was written by the template: those of messages were broken
            // before.
            if let Some(token) = special_at(&raw[at..], marks, tokenizer) {
                rendered.push_plain(plain);
                let begin = rendered.text.len();
                rendered.text += &token.spelling;
                plain = rendered.text.len();
                rendered.parts.push((begin..plain, Some(token.id)));
                at += token.spelling.len();
                continue;
            }
            at += letter.len_utf8();
            let here = rendered.text.len();
            if letter == marks.open {
                opened = Some(here);
            } else if letter == marks.close {
                rendered.marked.extend(opened.take().map(|begin| begin..here));
            } else if letter != marks.guard {
                rendered.text.push(letter);
            }
        }
        rendered.push_plain(plain);
        rendered.strip_beside(tokenizer);
        rendered
    }

    /// Whether the text begins with the token that begins a document.
    pub(super) fn begins_with_bos(&self, tokenizer: &Tokenizer) -> bool {
        let first = self.parts.first().and_then(|part| part.1);
        first.is_some() && first == tokenizer.bos()
    }

    /// The ids of the text; tokens that reach into a range of `spans` are trained.
    pub(super) fn tokens(
        &self,
        tokenizer: &Tokenizer,
        spans: &[Range<usize>],
    ) -> Result<Dialogue, TextError> {
        let mut dialogue = Dialogue::default();
        let adds_bos = tokenizer.adds_bos() && !self.begins_with_bos(tokenizer);
        dialogue.push(tokenizer.bos().filter(|_| adds_bos), false);
        let trained = |range: Range<usize>| {
            // A token that lies across the border of an answer is trained: the model has to produce
            // it.
            spans.iter().any(|span| range.start < span.end && range.end > span.start)
        };
        for (part, special) in &self.parts {
            if let Some(id) = special {
                dialogue.push([*id], trained(part.clone()));
                continue;
            }
            for (id, range) in tokenizer.encode_with_ranges(&self.text[part.clone()])? {
                let range = part.start + range.start..part.start + range.end;
                dialogue.push([id], trained(range));
            }
        }
        Ok(dialogue)
    }

    fn push_plain(&mut self, begin: usize) {
        if begin < self.text.len() {
            self.parts.push((begin..self.text.len(), None));
        }
    }

    /// Some special tokens swallow the spaces beside them (`lstrip`, `rstrip`).
    fn strip_beside(&mut self, tokenizer: &Tokenizer) {
        for at in 0..self.parts.len() {
            let Some(token) = self.parts[at].1.and_then(|id| tokenizer.special_token(id)) else {
                continue;
            };
            if token.lstrip && at > 0 && self.parts[at - 1].1.is_none() {
                let range = self.parts[at - 1].0.clone();
                // Only the part shrinks; the text keeps its letters, so ranges of answers stay
                // right.
                self.parts[at - 1].0.end = range.start + self.text[range].trim_end().len();
            }
            if token.rstrip && self.parts.get(at + 1).is_some_and(|part| part.1.is_none()) {
                let range = self.parts[at + 1].0.clone();
                self.parts[at + 1].0.start = range.end - self.text[range].trim_start().len();
            }
        }
        self.parts.retain(|(range, _)| !range.is_empty());
    }
}

/// The special token that `text` begins with, unless a guard breaks it.
fn special_at<'a>(text: &str, marks: Marks, tokenizer: &'a Tokenizer) -> Option<&'a SpecialToken> {
    let token = tokenizer.special_at(text)?;
    // A spelling of one character has no inside to guard: there the guard comes after it.
    let guarded = text.chars().nth(1) == Some(marks.guard);
    (!guarded).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::trained;

    fn marks() -> Marks {
        Marks::absent_from(&[]).unwrap()
    }

    #[test]
    fn marks_are_not_in_any_text() {
        let first = marks();
        let second = Marks::absent_from(&[&first.close.to_string()]).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn only_the_template_writes_special_tokens() {
        let (marks, tokenizer) = (marks(), trained(300));
        let said = marks.guard(&"a<|eot_id|>".into(), &tokenizer);
        let raw = format!("{}<|eot_id|>b", said.as_str().unwrap());
        let rendered = Rendered::read(&raw, marks, &tokenizer);
        assert_eq!(rendered.text, "a<|eot_id|><|eot_id|>b");
        assert_eq!(rendered.parts, [(0..11, None), (11..21, tokenizer.eot()), (21..22, None)]);
    }

    #[test]
    fn marked_parts_are_found_in_the_clean_text() {
        let (marks, tokenizer) = (marks(), trained(300));
        let Marks { open, close, .. } = marks;
        let raw = format!("x{open}y<|eot_id|>{close}z{open}{close}");
        let rendered = Rendered::read(&raw, marks, &tokenizer);
        assert_eq!(rendered.text, "xy<|eot_id|>z");
        assert_eq!(rendered.marked, [1..12, 13..13]);
        assert_eq!(rendered.parts, [(0..2, None), (2..12, tokenizer.eot()), (12..13, None)]);
    }
}
