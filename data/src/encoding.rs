//! Encodes documents as sequences of token ids, and decides which tokens are trained.
//!
//! ```text
//! text           one sequence    every token is trained
//! conversation   one sequence    the assistant's turns are trained
//! preference     two sequences   (chosen, rejected) the answer of each is trained
//! ```

use std::sync::Arc;

use bitnet_text::{ChatTemplate, Conversation, Dialogue, Message, Role, Tokenizer};
use serde_json::Value;

use super::conversation::{self, ParsedConversation};
use super::document::{Document, DocumentFormat, RowContent, SourceLocation, TokenDocument};
use super::error::DataError;
use super::fault::{FieldError, RowFault, kind};
use super::preference::{self, PreferenceExample};
use super::reading::{ReadingRules, UnknownRole};
use super::row_json;
use super::rows::TEXT_FIELD;
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

/// What a row became. No sequence: it says nothing.
#[derive(Debug)]
pub(crate) struct EncodedRow {
    /// How its shape was recognised.
    pub(crate) shape: String,
    pub(crate) sequences: Vec<EncodedSequence>,
}

impl Encoding {
    /// Its part of the key of a cache.
    pub fn identity(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Conversations(template) => format!("conversations 3 {}", template.identity()),
            Self::Preferences(template) => format!("preferences 3 {}", template.identity()),
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

    /// The sequences of a row.
    pub(crate) fn sequences(
        &self,
        tokenizer: &Tokenizer,
        content: &RowContent,
        rules: &ReadingRules,
    ) -> Result<EncodedRow, RowFault> {
        let template = match self {
            Self::Text => return encode_text(tokenizer, content, rules),
            Self::Conversations(template) | Self::Preferences(template) => template,
        };
        let encoder = RowEncoder { template, tokenizer, unknown: rules.unknown_role };
        let row = row_json::renamed(content, &rules.files.columns)?;
        if matches!(self, Self::Conversations(_)) {
            let ParsedConversation { shape, conversation } =
                conversation::conversation(&row, rules.unknown_role)?;
            return Ok(EncodedRow { shape, sequences: vec![encoder.encode(conversation)?] });
        }
        let example = preference::preference(&row, rules.unknown_role)?;
        let sequences = encoder.encode_pair(&example)?;
        Ok(EncodedRow { shape: example.shape, sequences })
    }

    /// The text that a tokenizer is trained on: that of the document or of all its messages.
    pub fn training_text(
        &self,
        source: &DocumentSource,
        document: Document,
    ) -> Result<String, DataError> {
        self.plain_text(&document.content, &source.rules()).map_err(|error| {
            let source = Arc::clone(&source.names()[document.file]);
            error.at(SourceLocation { source, line: document.line })
        })
    }

    pub(crate) fn plain_text(
        &self,
        content: &RowContent,
        rules: &ReadingRules,
    ) -> Result<String, RowFault> {
        let messages = match self {
            Self::Text => {
                return Ok(row_json::text(content, rules.files.column(TEXT_FIELD))?.into_owned());
            }
            Self::Conversations(_) => {
                let parsed = conversation::conversation(
                    &*row_json::renamed(content, &rules.files.columns)?,
                    rules.unknown_role,
                )?;
                parsed.conversation.messages
            }
            Self::Preferences(_) => {
                let PreferenceExample { mut prompt, chosen, rejected, .. } =
                    preference::preference(
                        &*row_json::renamed(content, &rules.files.columns)?,
                        rules.unknown_role,
                    )?;
                prompt.extend(chosen.into_iter().chain(rejected));
                prompt
            }
        };
        Ok(messages.into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n"))
    }
}

fn encode_text(
    tokenizer: &Tokenizer,
    content: &RowContent,
    rules: &ReadingRules,
) -> Result<EncodedRow, RowFault> {
    if let RowContent::Tokens(document) = content {
        return Ok(encode_tokens(tokenizer, document));
    }
    let column = rules.files.column(TEXT_FIELD);
    let text = row_json::text(content, column)?;
    let mut sequences = Vec::new();
    if !text.is_empty() {
        let ids = tokenizer.encode_document(&text)?;
        let dialogue = Dialogue { trained: vec![true; ids.len()], ids };
        sequences.push(EncodedSequence { dialogue, bytes: text.len() });
    }
    let whole = matches!(content, RowContent::Text(_));
    let shape = if whole { "plain text" } else { column }.to_owned();
    Ok(EncodedRow { shape, sequences })
}

/// The tokens of another trainer. Where its separators show a whole document, it begins and ends as one that
/// was text.
fn encode_tokens(tokenizer: &Tokenizer, document: &TokenDocument) -> EncodedRow {
    let around = |token: Option<u32>| token.filter(|_| document.whole);
    let (first, last) = (around(tokenizer.first()), around(tokenizer.eos()));
    let ids: Vec<u32> = first.into_iter().chain(document.ids.iter().copied()).chain(last).collect();
    let bytes = document.ids.iter().map(|id| tokenizer.token_bytes(*id).len()).sum();
    let dialogue = Dialogue { trained: vec![true; ids.len()], ids };
    let sequences = vec![EncodedSequence { dialogue, bytes }];
    EncodedRow { shape: "tokens".to_owned(), sequences }
}

/// Turns messages into tokens.
#[derive(Clone, Copy)]
struct RowEncoder<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    unknown: UnknownRole,
}

impl RowEncoder<'_> {
    /// A conversation as tokens.
    fn encode(self, mut conversation: Conversation) -> Result<EncodedSequence, RowFault> {
        let Self { template, tokenizer, unknown } = self;
        if unknown == UnknownRole::Drop && !template.reads("tool_calls") {
            let of_tools =
                |turn: &Message| turn.role == Role::Tool || turn.fields.contains_key("tool_calls");
            conversation.messages.retain(|turn| !of_tools(turn));
        }
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

    /// Both sides, which are equal up to the answer and trained on it alone. Where there is nothing to
    /// prefer no token is trained, and the pair is left out.
    fn encode_pair(self, preference: &PreferenceExample) -> Result<Vec<EncodedSequence>, RowFault> {
        let tie = preference.is_tie();
        let side = |answer: &[Message]| {
            let mut messages = [&*preference.prompt, answer].concat();
            for (at, message) in messages.iter_mut().enumerate() {
                message.trained &= at >= preference.prompt.len() && !tie;
            }
            self.encode(messages.into())
        };
        let sides = [side(&preference.chosen)?, side(&preference.rejected)?];
        let begin =
            |side: &EncodedSequence| side.dialogue.trained.iter().position(|trained| *trained);
        let [chosen, rejected] = [begin(&sides[0]), begin(&sides[1])];
        let prompt = |side: &EncodedSequence| side.dialogue.ids[..chosen.unwrap_or(0)].to_vec();
        if chosen != rejected || prompt(&sides[0]) != prompt(&sides[1]) {
            // A template that joins header and answer can draw the answer's first letters into the
            // prompt's last token.
            return Err(RowFault::Field(FieldError {
                field: "rejected".to_owned(),
                expected: "a prompt that has the same tokens before both answers",
                got: "other tokens (the chat template joins prompt and answer)".to_owned(),
            }));
        }
        Ok(sides.into())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::byte_tokenizer;

    const PAIR: &str = r#"{"prompt":[{"role":"user","content":"a"},
        {"role":"assistant","content":"b"},{"role":"user","content":"c"}],
        "chosen":"d","rejected":"ee"}"#;

