//! What a row says, whatever its shape, and the one shape in which it is written.

use bitnet_text::{Conversation, Message, Role};
use serde_json::{Map, Value, json};

use crate::conversation::{self, ParsedConversation};
use crate::document::RowContent;
use crate::fault::RowFault;
use crate::preference::{self, PreferenceExample};
use crate::reading::ReadingRules;
use crate::row_json;
use crate::rows::TEXT_FIELD;
use crate::turn_order::{TurnChanges, in_order};
use crate::turns::TurnRules;

/// A row of any shape.
#[derive(Clone, Debug, PartialEq)]
pub enum CanonicalRow {
    /// A document.
    Text(String),
    /// A conversation with the shape that it was found in.
    Conversation(ParsedConversation),
    /// A prompt with two answers.
    Preference(PreferenceExample),
}

impl CanonicalRow {
    /// Two answers make a preference, turns or a question with its answer a conversation, and
    /// `text` a document. `turns` counts what is left out.
    pub(crate) fn read(
        content: &RowContent,
        rules: &ReadingRules,
        turns: &TurnRules,
    ) -> Result<Self, RowFault> {
        if let RowContent::Text(text) = content {
            return Ok(Self::Text(text.clone()));
        }
        let row = row_json::renamed(content, &rules.files.columns)?;
        // First: its prompt alone would be read as the question of a conversation.
        if preference::has_two_answers(&row) {
            return Ok(Self::Preference(preference::preference_by(&row, turns)?));
        }
        match row.get(TEXT_FIELD) {
            Some(Value::String(text)) if !conversation::has_turns(&row) => {
                Ok(Self::Text(text.clone()))
            }
            _ => Ok(Self::Conversation(conversation::conversation_by(&row, turns)?)),
        }
    }

    /// What a template that demands turns in alternation would do to a conversation.
    pub(crate) fn reordering(&self) -> TurnChanges {
        match self {
            Self::Conversation(parsed) => in_order(&parsed.conversation.messages),
            Self::Text(_) | Self::Preference(_) => None,
        }
        .map_or_else(TurnChanges::default, |(_, changes)| changes)
    }

    /// How its shape was recognised.
    pub fn shape(&self) -> &str {
        match self {
            Self::Text(_) => TEXT_FIELD,
            Self::Conversation(parsed) => &parsed.shape,
            Self::Preference(example) => &example.shape,
        }
    }

    /// All that it says, a line a message.
    pub fn text(&self) -> String {
        let (prompt, answers) = match self {
            Self::Text(text) => return text.clone(),
            Self::Conversation(parsed) => (&parsed.conversation.messages, [&[][..]; 2]),
            Self::Preference(PreferenceExample { prompt, chosen, rejected, .. }) => {
                (prompt, [&chosen[..], rejected])
            }
        };
        let messages = prompt.iter().chain(answers.into_iter().flatten());
        messages.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// `{"text": …}`, `{"messages": […]}` with `tools` where there are some, or
    /// `{"prompt": […], "chosen": […], "rejected": […]}`. Read again, it is the same row.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => json!({"text": text}),
            Self::Conversation(ParsedConversation { conversation, .. }) => {
                let Conversation { messages, tools } = conversation;
                let mut row = json!({"messages": list(messages)});
                if !tools.is_empty() {
                    row["tools"] = json!(tools);
                }
                row
            }
            Self::Preference(PreferenceExample { prompt, chosen, rejected, .. }) => {
                json!({"prompt": list(prompt), "chosen": list(chosen), "rejected": list(rejected)})
            }
        }
    }
}

fn list(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(message).collect()
}

/// A message with all its fields; an answer with content that is not trained is marked so.
fn message(message: &Message) -> Value {
    let mut turn = Map::new();
    turn.insert("role".to_owned(), message.role.name().into());
    turn.insert("content".to_owned(), message.content.as_str().into());
    turn.extend(message.fields.clone());
    let has_content =
        !message.content.trim().is_empty() || message.fields.contains_key("tool_calls");
    // An empty answer is not trained anyway, and is read so again.
    if message.role == Role::Assistant && !message.trained && has_content {
        turn.insert("train".to_owned(), false.into());
    }
    turn.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &Value) -> CanonicalRow {
        let content = RowContent::Json(value.to_string().into_bytes());
        let rules = ReadingRules::default();
        CanonicalRow::read(&content, &rules, &TurnRules::of(&rules)).unwrap()
    }

    #[test]
    fn rows_of_every_shape_are_told_apart() {
        for (shape, value) in [
            ("text", json!({"text": "a", "url": "b"})),
            ("text", json!({"text": "a", "answer": "b"})),
            ("instruction, output", json!({"instruction": "q", "output": "a", "text": "both"})),
            (
                "conversations",
                json!({"conversations": [
                {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
            ),
            ("prompt, chosen, rejected", json!({"prompt": "q", "chosen": "a", "rejected": "b"})),
            (
                "prompt, completions",
                json!({"prompt": "q", "completions": [
                {"text": "a", "score": 2}, {"text": "b", "score": 1}]}),
            ),
        ] {
            assert_eq!(row(&value).shape(), shape, "{value}");
        }
    }

    #[test]
    fn the_canonical_shape_says_the_same_when_it_is_read_again() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        for value in [
            json!({"text": " a\nb "}),
            json!({"system": "s", "history": [["a", "b"]], "instruction": "c", "output": "d"}),
            json!({"tools": [{"name": "clock"}], "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
                {"from": "function_call", "value": "{\"name\": \"clock\"}"},
                turn("tool", "12"),
                {"role": "assistant", "content": "noon", "weight": 0, "reasoning_content": "r"},
                turn("assistant", "late")]}),
            json!({"messages": [turn("user", "q"), turn("assistant", "")]}),
            json!({"chosen": [turn("user", "q"), turn("assistant", "a")],
                   "rejected": [turn("user", "q"), turn("assistant", "b")]}),
        ] {
            let first = row(&value).to_json();
            assert_eq!(row(&first).to_json(), first, "{value}");
        }
        let untrained = json!({"messages": [turn("user", "q"),
            {"role": "assistant", "content": "a", "weight": 0}]});
        assert_eq!(row(&untrained).to_json()["messages"][1]["train"], false);
    }

    #[test]
    fn the_text_of_a_row_is_that_of_all_its_messages() {
        let pair = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
        assert_eq!(row(&pair).text(), "q\na\nb");
        assert_eq!(row(&json!({"question": "q", "answer": "a"})).text(), "q\na");
    }
}
