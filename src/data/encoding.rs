//! How the documents of a set become sequences of token ids, and which of these are trained.
//!
//! Plain text gives one sequence, all of it trained; a conversation gives one in which only the
//! assistant's turns are; a preference gives two, the chosen one first. Where ids and marks are
//! kept is `cache`'s, what a line may say `conversation`'s.

use std::path::PathBuf;

use bitnet_text::{ChatTemplate, Dialogue, Message, Speaker, TextError, Tokenizer};
use serde_json::{Map, Value};

use super::conversation::{self, Mistake, Preference};
use super::documents::Document;
use super::error::DataError;
use super::source::Source;

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
pub(crate) enum Trouble {
    /// The line says what it must not.
    Row(Mistake),
    /// The tokenizer or the template refuses.
    Text(TextError),
}

impl From<Mistake> for Trouble {
    fn from(mistake: Mistake) -> Self {
        Self::Row(mistake)
    }
}

impl From<TextError> for Trouble {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}

impl Encoding {
    /// What identifies it beside data and tokenizer, for the key of a cache.
    pub fn identity(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Conversations(template) => format!("conversations {}", template.identity()),
            Self::Preferences(template) => format!("preferences {}", template.identity()),
        }
    }

    /// Whether a document is a whole line of JSON, instead of text.
    pub(crate) fn reads_lines(&self) -> bool {
        !matches!(self, Self::Text)
    }

    /// Whether each id carries a mark that says if it is trained.
    pub(crate) fn is_marked(&self) -> bool {
        self.reads_lines()
    }

    /// The sequences of a document; `text` is never empty.
    pub(crate) fn sequences(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> Result<Vec<Dialogue>, Trouble> {
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
                pair(template, tokenizer, &preference)
            }
        }
    }

    /// What a tokenizer is trained on: the text of a document, or what is said in it.
    pub fn spoken(&self, source: &Source, document: Document) -> Result<String, DataError> {
        self.plain_text(document.text).map_err(|Mistake { field, expected, got }| {
            let path = PathBuf::from(&*source.names()[document.file]);
            DataError::Field { path, line: document.line, field, expected, got }
        })
    }

    fn plain_text(&self, text: String) -> Result<String, Mistake> {
        let said = match self {
            Self::Text => return Ok(text),
            Self::Conversations(_) => conversation::conversation(&object(&text)?)?,
            Self::Preferences(_) => {
                let Preference { mut prompt, chosen, rejected } =
                    conversation::preference(&object(&text)?)?;
                let answer = |content| Message { speaker: Speaker::Assistant, content };
                prompt.extend([answer(chosen), answer(rejected)]);
                prompt
            }
        };
        Ok(said.into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n"))
    }
}

fn object(text: &str) -> Result<Map<String, Value>, Mistake> {
    serde_json::from_str(text).map_err(|error| Mistake {
        field: String::new(),
        expected: "one JSON object a line",
        got: error.to_string(),
    })
}

/// Both sides, trained on the last answer alone and equal up to it.
fn pair(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    preference: &Preference,
) -> Result<Vec<Dialogue>, Trouble> {
    let side = |answer: &String| {
        let mut messages = preference.prompt.clone();
        messages.push(Message { speaker: Speaker::Assistant, content: answer.clone() });
        let mut dialogue = template.encode(tokenizer, &messages)?;
        let begin = last_answer(&dialogue.trained);
        dialogue.trained[..begin].fill(false);
        Ok::<_, TextError>((dialogue, begin))
    };
    let (chosen, begin) = side(&preference.chosen)?;
    let (rejected, other) = side(&preference.rejected)?;
    if begin != other || chosen.ids[..begin] != rejected.ids[..begin] {
        // A template that joins header and answer can draw the answer's first letters into the
        // prompt's last token.
        return Err(Trouble::Row(Mistake {
            field: "rejected".to_owned(),
            expected: "a prompt that has the same tokens before both answers",
            got: "other tokens (the chat template joins prompt and answer)".to_owned(),
        }));
    }
    Ok(vec![chosen, rejected])
}

/// Where the last run of trained tokens begins.
fn last_answer(trained: &[bool]) -> usize {
    let end = trained.iter().rposition(|&trained| trained).map_or(0, |last| last + 1);
    trained[..end].iter().rposition(|&trained| !trained).map_or(0, |before| before + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::byte_tokenizer;

    const PAIR: &str = r#"{"prompt":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"user","content":"c"}],
        "chosen":"d","rejected":"ee"}"#;

    #[test]
    fn the_last_run_of_trained_tokens_is_found() {
        let run = |marks: &[u8]| last_answer(&marks.iter().map(|&m| m == 1).collect::<Vec<_>>());
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
    fn a_tokenizer_learns_from_what_was_said() {
        let text = Encoding::Preferences(ChatTemplate::b158()).plain_text(PAIR.to_owned());
        assert_eq!(text.unwrap(), "a\nb\nc\nd\nee");
    }
}
