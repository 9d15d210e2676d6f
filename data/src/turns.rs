//! The turns of a conversation, as the public sets write them: the role under `role` or `from`,
//! the text under `content`, `value` or `text`.
//!
//! Nothing that a message says is dropped: lists of parts, calls of tools, thoughts, `weight: 0`,
//! and all other fields, which a Jinja template may read.

use std::cell::Cell;

use bitnet_text::{Message, Role};
use serde_json::{Map, Value, json};

use super::fault::{FieldError, field_error, kind};
use super::reading::{ReadingRules, UnknownRole};

pub(super) type Object = Map<String, Value>;

const ROLE_KEYS: &[&str] = &["role", "from", "speaker", "author"];
const CONTENT_KEYS: &[&str] = &["content", "value", "text", "message", "parts"];
/// The keys of turns that hold a question and its answer.
const PAIRS: &[(Role, &[&str])] = &[
    (Role::System, &["system"]),
    (Role::User, &["human", "user", "input", "question", "instruction", "prompt"]),
    (Role::Assistant, &["assistant", "gpt", "bot", "output", "answer", "response"]),
];
const EXPECTED_ROLE: &str =
    "\"system\", \"user\", \"assistant\" or \"tool\", or what ShareGPT calls them";

/// What public sets call each role, in small letters.
const ROLES: &[(Role, &[&str])] = &[
    (Role::System, &["system", "developer"]),
    (Role::User, &["user", "human", "prompter"]),
    (
        Role::Assistant,
        &[
            "assistant",
            "gpt",
            "chatgpt",
            "gpt-4",
            "gpt4",
            "bing",
            "bard",
            "claude",
            "bot",
            "chatbot",
            "model",
            "ai",
        ],
    ),
    (
        Role::Tool,
        &["tool", "function", "observation", "tool_response", "function_response", "ipython"],
    ),
];
/// A tool call that is a separate turn.
const CALLS: &[&str] = &["function_call", "function-call", "tool_call"];
const PARTS: &str = "a part of type \"text\"";

/// What happens to turns that cannot be trained, and how many were left out of a row so far.
#[derive(Debug)]
pub(super) struct TurnRules {
    unknown: UnknownRole,
    /// Whether a row of which turns would be left out is bad.
    pub(super) strict: bool,
    dropped: Cell<u64>,
}

impl TurnRules {
    pub(super) fn new(unknown: UnknownRole) -> Self {
        Self { unknown, strict: false, dropped: Cell::new(0) }
    }

    pub(super) fn of(rules: &ReadingRules) -> Self {
        let unknown = if rules.strict { UnknownRole::Error } else { rules.unknown_role };
        Self { strict: rules.strict, ..Self::new(unknown) }
    }

    /// Whether turns that a template does not render are left out.
    pub(super) fn drops_unrendered(&self) -> bool {
        self.unknown == UnknownRole::Drop
    }

    pub(super) fn drop_turns(&self, turns: usize) {
        self.dropped.set(self.dropped.get() + turns as u64);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}

/// The value of a key; `None` where it is missing or null.
pub(super) fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// The messages of a list, which may be JSON as text: a cell of a table.
pub(super) fn turns(
    field: &str,
    list: &Value,
    rules: &TurnRules,
) -> Result<Vec<Message>, FieldError> {
    let parsed = list.as_str().and_then(|text| serde_json::from_str(text).ok());
    let list = parsed.as_ref().unwrap_or(list);
    let Value::Array(list) = list else {
        return Err(field_error(field, "a list of messages", kind(list)));
    };
    if list.is_empty() {
        return Err(field_error(field, "at least one message", "an empty list"));
    }
    let mut turns = Vec::with_capacity(list.len());
    for (at, turn) in list.iter().enumerate() {
        let field = format!("{field}.{at}");
        match turn {
            // Roles alternate.
            Value::String(text) if list.iter().all(Value::is_string) => {
                let role = if at % 2 == 0 { Role::User } else { Role::Assistant };
                turns.push(Message::new(role, filled(&field, &text.as_str().into())?));
            }
            Value::Object(pair) if is_pair(pair) => turns.extend(both(&field, pair)?),
            _ => turns.extend(message(&field, turn, rules)?),
        }
    }
    // Exports of chats write an empty text of the system where there was none.
    turns.retain(|turn| turn.role != Role::System || !turn.content.trim().is_empty());
    Ok(turns)
}

/// Whether an item of a list holds a question and its answer, and nobody's role.
fn is_pair(item: &Object) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| present(item, key).is_some());
    !has(ROLE_KEYS) && PAIRS[1..].iter().all(|(_, keys)| has(keys))
}

/// The turns of a question and its answer.
fn both(field: &str, pair: &Object) -> Result<Vec<Message>, FieldError> {
    let mut turns = Vec::with_capacity(PAIRS.len());
    for (role, keys) in PAIRS {
        let found = keys.iter().find_map(|key| Some((key, present(pair, key)?)));
        let Some((key, value)) = found else { continue };
        let place = format!("{field}.{key}");
        let text = if *role == Role::User { filled(&place, value)? } else { text(&place, value)? };
        let mut turn = Message::new(*role, text);
        turn.trained &= !turn.content.trim().is_empty();
        turns.push(turn);
    }
    Ok(turns)
}

