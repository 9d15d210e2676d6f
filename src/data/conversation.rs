//! Parses lines of fine-tuning data: conversations. `preference` reads prompts with two answers. Errors
//! name the field.
//!
//! What a line says beside its turns is used, not dropped: a `system` text, an earlier `history`,
//! `tools`, turns with `weight: 0` or `train: false`, and every other field of a message, which a
//! Jinja template may read.

use std::path::PathBuf;

use bitnet_text::{Conversation, Message, Role};
use serde_json::{Map, Value};

use super::document::SourceLocation;
use super::error::DataError;
use super::json_lines::kind;

/// A wrong field of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path of the field.
    pub field: String,
    /// The expected value.
    pub expected: &'static str,
    /// The actual value.
    pub got: String,
}

impl FieldError {
    pub(crate) fn at(self, location: &SourceLocation) -> DataError {
        let Self { field, expected, got } = self;
        let path = PathBuf::from(&*location.source);
        DataError::Field { path, line: location.line, field, expected, got }
    }
}

pub(super) type Object = Map<String, Value>;

/// A conversation in one of the three shapes in use: `messages` (role, content), `ShareGPT`'s
/// `conversations` (from, value), or Alpaca's `instruction`, `input` and `output`.
///
/// An answer without text or calls stays in the conversation and is not trained.
///
/// # Errors
/// If a role is unknown, if content is no text, if a question is empty, or if the last turn is not
/// the assistant's.
pub fn conversation(object: &Object) -> Result<Conversation, FieldError> {
    let (field, messages) = if let Some(list) = present(object, "messages") {
        ("messages", turns("messages", list, OPENAI)?)
    } else if let Some(list) = present(object, "conversations") {
        ("conversations", turns("conversations", list, SHARE_GPT)?)
    } else if object.contains_key("instruction") {
        ("output", alpaca(object)?)
    } else {
        let expected = "messages, conversations (ShareGPT) or instruction and output (Alpaca)";
        return Err(field_error("messages", expected, keys(object)));
    };
    match messages.last().map(|last| last.role) {
        Some(Role::Assistant) => {
            let messages = after_introduction(object, messages)?;
            Ok(Conversation { messages, tools: tools(object)? })
        }
        Some(other) => {
            let field = format!("{field}.{}", messages.len() - 1);
            Err(field_error(&field, "the assistant's turn at the end", other.name()))
        }
        None => Err(field_error(field, "at least one turn", "an empty list")),
    }
}

/// The turns after what the line has before them: a `system` text and an earlier `history`.
pub(super) fn after_introduction(
    object: &Object,
    messages: Vec<Message>,
) -> Result<Vec<Message>, FieldError> {
    let mut all = Vec::with_capacity(messages.len() + 1);
    let begins_with_system = messages.first().is_some_and(|first| first.role == Role::System);
    if let Some(value) = present(object, "system") {
        let text = text("system", value)?;
        let repeats = begins_with_system && messages[0].content.trim() == text.trim();
        if begins_with_system && !repeats && !text.trim().is_empty() {
            let got = "another text than that of the first turn";
            return Err(field_error("system", "one text of the system", got));
        }
        if !begins_with_system && !text.trim().is_empty() {
            all.push(Message::new(Role::System, text));
        }
    }
    let history = history(object)?;
    if !history.is_empty() && begins_with_system {
        let got = "it before a turn of the system";
        return Err(field_error("history", "the turns before those of the line", got));
    }
    all.extend(history);
    all.extend(messages);
    Ok(all)
}

/// Earlier turns as pairs of question and answer.
fn history(object: &Object) -> Result<Vec<Message>, FieldError> {
    let expected = "a list of pairs of question and answer";
    let Some(value) = present(object, "history") else { return Ok(Vec::new()) };
    let Value::Array(pairs) = value else {
        return Err(field_error("history", expected, kind(value)));
    };
    let mut turns = Vec::with_capacity(2 * pairs.len());
    for (at, pair) in pairs.iter().enumerate() {
        let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else {
            return Err(field_error(&format!("history.{at}"), expected, kind(pair)));
        };
        for (side, value, role) in [(0, question, Role::User), (1, answer, Role::Assistant)] {
            turns.push(Message::new(role, filled(&format!("history.{at}.{side}"), value)?));
        }
    }
    Ok(turns)
}