    fn rows(
        encoding: &Encoding,
        tokenizer: &Tokenizer,
        line: &str,
    ) -> Result<Vec<EncodedSequence>, RowFault> {
        let content = RowContent::Json(line.into());
        let row = encoding.sequences(tokenizer, &content, &ReadingRules::default());
        row.map(|row| row.sequences)
    }

    #[test]
    fn a_preference_trains_only_the_last_answer_of_each_side() {
        let tokenizer = byte_tokenizer();
        let encoding = Encoding::Preferences(ChatTemplate::b158());
        let sides = rows(&encoding, &tokenizer, PAIR).unwrap();
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
        let text = Encoding::Preferences(ChatTemplate::b158())
            .plain_text(&RowContent::Json(PAIR.into()), &ReadingRules::default());
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
            match rows(&encoding, &tokenizer, &line) {
                Err(RowFault::Field(error)) => error.field,
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

    #[test]
    fn columns_stand_for_fields() {
        let tokenizer = byte_tokenizer();
        let mut rules = ReadingRules::default();
        let pairs = [("instruction", "Question"), ("output", "Answer"), ("text", "body")];
        let pairs = pairs.map(|(name, column)| (name.to_owned(), column.to_owned()));
        rules.files.columns = pairs.into_iter().collect();
        let json = |text: &str| RowContent::Json(text.into());
        let text = Encoding::Text.sequences(&tokenizer, &json(r#"{"body":"ab"}"#), &rules).unwrap();
        assert_eq!((&*text.shape, text.sequences[0].bytes), ("body", 2));
        rules.files.columns.remove("text");
        let chat = Encoding::Conversations(ChatTemplate::b158());
        let asked = json(r#"{"Question":"a","Answer":"b"}"#);
        assert_eq!(
            chat.sequences(&tokenizer, &asked, &rules).unwrap().shape,
            "instruction, output"
        );
        match chat.sequences(&tokenizer, &json(r#"{"Answer":"b"}"#), &rules) {
            Err(RowFault::Field(error)) => assert_eq!(error.field, "Question"),
            other => panic!("{other:?}"),
        }
    }
}