/// One message; `None` where its role is not known and is to be left out.
pub(super) fn message(
    field: &str,
    turn: &Value,
    rules: &TurnRules,
) -> Result<Option<Message>, FieldError> {
    let Value::Object(turn) = turn else {
        return Err(field_error(field, "a message", kind(turn)));
    };
    let key = |keys: &[&'static str]| {
        // A key with a value before one that is only there: tables have all keys in every row.
        let said = keys.iter().copied().find(|key| present(turn, key).is_some());
        said.or_else(|| keys.iter().copied().find(|key| turn.contains_key(*key)))
    };
    let (role_key, content_key) =
        (key(ROLE_KEYS).unwrap_or("role"), key(CONTENT_KEYS).unwrap_or("content"));
    let place = |key: &str| format!("{field}.{key}");
    let word = turn.get(role_key).and_then(Value::as_str).unwrap_or_default().trim().to_lowercase();
    let content = turn.get(content_key).unwrap_or(&Value::Null);
    let mut fields = other_fields(turn, role_key, content_key);
    let is_call = CALLS.contains(&&*word);
    if is_call {
        fields.insert("tool_calls".to_owned(), calls(&place(content_key), content)?);
    }
    let Some(role) = (if is_call { Some(Role::Assistant) } else { role(&word) }) else {
        return unknown_role(&place(role_key), turn.get(role_key), rules);
    };
    let has_calls = present(&fields, "tool_calls").is_some();
    let text = match content {
        _ if is_call => String::new(),
        Value::Array(parts) => parts_of(&place(content_key), parts, &mut fields)?,
        Value::Object(_) => {
            parts_of(&place(content_key), std::slice::from_ref(content), &mut fields)?
        }
        Value::Null if has_calls => String::new(),
        // An answer of nothing: kept for the alternation of turns, and never trained.
        Value::Null if role == Role::Assistant => String::new(),
        _ if matches!(role, Role::User | Role::Tool) => filled(&place(content_key), content)?,
        _ => text(&place(content_key), content)?,
    };
    let mut message = Message::new(role, text);
    let says = has_calls || !message.content.trim().is_empty();
    message.trained = is_trained(turn, &place)? && says;
    message.fields = fields;
    Ok(Some(message))
}

fn role(word: &str) -> Option<Role> {
    ROLES.iter().find(|(_, words)| words.contains(&word)).map(|(role, _)| *role)
}

fn unknown_role(
    place: &str,
    role: Option<&Value>,
    rules: &TurnRules,
) -> Result<Option<Message>, FieldError> {
    let got = match role {
        Some(Value::String(word)) if rules.unknown == UnknownRole::Drop && !word.is_empty() => {
            rules.drop_turns(1);
            return Ok(None);
        }
        Some(Value::String(word)) => format!("{word:?}"),
        other => kind(other.unwrap_or(&Value::Null)).to_owned(),
    };
    Err(field_error(place, EXPECTED_ROLE, got))
}

/// What a template may read beside the role and the text.
fn other_fields(turn: &Object, role: &str, content: &str) -> Object {
    let own = [role, content, "weight", "train"];
    // Tables write null under every key that some row has.
    let is_other = |key: &str| {
        let may_be_unused = ROLE_KEYS.contains(&key) || CONTENT_KEYS.contains(&key);
        let is_unused = may_be_unused && turn[key].is_null();
        !own.contains(&key) && !is_unused
    };
    let others = turn.iter().filter(|(key, _)| is_other(key));
    others.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `{"name": …, "arguments": …}`, or a list of them, as text: what `tool_calls` holds.
fn calls(place: &str, content: &Value) -> Result<Value, FieldError> {
    const EXPECTED: &str = "a call such as {\"name\": …, \"arguments\": …}";
    let wrong = |got: &str| field_error(place, EXPECTED, got);
    let parsed = match content {
        Value::String(text) => serde_json::from_str(text).map_err(|_| wrong("other text"))?,
        other => other.clone(),
    };
    let list = match parsed {
        Value::Array(list) => list,
        Value::Object(_) => vec![parsed],
        other => return Err(wrong(kind(&other))),
    };
    let call = |function: Value| json!({"type": "function", "function": function});
    Ok(list.into_iter().map(call).collect())
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

/// The texts of a list of parts, one after the other. The parts stay for a template that reads
/// them; a thought becomes the message's `reasoning_content`.
fn parts_of(field: &str, parts: &[Value], fields: &mut Object) -> Result<String, FieldError> {
    let (mut joined, mut thoughts, mut texts) = (String::new(), String::new(), Vec::new());
    for (at, part) in parts.iter().enumerate() {
        let said = part.get("text").or_else(|| part.get("value")).or_else(|| part.get("thinking"));
        let said = said.or(Some(part)).and_then(Value::as_str);
        let kind_of_part = part.get("type").and_then(Value::as_str);
        match (kind_of_part.unwrap_or("text"), said) {
            ("text" | "input_text" | "output_text", Some(text)) => {
                joined += text;
                texts.push(json!({"type": "text", "text": text}));
            }
            ("reasoning" | "thinking", Some(text)) => thoughts += text,
            _ => {
                let got = part.get("type").map_or_else(|| kind(part).to_owned(), Value::to_string);
                return Err(field_error(&format!("{field}.{at}"), PARTS, got));
            }
        }
    }
    // Under `content` it replaces the text for a template (`Message::fields`).
    fields.insert("content".to_owned(), Value::Array(texts));
    if !thoughts.is_empty() {
        fields.entry("reasoning_content").or_insert_with(|| thoughts.into());
    }
    Ok(joined)
}

/// Text; a number is written out.
pub(super) fn text(field: &str, value: &Value) -> Result<String, FieldError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(field_error(field, "text", kind(other))),
    }
}

/// Text that is not blank.
pub(super) fn filled(field: &str, value: &Value) -> Result<String, FieldError> {
    let text = text(field, value)?;
    if text.trim().is_empty() {
        return Err(field_error(field, "text", "an empty string"));
    }
    Ok(text)
}
