//! Encodes documents as sequences of token ids, and decides which tokens are trained.
//!
//! ```text
//! text           one sequence    every token is trained
//! conversation   one sequence    the assistant's turns are trained
//! preference     two sequences   (chosen, rejected) the answer of each is trained
//! ```

use std::sync::Arc;

use bitnet_text::{ChatTemplate, Conversation, Dialogue, Message, Role, TextError, Tokenizer};
use serde_json::{Map, Value};

use super::conversation::{self, FieldError};
use super::document::{Document, DocumentFormat, SourceLocation};
use super::error::DataError;
use super::json_lines::kind;
use super::preference::{self, PreferenceExample};
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

/// A document, or one side of a preference, as tokens.
#[derive(Debug)]
pub(crate) struct EncodedSequence {
    pub(crate) dialogue: Dialogue,
    /// Bytes of the text that is scored: all of a text, the answers of a conversation.
    pub(crate) bytes: usize,
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
            Self::Conversations(template) => format!("conversations 2 {}", template.identity()),
            Self::Preferences(template) => format!("preferences 2 {}", template.identity()),
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
    ) -> Result<Vec<EncodedSequence>, EncodeError> {
        match self {
            Self::Text => {
                let ids = tokenizer.encode_document(text)?;
                let dialogue = Dialogue { trained: vec![true; ids.len()], ids };
                Ok(vec![EncodedSequence { dialogue, bytes: text.len() }])
            }
            Self::Conversations(template) => {
                let conversation = conversation::conversation(&object(text)?)?;
                Ok(vec![encode(template, tokenizer, conversation)?])
            }
            Self::Preferences(template) => {
                let example = preference::preference(&object(text)?)?;
                encode_pair(template, tokenizer, &example)
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
            Self::Conversations(_) => conversation::conversation(&object(&text)?)?.messages,
            Self::Preferences(_) => {
                let PreferenceExample { mut prompt, chosen, rejected } =
                    preference::preference(&object(&text)?)?;
                prompt.extend([chosen, rejected]);
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

/// A conversation as tokens.
fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    mut conversation: Conversation,
) -> Result<EncodedSequence, EncodeError> {
    refuse_unread(template, &conversation)?;
    let reads_parts = ["'text'", "\"text\"", ".text"].iter().any(|word| template.reads(word));
    let trained = |message: &&Message| message.role == Role::Assistant && message.trained;
    let answers = conversation.messages.iter().filter(trained);
    let bytes = answers.map(|message| message.content.len()).sum();
    if !reads_parts {
        // The text alone, for a template that would print a list of parts as a list.
        for message in &mut conversation.messages {
            message.fields.shift_remove("content");
        }
    }
    Ok(EncodedSequence { dialogue: template.encode(tokenizer, &conversation)?, bytes })
}

/// Refuses what the template would drop without a word: tools, calls and thoughts.
fn refuse_unread(template: &ChatTemplate, conversation: &Conversation) -> Result<(), FieldError> {
    const EXPECTED: &str = "none, since the chat template does not read it";
    let refused = |field: String, value: &Value| FieldError {
        field,
        expected: EXPECTED,
        got: if value.is_string() { "text".to_owned() } else { kind(value).to_owned() },
    };
    if let Some(tool) = conversation.tools.first().filter(|_| !template.reads("tools")) {
        return Err(refused("tools".to_owned(), tool));
    }
    for (at, message) in conversation.messages.iter().enumerate() {
        for field in ["tool_calls", "reasoning_content"] {
            let value = message.fields.get(field).filter(|value| !is_empty(value));
            if let Some(value) = value.filter(|_| !template.reads(field)) {
                return Err(refused(format!("messages.{at}.{field}"), value));
            }
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Both sides, which are equal up to the answer and trained on it alone. Where there is nothing to
/// prefer no token is trained, and the pair is left out.
fn encode_pair(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    preference: &PreferenceExample,
) -> Result<Vec<EncodedSequence>, EncodeError> {
    let side = |answer: &Message| {
        let mut messages = preference.prompt.clone();
        for message in &mut messages {
            message.trained = false;
        }
        messages.push(Message { trained: !preference.is_tie(), ..answer.clone() });
        encode(template, tokenizer, messages.into())
    };
    let sides = [side(&preference.chosen)?, side(&preference.rejected)?];
    let begin = |side: &EncodedSequence| side.dialogue.trained.iter().position(|trained| *trained);
    let [chosen, rejected] = [begin(&sides[0]), begin(&sides[1])];
    let prompt = |side: &EncodedSequence| side.dialogue.ids[..chosen.unwrap_or(0)].to_vec();
    if chosen != rejected || prompt(&sides[0]) != prompt(&sides[1]) {
        // A template that joins header and answer can draw the answer's first letters into the
        // prompt's last token.
        return Err(EncodeError::Field(FieldError {
            field: "rejected".to_owned(),
            expected: "a prompt that has the same tokens before both answers",
            got: "other tokens (the chat template joins prompt and answer)".to_owned(),
        }));
    }
    Ok(sides.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::byte_tokenizer;

    const PAIR: &str = r#"{"prompt":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"user","content":"c"}],
        "chosen":"d","rejected":"ee"}"#;

    #[test]
    fn a_preference_trains_only_the_last_answer_of_each_side() {
        let tokenizer = byte_tokenizer();
        let encoding = Encoding::Preferences(ChatTemplate::b158());
        let sides = encoding.sequences(&tokenizer, PAIR).ok().unwrap();
        let trained = |EncodedSequence { dialogue: side, .. }: &EncodedSequence| {
            let both = side.ids.iter().zip(&side.trained).filter(|(_, trained)| **trained);
            both.map(|(id, _)| *id).collect::<Vec<_>>()
        };
        let eot = tokenizer.eot().unwrap();
        let byte = |text: &str| tokenizer.encode(text).unwrap()[0];
        assert_eq!(trained(&sides[0]), [byte(" "), byte("d"), eot]);
        assert_eq!(trained(&sides[1]), [byte(" "), byte("e"), byte("e"), eot]);
        let [chosen, rejected] = [&sides[0].dialogue.ids, &sides[1].dialogue.ids];
        let prompt = chosen.len() - 3;
        assert_eq!(chosen[..prompt], rejected[..prompt]);
        assert_eq!([sides[0].bytes, sides[1].bytes], [1, 2]);
    }

    #[test]
    fn a_tokenizer_is_trained_on_the_text_of_the_messages() {
        let text = Encoding::Preferences(ChatTemplate::b158()).plain_text(PAIR.to_owned());
        assert_eq!(text.unwrap(), "a\nb\nc\nd\nee");
    }

    #[test]
    fn what_a_template_does_not_read_is_refused_by_field() {
        let tokenizer = byte_tokenizer();
        let refused = |more: &str, tools: &str| {
            let line = format!(
                r#"{{"tools":[{tools}],"messages":[{{"role":"user","content":"a"}},
                {{"role":"assistant","content":"b"{more}}}]}}"#
            );
            let encoding = Encoding::Conversations(ChatTemplate::b158());
            match encoding.sequences(&tokenizer, &line) {
                Err(EncodeError::Field(error)) => error.field,
                Err(other) => panic!("{other:?}"),
                Ok(_) => "none".to_owned(),
            }
        };
        assert_eq!(refused("", ""), "none");
        assert_eq!(refused(r#","name":"n","reasoning_content":"""#, ""), "none");
        assert_eq!(refused(r#","reasoning_content":"r""#, ""), "messages.1.reasoning_content");
        assert_eq!(refused(r#","tool_calls":[{}]"#, ""), "messages.1.tool_calls");
        assert_eq!(refused("", "{}"), "tools");
    }
}
