//! Reads conversations as clients send them.

use bitnet_text::{Conversation, Message, Role};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use crate::options::MOST_MESSAGES;

/// Reads OpenAI's `messages`.
pub(crate) fn read_messages(name: &str, value: Value) -> Result<Conversation, ApiError> {
    let Value::Array(list) = value else {
        return Err(expected(name, "a list of messages", &value));
    };
    if list.is_empty() || list.len() > MOST_MESSAGES {
        let got = list.len();
        let message = format!("expected 1 to {MOST_MESSAGES} messages, got {got}");
        return Err(ApiError::field(name, message));
    }
    let read = |(index, value)| read_message(&format!("{name}[{index}]"), value);
    let messages: Result<Vec<Message>, ApiError> = list.into_iter().enumerate().map(read).collect();
    Ok(messages?.into())
}

fn read_message(name: &str, value: Value) -> Result<Message, ApiError> {
    let mut fields = BodyFields::inside(name, value)?;
    let role = fields.require("role")?;
    let role = match role.as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => {
            let wanted = "system, developer, user or assistant";
            return Err(expected(&fields.name("role"), wanted, &role));
        }
    };
    let content = fields.require("content")?;
    let content = read_content(&fields.name("content"), content)?;
    fields.only("refusal", &[])?;
    fields.only("annotations", &[Value::Array(Vec::new())])?;
    fields.finish()?;
    Ok(Message::new(role, content))
}

/// Text, or parts of text, which become lines.
pub(crate) fn read_content(name: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(expected(name, "a string or a list of text parts", &other)),
    };
    let text = |(index, part)| {
        let mut fields = BodyFields::inside(&format!("{name}[{index}]"), part)?;
        let kind = fields.require("type")?;
        if !["text", "input_text", "output_text"].contains(&kind.as_str().unwrap_or_default()) {
            return Err(expected(
                &fields.name("type"),
                "\"text\" (this model reads no other)",
                &kind,
            ));
        }
        let text = fields.text("text")?;
        let text = text.ok_or_else(|| fields.error("text", "is missing; expected a string"))?;
        fields.drop_notes(&["annotations", "logprobs", "cache_control"]);
        fields.finish()?;
        Ok(text)
    };
    let parts: Result<Vec<String>, ApiError> = parts.into_iter().enumerate().map(text).collect();
    Ok(parts?.join("\n"))
}
