//! Reads conversations as clients send them.

use bitnet_text::{Conversation, Message, Role};
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use super::strict_json::StrictValue;
use crate::options::MOST_MESSAGES;

/// Reads OpenAI's `messages`.
pub(crate) fn read_messages(name: &str, value: Value) -> Result<Conversation, ApiError> {
    let read = |(index, value)| read_message(&format!("{name}[{index}]"), value);
    let list = read_list(name, value)?;
    let messages: Result<Vec<Message>, ApiError> = list.into_iter().enumerate().map(read).collect();
    Ok(messages?.into())
}

/// A list of as many messages as may be.
pub(crate) fn read_list(name: &str, value: Value) -> Result<Vec<Value>, ApiError> {
    match value {
        Value::Array(list) if (1..=MOST_MESSAGES).contains(&list.len()) => Ok(list),
        Value::Array(list) => {
            let got = list.len();
            let message = format!("expected 1 to {MOST_MESSAGES} messages, got {got}");
            Err(ApiError::field(name, message))
        }
        other => Err(expected(name, "a list of messages", &other)),
    }
}

/// Reads one message in OpenAI's form.
pub(crate) fn read_message(name: &str, value: Value) -> Result<Message, ApiError> {
    let mut fields = BodyFields::inside(name, value)?;
    let role = fields.require("role")?;
    let role = match role.as_str() {
        // OpenAI's newer name for the same.
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => {
            let wanted = "system, developer, user, assistant or tool";
            return Err(expected(&fields.name("role"), wanted, &role));
        }
    };
    let calls = if role == Role::Assistant { read_calls(&mut fields)? } else { Vec::new() };
    // An answer of calls alone says nothing.
    let content = match fields.take("content") {
        None if !calls.is_empty() => String::new(),
        None => return Err(fields.error("content", "is missing; expected a value")),
        Some(content) => read_content(&fields.name("content"), content)?,
    };
    let mut message = Message::new(role, content);
    if role == Role::Tool {
        let id = fields.require("tool_call_id")?;
        if !id.is_string() {
            return Err(expected(&fields.name("tool_call_id"), "a string", &id));
        }
        message.fields.insert("tool_call_id".to_owned(), id);
        fields.drop_notes(&["name"]);
    }
    // Clients send back what they were given; what an answer of ours never has is refused.
    fields.only("refusal", &[])?;
    fields.only("annotations", &[Value::Array(Vec::new())])?;
    fields.finish()?;
    Ok(with_calls(message, calls))
}

/// Reads `tool_calls` of an assistant's message.
fn read_calls(fields: &mut BodyFields) -> Result<Vec<Value>, ApiError> {
    let name = fields.name("tool_calls");
    let list = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(expected(&name, "a list of calls", &other)),
    };
    let call = |(index, value)| {
        let mut call = BodyFields::inside(&format!("{name}[{index}]"), value)?;
        let kind = call.require("type")?;
        if kind != "function" {
            return Err(expected(&call.name("type"), "function", &kind));
        }
        let id = call.text("id")?.unwrap_or_default();
        let mut function = BodyFields::inside(&call.name("function"), call.require("function")?)?;
        call.drop_notes(&["index"]);
        call.finish()?;
        let read = read_call(&mut function, &id)?;
        function.finish()?;
        Ok(read)
    };
    list.into_iter().enumerate().map(call).collect()
}

/// Reads `name` and `arguments` of a call, which must be a JSON object as text.
pub(crate) fn read_call(fields: &mut BodyFields, id: &str) -> Result<Value, ApiError> {
    let name = fields.text("name")?;
    let name = name.ok_or_else(|| fields.error("name", "is missing; expected a string"))?;
    let arguments = fields.require("arguments")?;
    let is_object =
        |text: &str| serde_json::from_str(text).is_ok_and(|it: StrictValue| it.0.is_object());
    if !arguments.as_str().is_some_and(is_object) {
        return Err(expected(&fields.name("arguments"), "a JSON object as a string", &arguments));
    }
    Ok(call_json(id, &name, arguments))
}

/// A call as messages keep it.
pub(crate) fn call_json(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A message with the calls that it makes.
pub(crate) fn with_calls(mut message: Message, calls: Vec<Value>) -> Message {
    if !calls.is_empty() {
        message.fields.insert("tool_calls".to_owned(), calls.into());
    }
    message
}

/// Text, or parts of text, which become lines.
pub(crate) fn read_content(name: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(expected(name, "a string or a list of text parts", &other)),
    };
    let text = |(index, part)| read_part(&format!("{name}[{index}]"), part);
    let parts: Result<Vec<String>, ApiError> = parts.into_iter().enumerate().map(text).collect();
    Ok(parts?.join("\n"))
}

/// One part of text.
pub(crate) fn read_part(name: &str, part: Value) -> Result<String, ApiError> {
    let mut fields = BodyFields::inside(name, part)?;
    let kind = fields.require("type")?;
    if !["text", "input_text", "output_text"].contains(&kind.as_str().unwrap_or_default()) {
        let wanted = "\"text\" (this model reads no other)";
        return Err(expected(&fields.name("type"), wanted, &kind));
    }
    let text = fields.text("text")?;
    let text = text.ok_or_else(|| fields.error("text", "is missing; expected a string"))?;
    fields.drop_notes(&["annotations", "logprobs", "cache_control"]);
    fields.finish()?;
    Ok(text)
}