/// The tools that a template may describe: a list, or its JSON as text.
fn tools(object: &Object) -> Result<Vec<Value>, FieldError> {
    let expected = "a list of tools";
    match present(object, "tools") {
        None => Ok(Vec::new()),
        Some(Value::Array(tools)) => Ok(tools.clone()),
        Some(Value::String(json)) if json.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(json)) => serde_json::from_str(json)
            .map_err(|error| field_error("tools", expected, error.to_string())),
        Some(other) => Err(field_error("tools", expected, kind(other))),
    }
}

/// The value of a key; `None` where it is missing or null.
fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// The keys of a message, and the names of its roles.
#[derive(Clone, Copy)]
pub(super) struct MessageKeys {
    role: &'static str,
    content: &'static str,
    words: &'static [(&'static str, Role)],
    expected: &'static str,
}

pub(super) const OPENAI: MessageKeys = MessageKeys {
    role: "role",
    content: "content",
    words: &[
        ("system", Role::System),
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("tool", Role::Tool),
    ],
    expected: "\"system\", \"user\", \"assistant\" or \"tool\"",
};
const SHARE_GPT: MessageKeys = MessageKeys {
    role: "from",
    content: "value",
    words: &[
        ("system", Role::System),
        ("human", Role::User),
        ("user", Role::User),
        ("gpt", Role::Assistant),
        ("chatgpt", Role::Assistant),
        ("assistant", Role::Assistant),
    ],
    expected: "\"system\", \"human\" or \"gpt\"",
};

pub(super) fn turns(
    field: &str,
    list: &Value,
    keys: MessageKeys,
) -> Result<Vec<Message>, FieldError> {
    let Value::Array(list) = list else {
        return Err(field_error(field, "a list of messages", kind(list)));
    };
    if list.is_empty() {
        return Err(field_error(field, "at least one message", "an empty list"));
    }
    let turns = list.iter().enumerate().map(|(at, turn)| message(field, at, turn, keys));
    let mut turns = turns.collect::<Result<Vec<_>, _>>()?;
    // Exports of chats write an empty text of the system where there was none.
    turns.retain(|turn| turn.role != Role::System || !turn.content.trim().is_empty());
    Ok(turns)
}

fn message(field: &str, at: usize, turn: &Value, keys: MessageKeys) -> Result<Message, FieldError> {
    let Value::Object(turn) = turn else {
        return Err(field_error(&format!("{field}.{at}"), "a message", kind(turn)));
    };
    let place = |key: &str| format!("{field}.{at}.{key}");
    let role = role(turn, keys, &place(keys.role))?;
    if at > 0 && role == Role::System {
        return Err(field_error(
            &place(keys.role),
            "\"system\" in the first message only",
            "it here",
        ));
    }
    let value = turn.get(keys.content).unwrap_or(&Value::Null);
    let place_of_content = place(keys.content);
    let calls = present(turn, "tool_calls").is_some();
    let text = match value {
        Value::Array(parts) => joined_parts(&place_of_content, parts)?,
        Value::Null if calls => String::new(),
        _ if matches!(role, Role::User | Role::Tool) => filled(&place_of_content, value)?,
        _ => text(&place_of_content, value)?,
    };
    let mut message = Message::new(role, text);
    message.trained = is_trained(turn, &place)? && (calls || !message.content.trim().is_empty());
    message.fields = fields(turn, keys);
    Ok(message)
}

fn role(turn: &Object, keys: MessageKeys, place: &str) -> Result<Role, FieldError> {
    let role = turn.get(keys.role).unwrap_or(&Value::Null);
    let word = role.as_str().unwrap_or_default();
    let known = keys.words.iter().find(|(known, _)| *known == word);
    known.map(|(_, role)| *role).ok_or_else(|| {
        let got = if word.is_empty() { kind(role).to_owned() } else { format!("{word:?}") };
        field_error(place, keys.expected, got)
    })
}

