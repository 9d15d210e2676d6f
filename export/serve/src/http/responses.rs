//! `POST /v1/responses`: OpenAI's newer form, for text. Nothing is stored between requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_text::{Conversation, Message, Role};
use serde_json::{Value, json};

use super::answer::{StreamEvent, StreamFormat, collect, stream};
use super::body::JsonBody;
use super::chat::prompt;
use super::error::ApiError;
use super::fields::BodyFields;
use super::messages_in::read_messages;
use super::response_format::read_text_format;
use super::sampling::{AnswerSettings, read_sampler};
use super::state::{AnswerRequest, AppState, now};
use crate::inference::{EndReason, JobEnd, JobEvent, RequestId};

/// The handler.
pub(crate) async fn responses(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    let question = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&question)?;
    let mut format = ResponseFormat::new(&state, request, &question);
    if question.settings.stream {
        return Ok(stream(events, 1, format));
    }
    let answer = collect(events, 1).await?.pop().ok_or_else(ApiError::internal)?;
    answer.text.trim_start().clone_into(&mut format.text);
    Ok(Json(format.response(answer.end.as_ref())).into_response())
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<AnswerRequest, ApiError> {
    state.check_model(&mut fields)?;
    let conversation = read_input(&mut fields)?;
    let settings = AnswerSettings {
        sampler: read_sampler(&mut fields, state.vocab_size)?,
        stop_texts: Vec::new(),
        choices: 1,
        stream: fields.flag("stream")?.unwrap_or(false),
        stream_usage: true,
    };
    let max_tokens = fields.count("max_output_tokens", 1..=1 << 32)?;
    let grammar = read_text_format(state, &mut fields)?;
    fields.drop_notes(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
    for (name, neutral) in [
        ("store", json!([false])),
        ("background", json!([false])),
        ("truncation", json!(["disabled"])),
        ("service_tier", json!(["auto", "default"])),
        ("tools", json!([[]])),
        ("tool_choice", json!(["none", "auto"])),
        ("parallel_tool_calls", json!([true, false])),
        ("include", json!([[]])),
        ("top_logprobs", json!([0])),
    ] {
        fields.only(name, neutral.as_array().map(Vec::as_slice).unwrap_or_default())?;
    }
    fields.finish()?;
    Ok(AnswerRequest {
        prompts: vec![prompt(state, &conversation, "input")?],
        settings,
        max_tokens,
        stop_ids: Arc::clone(&state.chat_stop_ids),
        top: None,
        scores_prompt: false,
        grammar,
    })
}

/// A string, or messages; `instructions` come before them.
fn read_input(fields: &mut BodyFields) -> Result<Conversation, ApiError> {
    let instructions = fields.text("instructions")?;
    let mut conversation: Conversation = match fields.require("input")? {
        Value::String(text) => vec![Message::new(Role::User, text)].into(),
        Value::Array(list) => read_messages("input", list.into_iter().map(as_message).collect())?,
        other => read_messages("input", other)?,
    };
    if let Some(text) = instructions {
        conversation.messages.insert(0, Message::new(Role::System, text));
    }
    Ok(conversation)
}

/// An item of the input without what an earlier response put around its message.
fn as_message(mut item: Value) -> Value {
    if let Some(map) = item.as_object_mut().filter(|map| map.get("type") == Some(&"message".into()))
    {
        for name in ["type", "id", "status"] {
            map.shift_remove(name);
        }
    }
    item
}

/// Writes an answer as a response and its events.
struct ResponseFormat {
    number: u64,
    created: u64,
    model: String,
    temperature: f32,
    top_p: f32,
    max_tokens: Option<usize>,
    prompt: usize,
    /// What was said so far.
    text: String,
    events: u64,
    ended: Option<JobEnd>,
}

impl ResponseFormat {
    fn new(state: &AppState, request: RequestId, question: &AnswerRequest) -> Self {
        Self {
            number: request.number(),
            created: now(),
            model: state.model.clone(),
            temperature: question.settings.sampler.temperature,
            top_p: question.settings.sampler.top_p,
            max_tokens: question.max_tokens,
            prompt: question.prompts.iter().map(|prompt| prompt.len()).sum(),
            text: String::new(),
            events: 0,
            ended: None,
        }
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({
            "type": "message", "id": format!("msg_{}", self.number), "status": status,
            "role": "assistant", "content": content,
        })
    }

    /// The response, in progress without an end.
    fn response(&self, end: Option<&JobEnd>) -> Value {
        let cut = end.is_some_and(|end| end.reason == EndReason::Length);
        let status = match end {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        let output = end.map(|_| self.item(status, json!([self.part()])));
        json!({
            "id": format!("resp_{}", self.number), "object": "response", "created_at": self.created,
            "status": status, "error": null, "model": self.model,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
            "instructions": null, "max_output_tokens": self.max_tokens,
            "output": output.into_iter().collect::<Vec<_>>(),
            "parallel_tool_calls": false, "previous_response_id": null, "store": false,
            "temperature": self.temperature, "top_p": self.top_p, "tool_choice": "none", "tools": [],
            "truncation": "disabled", "metadata": {},
            "usage": end.map(|end| self.usage(end)),
        })
    }

    fn usage(&self, end: &JobEnd) -> Value {
        json!({
            "input_tokens": self.prompt, "input_tokens_details": {"cached_tokens": end.cached},
            "output_tokens": end.generated, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + end.generated,
        })
    }

    /// An event with its name and number.
    fn event(&mut self, name: &'static str, mut data: Value) -> StreamEvent {
        data["type"] = name.into();
        data["sequence_number"] = self.events.into();
        self.events += 1;
        StreamEvent { name: Some(name), data: data.to_string() }
    }

    /// An event about the text, the only part of the only item.
    fn text_event(&mut self, name: &'static str, field: &str, value: Value) -> StreamEvent {
        let mut data = json!({"item_id": format!("msg_{}", self.number), "output_index": 0, "content_index": 0});
        data[field] = value;
        self.event(name, data)
    }

    fn delta(&mut self, text: &str) -> Vec<StreamEvent> {
        let text = if self.text.is_empty() { text.trim_start() } else { text };
        if text.is_empty() {
            return Vec::new();
        }
        self.text += text;
        let mut event = json!({
            "item_id": format!("msg_{}", self.number), "output_index": 0, "content_index": 0,
            "logprobs": [],
        });
        event["delta"] = text.into();
        vec![self.event("response.output_text.delta", event)]
    }
}

impl StreamFormat for ResponseFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        let response = json!({"response": self.response(None)});
        let item = json!({"output_index": 0, "item": self.item("in_progress", json!([]))});
        let part = self.part();
        vec![
            self.event("response.created", response.clone()),
            self.event("response.in_progress", response),
            self.event("response.output_item.added", item),
            self.text_event("response.content_part.added", "part", part),
        ]
    }

    fn next(&mut self, _: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Token { text, .. } => self.delta(&text),
            JobEvent::End(end) => {
                let events = self.delta(&end.text);
                self.ended = Some(end);
                events
            }
            JobEvent::Prompt(_) | JobEvent::Failed => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<StreamEvent> {
        let ended = self.ended.take();
        let response = self.response(ended.as_ref());
        let (text, part) = (self.text.clone(), self.part());
        let item = json!({"output_index": 0, "item": response["output"][0]});
        let last = if response["status"] == "incomplete" {
            "response.incomplete"
        } else {
            "response.completed"
        };
        vec![
            self.text_event("response.output_text.done", "text", text.into()),
            self.text_event("response.content_part.done", "part", part),
            self.event("response.output_item.done", item),
            self.event(last, json!({"response": response})),
        ]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        let data = json!({"code": error.code, "message": error.message, "param": null});
        vec![self.event("error", data)]
    }
}
