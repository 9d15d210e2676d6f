//! Parses rows of fine-tuning data: conversations. `preference` reads prompts with two answers;
//! `turns` the messages of both. Errors name the field.
//!
//! What a row says beside its turns is used, not dropped: a `system` text, an earlier `history` and
//! `tools`.

use bitnet_text::{Conversation, Message, Role};
use serde_json::Value;

pub use super::fault::FieldError;
use super::fault::{field_error, kind};
use super::reading::UnknownRole;
use super::turns::{Object, TurnRules, filled, present, text, turns};

/// The keys of a list of turns, in the order in which they are looked for.
pub(super) const LISTS: &[&str] = &[
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "turns",
    "chat",
    "contents",
    "data",
];
/// The keys of what the user says, where a row is one question and one answer.
pub(super) const QUESTIONS: &[&str] =
    &["instruction", "question", "prompt", "query", "input", "inputs", "user", "human"];
/// The keys of the text that follows the question: Alpaca's and Dolly's.
const CONTEXTS: &[&str] = &["input", "context"];
const ANSWERS: &[&str] =
    &["output", "response", "completion", "answer", "assistant", "target", "targets"];
const SYSTEMS: &[&str] = &["system", "system_prompt", "system_message", "system_instruction"];
const EXPECTED: &str = "messages, conversations (ShareGPT), or a question and its answer \
    (instruction and output, prompt and completion, question and answer, …)";

/// A conversation, and the key by which its shape was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedConversation {
    /// Such as `messages`, or `prompt, completion`.
    pub shape: String,
    /// What is trained.
    pub conversation: Conversation,
}

/// A conversation in one of the shapes in use: a list of messages under `messages` or
/// `conversations` (`ShareGPT`), or a question and its answer, such as Alpaca's `instruction`,
/// `input` and `output`.
///
/// An answer without text or calls stays in the conversation and is not trained. What follows the
/// last answer is left out.
///
/// # Errors
/// If a role is unknown, if content is not text, if a question is empty, or if there is no answer.
pub fn conversation(
    object: &Object,
    unknown: UnknownRole,
) -> Result<ParsedConversation, FieldError> {
    conversation_by(object, &TurnRules::new(unknown))
}

pub(super) fn conversation_by(
    object: &Object,
    rules: &TurnRules,
) -> Result<ParsedConversation, FieldError> {
    let list = list(object);
    let (shape, field, mut messages) = match list {
        Some((key, list)) => (key.to_owned(), key, turns(key, list, rules)?),
        None => question_and_answer(object, rules)?,
    };
    // A turn after the last answer trains nothing: it is left out, or refused under `strict`.
    let last = messages.iter().rposition(|message| message.role == Role::Assistant);
    let Some(last) = last else {
        let got = messages.last().map_or("an empty list", |last| last.role.name());
        let field = format!("{field}.{}", messages.len().saturating_sub(1));
        return Err(field_error(&field, "the assistant's turn at the end", got));
    };
    let behind = messages.len() - last - 1;
    if behind > 0 && rules.strict {
        let (field, got) = (format!("{field}.{}", last + 1), messages[last + 1].role.name());
        return Err(field_error(&field, "no turn after the last answer (strict)", got));
    }
    rules.drop_turns(behind);
    messages.truncate(last + 1);
    let messages = after_introduction(object, messages)?;
    let conversation = Conversation { messages, tools: tools(object)? };
    Ok(ParsedConversation { shape, conversation })
}

/// The list of turns with its key: the first with a turn, else the first that is there.
pub(super) fn list(object: &Object) -> Option<(&'static str, &Value)> {
    let lists = || LISTS.iter().filter_map(|key| Some((*key, present(object, key)?)));
    lists().find(|(_, list)| holds_turns(list)).or_else(|| lists().next())
}

/// Whether a value is a list with items, or the text of a list in a cell of a table.
fn holds_turns(value: &Value) -> bool {
    match value {
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => text.trim_start().starts_with('['),
        _ => false,
    }
}

