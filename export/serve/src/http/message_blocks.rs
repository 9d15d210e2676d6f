//! Reads conversations in Anthropic's form, where calls of functions and their results are blocks
//! of a message's content.

use bitnet_text::{Message, Role};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use super::messages_in::{call_json, read_content, read_list, read_part, with_calls};

/// Reads `messages` of `/v1/messages`.
pub(crate) fn read_turns(name: &str, value: Value) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    for (index, value) in read_list(name, value)?.into_iter().enumerate() {
        let mut fields = BodyFields::inside(&format!("{name}[{index}]"), value)?;
        let role = fields.require("role")?;
        let role = match role.as_str() {
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            Some("system") => Role::System,
            _ => return Err(expected(&fields.name("role"), "user or assistant", &role)),
        };
        let content = fields.require("content")?;
        messages.extend(Turn::read(role, &fields.name("content"), content)?.messages());
        fields.finish()?;
    }
    Ok(messages)
}

/// What the blocks of a message come to.
struct Turn {
    role: Role,
    /// Blocks of text; a string is one.
    texts: Vec<String>,
    calls: Vec<Value>,
    results: Vec<Message>,
}

impl Turn {
    fn read(role: Role, name: &str, content: Value) -> Result<Self, ApiError> {
        let mut turn = Self { role, texts: Vec::new(), calls: Vec::new(), results: Vec::new() };
        let Value::Array(blocks) = content else {
            turn.texts.push(read_content(name, content)?);
            return Ok(turn);
        };
        for (index, block) in blocks.into_iter().enumerate() {
            turn.take(&format!("{name}[{index}]"), block)?;
        }
        Ok(turn)
    }

    fn take(&mut self, name: &str, block: Value) -> Result<(), ApiError> {
        match (block["type"].as_str(), self.role) {
            (Some("tool_use"), Role::Assistant) => self.calls.push(read_use(name, block)?),
            (Some("tool_result"), Role::User) => self.results.push(read_result(name, block)?),
            _ => self.texts.push(read_part(name, block)?),
        }
        Ok(())
    }

    /// Results come before what the user says to them.
    fn messages(self) -> Vec<Message> {
        let says = !self.texts.is_empty() || self.results.is_empty();
        let mut messages = self.results;
        if says {
            let message = Message::new(self.role, self.texts.join("\n"));
            messages.push(with_calls(message, self.calls));
        }
        messages
    }
}

fn read_use(name: &str, block: Value) -> Result<Value, ApiError> {
    let mut fields = BodyFields::inside(name, block)?;
    let id = fields.text("id")?.unwrap_or_default();
    let function = fields.require("name")?;
    let Some(function) = function.as_str() else {
        return Err(expected(&fields.name("name"), "a string", &function));
    };
    let input = fields.require("input")?;
    if !input.is_object() {
        return Err(expected(&fields.name("input"), "an object", &input));
    }
    fields.drop_notes(&["type", "cache_control"]);
    fields.finish()?;
    Ok(call_json(&id, function, input.to_string().into()))
}

fn read_result(name: &str, block: Value) -> Result<Message, ApiError> {
    let mut fields = BodyFields::inside(name, block)?;
    let id = fields.require("tool_use_id")?;
    if !id.is_string() {
        return Err(expected(&fields.name("tool_use_id"), "a string", &id));
    }
    let content = fields.take("content").unwrap_or_else(|| "".into());
    let content = read_content(&fields.name("content"), content)?;
    // The text of the result says it too; templates have no place for the flag.
    fields.flag("is_error")?;
    fields.drop_notes(&["type", "cache_control"]);
    fields.finish()?;
    let mut message = Message::new(Role::Tool, content);
    message.fields.insert("tool_call_id".to_owned(), id);
    Ok(message)
}
