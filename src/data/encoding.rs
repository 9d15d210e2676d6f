//! Encodes documents as sequences of token ids, and decides which tokens are trained.
//!
//! ```text
//! text           one sequence    every token is trained
//! conversation   one sequence    the assistant's turns are trained
//! preference     two sequences   (chosen, rejected) the last answer of each is trained
//! ```

use std::sync::Arc;

use bitnet_text::{ChatTemplate, Dialogue, Message, Role, TextError, Tokenizer};
use serde_json::{Map, Value};

use super::conversation::{self, FieldError, PreferenceExample};
use super::document::{Document, DocumentFormat, SourceLocation};
use super::error::DataError;
use super::source::DocumentSource;

/// What the lines of a set are, and how they become tokens.
#[derive(Clone, Debug)]
pub enum Encoding {
    /// Text of any kind: the field `text` of a line, or a whole file.
    Text,
    /// Conversations.
    Conversations(ChatTemplate),
    /// Prompts with a chosen and a rejected answer.
    Preferences(ChatTemplate),
}

/// Why a document cannot be encoded.
#[derive(Debug)]
pub(crate) enum EncodeError {
    /// A field of the line is wrong.
    Field(FieldError),
    /// The tokenizer or the template failed.
    Text(TextError),
}

impl EncodeError {
    pub(crate) fn at(self, location: SourceLocation) -> DataError {
        match self {
            Self::Field(error) => error.at(&location),
            Self::Text(error) => DataError::Encode { location, what: error.to_string() },
        }
    }
}

impl From<FieldError> for EncodeError {
    fn from(error: FieldError) -> Self {
        Self::Field(error)
    }
}

impl From<TextError> for EncodeError {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

impl Encoding {
    /// Its part of the key of a cache.
    pub fn identity(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Conversations(template) => format!("conversations {}", template.identity()),
            Self::Preferences(template) => format!("preferences {}", template.identity()),
        }
    }

    /// What a document of this kind is.
    pub fn format(&self) -> DocumentFormat {
        if matches!(self, Self::Text) { DocumentFormat::Text } else { DocumentFormat::JsonLine }
    }

    /// Whether only some tokens are trained, so that the cache marks them.
    pub(crate) fn is_marked(&self) -> bool {
        self.format() == DocumentFormat::JsonLine
    }

    /// The sequences of a document; `text` is never empty.
    pub(crate) fn sequences(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> Result<Vec<Dialogue>, EncodeError> {
        match self {
            Self::Text => {
                let ids = tokenizer.encode_document(text)?;
                Ok(vec![Dialogue { trained: vec![true; ids.len()], ids }])
            }
            Self::Conversations(template) => {
                let messages = conversation::conversation(&object(text)?)?;
                Ok(vec![template.encode(tokenizer, &messages)?])
            }
            Self::Preferences(template) => {
                let preference = conversation::preference(&object(text)?)?;
                encode_pair(template, tokenizer, &preference)
            }
        }
    }

    /// The text that a tokenizer is trained on: that of the document or of all its messages.
    pub fn training_text(
        &self,
        source: &DocumentSource,
        document: Document,
    ) -> Result<String, DataError> {
        self.plain_text(document.text).map_err(|error| {
            let source = Arc::clone(&source.names()[document.file]);
            error.at(&SourceLocation { source, line: document.line })
        })
    }

    fn plain_text(&self, text: String) -> Result<String, FieldError> {
        let messages = match self {
            Self::Text => return Ok(text),
            Self::Conversations(_) => conversation::conversation(&object(&text)?)?,
            Self::Preferences(_) => {
                let PreferenceExample { mut prompt, chosen, rejected } =
                    conversation::preference(&object(&text)?)?;
                let answer = |content| Message { role: Role::Assistant, content };
                prompt.extend([answer(chosen), answer(rejected)]);
                prompt
            }
        };
        Ok(messages.into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n"))
    }
}

fn object(text: &str) -> Result<Map<String, Value>, FieldError> {
    serde_json::from_str(text).map_err(|error| FieldError {
        field: String::new(),
        expected: "one JSON object a line",
        got: error.to_string(),
    })
}

/// Both sides, which are equal up to the last answer and trained on it alone.
fn encode_pair(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    preference: &PreferenceExample,
) -> Result<Vec<Dialogue>, EncodeError> {
    let side = |answer: &String| {
        let mut messages = preference.prompt.clone();
        messages.push(Message { role: Role::Assistant, content: answer.clone() });
        let mut dialogue = template.encode(tokenizer, &messages)?;
        let begin = last_answer_start(&dialogue.trained);
        dialogue.trained[..begin].fill(false);
        Ok::<_, TextError>((dialogue, begin))
    };
    let (chosen, begin) = side(&preference.chosen)?;
    let (rejected, other) = side(&preference.rejected)?;
    if begin != other || chosen.ids[..begin] != rejected.ids[..begin] {
        // A template that joins header and answer can draw the answer's first letters into the
        // prompt's last token.
        return Err(EncodeError::Field(FieldError {
            field: "rejected".to_owned(),
            expected: "a prompt that has the same tokens before both answers",
            got: "other tokens (the chat template joins prompt and answer)".to_owned(),
        }));
    }
    Ok(vec![chosen, rejected])
}

/// The start of the last run of trained tokens.
fn last_answer_start(trained: &[bool]) -> usize {
    let end = trained.iter().rposition(|&trained| trained).map_or(0, |last| last + 1);
    trained[..end].iter().rposition(|&trained| !trained).map_or(0, |before| before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::byte_tokenizer;

    const PAIR: &str = r#"{"prompt":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"user","content":"c"}],
        "chosen":"d","rejected":"ee"}"#;

    #[test]
    fn the_last_run_of_trained_tokens_is_found() {
        let run =
            |marks: &[u8]| last_answer_start(&marks.iter().map(|&m| m == 1).collect::<Vec<_>>());
        assert_eq!(run(&[0, 1, 1, 0, 0, 1, 1]), 5);
        assert_eq!(run(&[0, 1, 1, 0]), 1);
        assert_eq!(run(&[1, 1]), 0);
        assert_eq!(run(&[0, 0]), 0);
    }

    #[test]
    fn a_preference_trains_only_the_last_answer_of_each_side() {
        let tokenizer = byte_tokenizer();
        let encoding = Encoding::Preferences(ChatTemplate::b158());
        let sides = encoding.sequences(&tokenizer, PAIR).ok().unwrap();
        let trained = |side: &Dialogue| {
            let both = side.ids.iter().zip(&side.trained).filter(|(_, trained)| **trained);
            both.map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let eot = tokenizer.eot().unwrap();
        let byte = |text: &str| tokenizer.encode(text).unwrap()[0];
        assert_eq!(trained(&sides[0]), [byte("d"), eot]);
        assert_eq!(trained(&sides[1]), [byte("e"), byte("e"), eot]);
        let prompt = sides[0].ids.len() - 2;
        assert_eq!(sides[0].ids[..prompt], sides[1].ids[..prompt]);
    }

    #[test]
    fn a_tokenizer_is_trained_on_the_text_of_the_messages() {
        let text = Encoding::Preferences(ChatTemplate::b158()).plain_text(PAIR.to_owned());
        assert_eq!(text.unwrap(), "a\nb\nc\nd\nee");
    }
}
