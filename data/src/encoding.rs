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
use super::encoded::{EncodedRow, EncodedSequence};
use super::error::DataError;
use super::fault::{FieldError, RowFault, kind};
use super::preference::{self, PreferenceExample};
use super::reading::ReadingRules;
use super::row_json;
use super::rows::TEXT_FIELD;
use super::selection::RowFate;
use super::source::DocumentSource;
use super::templated;
use super::turn_order::{TurnChanges, in_order};
use super::turns::TurnRules;

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

impl Encoding {
    /// Its part of the key of a cache.
    pub fn identity(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            // The number grows when the same rows become other tokens, so that no older cache is
            // taken.
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
        let row = row_json::renamed(content, &rules.files.columns)?;
        let turns = TurnRules::of(rules);
        let mut encoder =
            RowEncoder { template, tokenizer, rules: &turns, changes: TurnChanges::default() };
        let (shape, sequences) = match (self, templated::text(&row)) {
            (Self::Conversations(_), Some(text)) => {
                let markers = rules.text_markers.as_ref();
                (TEXT_FIELD.to_owned(), templated::encode(tokenizer, text, markers)?)
            }
            (Self::Conversations(_), None) => {
                let ParsedConversation { shape, conversation } =
                    conversation::conversation_by(&row, &turns)?;
                (shape, vec![encoder.encode(conversation)?])
            }
            _ => {
                let example = preference::preference_by(&row, &turns)?;
                let sequences = encoder.encode_pair(&example)?;
                (example.shape, sequences)
            }
        };
        let mut changes = encoder.changes;
        changes += TurnChanges::dropped(turns.dropped());
        Ok(EncodedRow { shape, sequences, turns: changes })
    }

    /// The text that a tokenizer is trained on: that of the document or of all its messages; `None`
    /// where the selection of the source leaves it out. Duplicates are not looked for.
    pub(crate) fn training_text(
        &self,
        source: &DocumentSource,
        document: Document,
    ) -> Result<Option<String>, DataError> {
        let rules = source.rules();
        let text = || -> Result<Option<String>, RowFault> {
            if !rules.selection.takes_fields(&document.content)? {
                return Ok(None);
            }
            let text = self.plain_text(&document.content, &rules)?;
            Ok((rules.selection.fate(&text) == RowFate::Used).then_some(text))
        };
        text().map_err(|error| {
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
                let row = row_json::renamed(content, &rules.files.columns)?;
                if let Some(text) = templated::text(&row) {
                    return Ok(text.to_owned());
                }
                let parsed = conversation::conversation_by(&row, &TurnRules::of(rules))?;
                parsed.conversation.messages
            }
            Self::Preferences(_) => {
                let row = row_json::renamed(content, &rules.files.columns)?;
                let PreferenceExample { mut prompt, chosen, rejected, .. } =
                    preference::preference_by(&row, &TurnRules::of(rules))?;
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
    Ok(EncodedRow { shape, sequences, turns: TurnChanges::default() })
}

/// The tokens of another trainer. Where its separators show a whole document, it begins and ends as
/// one that was text.
fn encode_tokens(tokenizer: &Tokenizer, document: &TokenDocument) -> EncodedRow {
    let around = |token: Option<u32>| token.filter(|_| document.whole);
    // Without separators the file is one stream that was cut somewhere: a token that begins a
    // document there would teach a border that is none.
    let (first, last) = (around(tokenizer.first()), around(tokenizer.eos()));
    let ids: Vec<u32> = first.into_iter().chain(document.ids.iter().copied()).chain(last).collect();
    // For bits per byte: the text itself is not there, but its tokens say how long it was.
    let bytes = document.ids.iter().map(|id| tokenizer.token_bytes(*id).len()).sum();
    let dialogue = Dialogue { trained: vec![true; ids.len()], ids };
    let sequences = vec![EncodedSequence { dialogue, bytes }];
    EncodedRow { shape: "tokens".to_owned(), sequences, turns: TurnChanges::default() }
}

/// Turns messages into tokens.
struct RowEncoder<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    rules: &'a TurnRules,
    /// What was done to turns beside leaving some out.
    changes: TurnChanges,
}

impl RowEncoder<'_> {
    /// A conversation as tokens.
    fn encode(&mut self, mut conversation: Conversation) -> Result<EncodedSequence, RowFault> {
        let template = self.template;
        if self.rules.drops_unrendered() && !template.reads("tool_calls") {
            let of_tools =
                |turn: &Message| turn.role == Role::Tool || turn.fields.contains_key("tool_calls");
            let given = conversation.messages.len();
            conversation.messages.retain(|turn| !of_tools(turn));
            self.rules.drop_turns(given - conversation.messages.len());
        }
        refuse_unread(template, &conversation)?;
        let reads_parts = ["'text'", "\"text\"", ".text"].iter().any(|word| template.reads(word));
        let trained = |message: &&Message| message.role == Role::Assistant && message.trained;
        let answers = conversation.messages.iter().filter(trained);
        // Counted before the template runs: what it writes around an answer is trained and is no
        // text.
        let bytes = answers.map(|message| message.content.len()).sum();
        if !reads_parts {
            // The text alone, for a template that would print a list of parts as a list.
            for message in &mut conversation.messages {
                message.fields.shift_remove("content");
            }
        }
        Ok(EncodedSequence { dialogue: self.dialogue(conversation)?, bytes })
    }

    /// The tokens that the template makes; where it refuses the order of the turns, those of the
    /// order that strict templates demand.
    fn dialogue(&mut self, mut conversation: Conversation) -> Result<Dialogue, RowFault> {
        let encode =
            |conversation: &Conversation| self.template.encode(self.tokenizer, conversation);
        let refused = match encode(&conversation) {
            Ok(dialogue) => return Ok(dialogue),
            Err(refused) => refused,
        };
        let ordered = in_order(&conversation.messages).filter(|_| !self.rules.strict);
        let Some((messages, changes)) = ordered else { return Err(refused.into()) };
        conversation.messages = messages;
        // What it refuses in any order is named as it was found.
        let dialogue = encode(&conversation).map_err(|_| refused)?;
        self.changes += changes;
        Ok(dialogue)
    }

    /// Both sides, which are equal up to the answer and trained on it alone. Where there is nothing
    /// to prefer no token is trained, and the pair is left out.
    fn encode_pair(
        &mut self,
        preference: &PreferenceExample,
    ) -> Result<Vec<EncodedSequence>, RowFault> {
        // A tie keeps its two sequences, untrained: documents 2n and 2n + 1 are always pair n.
        let tie = preference.is_tie();
        let mut side = |answer: &[Message]| {
            let mut messages = [&*preference.prompt, answer].concat();
            for (at, message) in messages.iter_mut().enumerate() {
                // Earlier answers are part of the prompt: both sides have them, and their
                // difference is 0.
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
        // Other fields may be notes; these two are what the model itself would have to say.
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
mod tests;