/// What a template may read beside the role and the text. Content that is no text stays as it is.
fn fields(turn: &Object, keys: MessageKeys) -> Object {
    let own = [keys.role, keys.content, "weight", "train"];
    let others = turn.iter().filter(|(key, _)| !own.contains(&key.as_str()));
    let mut fields: Object = others.map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(content) = turn.get(keys.content).filter(|content| !content.is_string()) {
        fields.insert("content".to_owned(), content.clone());
    }
    fields
}

/// `weight` is the key of `OpenAI`, `train` that of others.
fn is_trained(turn: &Object, place: &dyn Fn(&str) -> String) -> Result<bool, FieldError> {
    let weight = match present(turn, "weight") {
        None => true,
        Some(value) => match value.as_f64() {
            Some(0.0) => false,
            Some(1.0) => true,
            _ => return Err(field_error(&place("weight"), "0 or 1", value.to_string())),
        },
    };
    match present(turn, "train") {
        None => Ok(weight),
        Some(Value::Bool(train)) => Ok(weight && *train),
        Some(other) => Err(field_error(&place("train"), "true or false", kind(other))),
    }
}

/// The texts of a list of parts, one after the other.
fn joined_parts(field: &str, parts: &[Value]) -> Result<String, FieldError> {
    let mut joined = String::new();
    for (at, part) in parts.iter().enumerate() {
        let is_text = part.get("type").is_none_or(|kind| kind == "text");
        let text = part.get("text").or_else(|| part.get("value")).and_then(Value::as_str);
        let text = text.filter(|_| is_text).ok_or_else(|| {
            let got = part.get("type").map_or_else(|| kind(part).to_owned(), Value::to_string);
            field_error(&format!("{field}.{at}"), "a part of type \"text\"", got)
        })?;
        joined += text;
    }
    Ok(joined)
}

pub(super) fn text(field: &str, value: &Value) -> Result<String, FieldError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(field_error(field, "text", kind(other))),
    }
}

/// Text that says something.
pub(super) fn filled(field: &str, value: &Value) -> Result<String, FieldError> {
    let text = text(field, value)?;
    if text.trim().is_empty() {
        return Err(field_error(field, "text", "an empty string"));
    }
    Ok(text)
}

/// The system's text and earlier turns are added to every shape alike.
fn alpaca(object: &Object) -> Result<Vec<Message>, FieldError> {
    let value = |name: &str| object.get(name).unwrap_or(&Value::Null);
    let mut instruction = filled("instruction", value("instruction"))?;
    if let Some(input) = present(object, "input").filter(|input| *input != "") {
        instruction = format!("{instruction}\n\n{}", filled("input", input)?);
    }
    let mut answer = Message::new(Role::Assistant, text("output", value("output"))?);
    answer.trained = !answer.content.trim().is_empty();
    Ok(vec![Message::new(Role::User, instruction), answer])
}

fn keys(object: &Object) -> String {
    let keys: Vec<_> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { "an empty object".to_owned() } else { keys.join(", ") }
}

