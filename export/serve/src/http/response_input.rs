//! Reads the `input` of `/v1/responses`: a text, or messages with calls of functions and their
//! results among them.

use bitnet_text::{Conversation, Message, Role};
use serde_json::Value;

use super::error::ApiError;
use super::fields::BodyFields;
use super::messages_in::{read_call, read_content, read_list, read_message, with_calls};

/// A string, or items; `instructions` come before them.
pub(crate) fn read_input(fields: &mut BodyFields) -> Result<Conversation, ApiError> {
    let mut messages = Vec::new();
    let instructions = fields.text("instructions")?;
    messages.extend(instructions.map(|text| Message::new(Role::System, text)));
    match fields.require("input")? {
        Value::String(text) => messages.push(Message::new(Role::User, text)),
        list => {
            for (index, item) in read_list("input", list)?.into_iter().enumerate() {
                push_item(&mut messages, &format!("input[{index}]"), item)?;
            }
        }
    }
    Ok(messages.into())
}

fn push_item(messages: &mut Vec<Message>, name: &str, mut item: Value) -> Result<(), ApiError> {
    match item["type"].as_str() {
        Some("function_call") => push_call(messages, name, item)?,
        Some("function_call_output") => messages.push(read_output(name, item)?),
        kind => {
            // What an earlier response put around its message.
            let is_message = kind == Some("message");
            if let Some(map) = item.as_object_mut().filter(|_| is_message) {
                for field in ["type", "id", "status"] {
                    map.shift_remove(field);
                }
            }
            messages.push(read_message(name, item)?);
        }
    }
    Ok(())
}

/// A call is part of the assistant's message before it, if there is one.
fn push_call(messages: &mut Vec<Message>, name: &str, item: Value) -> Result<(), ApiError> {
    let mut fields = BodyFields::inside(name, item)?;
    let id = fields.text("call_id")?;
    let id = id.ok_or_else(|| fields.error("call_id", "is missing; expected a string"))?;
    let call = read_call(&mut fields, &id)?;
    fields.drop_notes(&["type", "id", "status"]);
    fields.finish()?;
    // The model made a call without a word: templates still want a turn around it.
    if messages.last().is_none_or(|last| last.role != Role::Assistant) {
        messages.push(Message::new(Role::Assistant, ""));
    }
    if let Some(last) = messages.last_mut() {
        match last.fields.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => *last = with_calls(last.clone(), vec![call]),
        }
    }
    Ok(())
}

fn read_output(name: &str, item: Value) -> Result<Message, ApiError> {
    let mut fields = BodyFields::inside(name, item)?;
    let id = fields.text("call_id")?;
    let id = id.ok_or_else(|| fields.error("call_id", "is missing; expected a string"))?;
    let output = fields.require("output")?;
    let output = read_content(&fields.name("output"), output)?;
    fields.drop_notes(&["type", "id", "status"]);
    fields.finish()?;
    let mut message = Message::new(Role::Tool, output);
    message.fields.insert("tool_call_id".to_owned(), id.into());
    Ok(message)
}