/// Whether a row holds a list of turns, or a question with its answer.
pub(super) fn has_turns(object: &Object) -> bool {
    let has = |keys: &[&'static str]| first_of(object, keys).is_some();
    list(object).is_some_and(|(_, list)| holds_turns(list)) || has(QUESTIONS) && has(ANSWERS)
}

/// The first of some keys that the row has with a value.
pub(super) fn first_of(object: &Object, keys: &[&'static str]) -> Option<&'static str> {
    keys.iter().copied().find(|key| present(object, key).is_some())
}

/// A row of one question and one answer: its shape, the key of the answer, and the turns.
fn question_and_answer(
    object: &Object,
    rules: &TurnRules,
) -> Result<(String, &'static str, Vec<Message>), FieldError> {
    let Some(question) = first_of(object, QUESTIONS) else {
        return Err(field_error("messages", EXPECTED, keys(object)));
    };
    let answer = first_of(object, ANSWERS);
    // An answer that is there without a value: the error then names the key that the row has.
    let answer = answer.or_else(|| ANSWERS.iter().copied().find(|key| object.contains_key(*key)));
    let answer = answer.unwrap_or("output");
    let mut messages = asked(object, question, rules)?;
    messages.extend(said(object, answer, Role::Assistant, rules)?);
    Ok((format!("{question}, {answer}"), answer, messages))
}

/// The question, and the text that follows it.
pub(super) fn asked(
    object: &Object,
    question: &'static str,
    rules: &TurnRules,
) -> Result<Vec<Message>, FieldError> {
    let mut messages = said(object, question, Role::User, rules)?;
    // `input` is the context beside `instruction` and the question where it stands alone. Alpaca
    // writes an empty one where there is none.
    let context = first_of(object, CONTEXTS).filter(|key| *key != question && object[*key] != "");
    if let (Some(key), [message]) = (context, messages.as_mut_slice()) {
        message.content = format!("{}\n\n{}", message.content, filled(key, &object[key])?);
    }
    Ok(messages)
}

/// The messages of a value: text of `role`, one message, or a list of messages.
pub(super) fn said(
    object: &Object,
    field: &str,
    role: Role,
    rules: &TurnRules,
) -> Result<Vec<Message>, FieldError> {
    match object.get(field).unwrap_or(&Value::Null) {
        list @ Value::Array(_) => turns(field, list, rules),
        turn @ Value::Object(_) => turns(field, &Value::Array(vec![turn.clone()]), rules),
        value if role == Role::Assistant => {
            let mut answer = Message::new(role, text(field, value)?);
            // Training on an empty answer would teach the model to say nothing.
            answer.trained = !answer.content.trim().is_empty();
            Ok(vec![answer])
        }
        value => Ok(vec![Message::new(role, filled(field, value)?)]),
    }
}

/// The turns after what the line has before them: a `system` text and an earlier `history`.
pub(super) fn after_introduction(
    object: &Object,
    messages: Vec<Message>,
) -> Result<Vec<Message>, FieldError> {
    let mut all = Vec::with_capacity(messages.len() + 1);
    // Two different texts of the system cannot both be meant, and the row does not say which is.
    let begins_with_system = messages.first().is_some_and(|first| first.role == Role::System);
    if let Some(key) = first_of(object, SYSTEMS) {
        let text = text(key, &object[key])?;
        // Some data sets give the system's text twice, in a field and as the first turn: equal
        // texts count once.
        let repeats = begins_with_system && messages[0].content.trim() == text.trim();
        if begins_with_system && !repeats && !text.trim().is_empty() {
            let got = "another text than that of the first turn";
            return Err(field_error(key, "one text of the system", got));
        }
        if !begins_with_system && !text.trim().is_empty() {
            all.push(Message::new(Role::System, text));
        }
    }
    let history = history(object)?;
    // Templates take the system's turn first only, and the history would come before it.
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
        // Tables have an empty cell where there are no tools.
        Some(Value::String(json)) if json.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(json)) => serde_json::from_str(json)
            .map_err(|error| field_error("tools", expected, error.to_string())),
        Some(other) => Err(field_error("tools", expected, kind(other))),
    }
}

fn keys(object: &Object) -> String {
    let keys: Vec<_> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { "an empty object".to_owned() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests;