pub(super) fn field_error(
    field: &str,
    expected: &'static str,
    got: impl Into<String>,
) -> FieldError {
    FieldError { field: field.to_owned(), expected, got: got.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { panic!("an object") };
        object
    }

    fn plain(messages: &[Message]) -> Vec<(&str, &str)> {
        messages.iter().map(|one| (one.role.name(), one.content.as_str())).collect()
    }

    fn wrong(value: Value) -> String {
        let FieldError { field, expected, got } = conversation(&object(value)).unwrap_err();
        format!("[{field}] expected {expected}, got {got}")
    }

    #[test]
    fn three_shapes_say_the_same() {
        let expected = [("user", "Add.\n\n1, 2"), ("assistant", "3")];
        let parsed = |value: Value| conversation(&object(value)).unwrap().messages;
        for value in [
            json!({"messages": [{"role": "user", "content": "Add.\n\n1, 2"},
                                {"role": "assistant", "content": "3"}]}),
            json!({"conversations": [{"from": "human", "value": "Add.\n\n1, 2"},
                                     {"from": "gpt", "value": "3"}]}),
            json!({"instruction": "Add.", "input": "1, 2", "output": "3"}),
        ] {
            assert_eq!(plain(&parsed(value)), expected);
        }
        let short = json!({"instruction": "Hi", "input": "", "output": "Ho", "system": "Be."});
        assert_eq!(plain(&parsed(short)), [("system", "Be."), ("user", "Hi"), ("assistant", "Ho")]);
    }

    #[test]
    fn every_mistake_in_a_conversation_is_named_by_its_field() {
        let turn = |role: &str, content: Value| json!({"role": role, "content": content});
        let of = |turns: Vec<Value>| wrong(json!({"messages": turns}));
        assert_eq!(
            of(vec![turn("robot", json!("x"))]),
            "[messages.0.role] expected \"system\", \"user\", \"assistant\" or \"tool\", got \"robot\""
        );
        assert_eq!(
            of(vec![turn("user", Value::Null)]),
            "[messages.0.content] expected text, got null"
        );
        assert_eq!(
            of(vec![turn("user", json!(" \n"))]),
            "[messages.0.content] expected text, got an empty string"
        );
        assert_eq!(of(vec![]), "[messages] expected at least one message, got an empty list");
        assert_eq!(
            of(vec![turn("user", json!("x"))]),
            "[messages.0] expected the assistant's turn at the end, got user"
        );
        assert_eq!(of(vec![json!(3)]), "[messages.0] expected a message, got a number");
        assert_eq!(
            of(vec![turn("user", json!("x")), turn("system", json!("y"))]),
            "[messages.1.role] expected \"system\" in the first message only, got it here"
        );
        assert_eq!(
            wrong(json!({"messages": "x"})),
            "[messages] expected a list of messages, got a string"
        );
        assert_eq!(
            wrong(json!({"text": "x"})),
            "[messages] expected messages, conversations (ShareGPT) or instruction and output \
             (Alpaca), got \"text\""
        );
        assert_eq!(wrong(json!({"instruction": "x"})), "[output] expected text, got null");
        assert_eq!(
            wrong(json!({"conversations": [{"from": "bot", "value": "x"}]})),
            "[conversations.0.from] expected \"system\", \"human\" or \"gpt\", got \"bot\""
        );
    }

    #[test]
    fn what_stands_beside_the_turns_is_used() {
        let line = json!({
            "system": "Be brief.", "history": [["a", "b"]], "instruction": "c", "output": "d"
        });
        let all = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")];
        let parsed = conversation(&object(line)).unwrap();
        assert_eq!(plain(&parsed.messages)[..4], all);
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let two = json!({"system": "s", "messages": [turn("system", "t"), turn("user", "u"),
                         turn("assistant", "a")]});
        assert_eq!(
            wrong(two),
            "[system] expected one text of the system, got another text than that of the first turn"
        );
    }

    #[test]
    fn turns_say_whether_they_are_trained() {
        let answer = |more: Value| {
            let mut turn = json!({"role": "assistant", "content": "a"});
            turn.as_object_mut().unwrap().extend(object(more));
            let line = json!({"messages": [{"role": "user", "content": "u"}, turn]});
            conversation(&object(line)).map(|parsed| parsed.messages[1].clone())
        };
        for (more, trained) in [
            (json!({}), true),
            (json!({"weight": 0}), false),
            (json!({"weight": 1.0}), true),
            (json!({"train": false}), false),
            (json!({"weight": null, "train": true}), true),
            (json!({"content": " "}), false),
            (json!({"content": null, "tool_calls": [{}]}), true),
        ] {
            assert_eq!(answer(more.clone()).unwrap().trained, trained, "{more}");
        }
        let error = answer(json!({"weight": 0.5})).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("messages.1.weight", "0.5"));
    }

    #[test]
    fn parts_and_other_fields_reach_the_template() {
        let line = json!({"tools": [{"name": "clock"}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}], "name": "n"},
            {"role": "assistant", "content": "c", "reasoning_content": "r"}
        ]});
        let Conversation { messages, tools } = conversation(&object(line)).unwrap();
        assert_eq!(tools, [json!({"name": "clock"})]);
        assert_eq!(messages[0].content, "ab");
        assert!(messages[0].fields["content"].is_array() && messages[0].fields["name"] == "n");
        assert_eq!(messages[1].fields["reasoning_content"], "r");
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
        assert_eq!(
            wrong(image),
            "[messages.0.content.0] expected a part of type \"text\", got \"image\""
        );
    }
}
