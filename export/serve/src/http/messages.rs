//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form, for text.

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
use super::messages_in::{read_content, read_messages};
use super::sampling::{AnswerSettings, read_sampler, read_stops};
use super::state::{AnswerRequest, AppState};
use crate::inference::{EndReason, JobEnd, JobEvent, RequestId};

/// The handler of `/v1/messages`.
pub(crate) async fn messages(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    let question = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&question)?;
    let format = MessageFormat::new(&state, request, &question);
    if question.settings.stream {
        return Ok(stream(events, 1, format));
    }
    let answers = collect(events, 1).await?;
    let whole = answers.first().and_then(|answer| {
        let text = json!([{"type": "text", "text": answer.text.trim_start()}]);
        answer.end.as_ref().map(|end| format.message(text, Some(end)))
    });
    Ok(Json(whole.ok_or_else(ApiError::internal)?).into_response())
}

/// The handler of `/v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<AppState>>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let conversation = read_conversation(&state, &mut fields)?;
    fields.finish()?;
    let ids = tokio::task::block_in_place(|| prompt(&state, &conversation, "messages"))?;
    Ok(Json(json!({"input_tokens": ids.len()})))
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<AnswerRequest, ApiError> {
    let conversation = read_conversation(state, &mut fields)?;
    let max_tokens = fields.count("max_tokens", 1..=1 << 32)?;
    let missing = || fields.error("max_tokens", "is missing; expected a whole number");
    let max_tokens = Some(max_tokens.ok_or_else(missing)?);
    let settings = AnswerSettings {
        sampler: read_sampler(&mut fields, state.vocab_size)?,
        stop_texts: read_stops(&mut fields, "stop_sequences")?,
        choices: 1,
        stream: fields.flag("stream")?.unwrap_or(false),
        stream_usage: true,
    };
    fields.drop_notes(&["metadata"]);
    fields.only("service_tier", &["auto".into(), "standard_only".into()])?;
    fields.finish()?;
    Ok(AnswerRequest {
        prompts: vec![prompt(state, &conversation, "messages")?],
        settings,
        max_tokens,
        stop_ids: Arc::clone(&state.chat_stop_ids),
        top: None,
        scores_prompt: false,
        grammar: None,
    })
}

/// Reads what both endpoints take: the model, the system's message and the turns.
fn read_conversation(state: &AppState, fields: &mut BodyFields) -> Result<Conversation, ApiError> {
    state.check_model(fields)?;
    let system = fields.take("system").map(|value| read_content("system", value)).transpose()?;
    let mut conversation = read_messages("messages", fields.require("messages")?)?;
    if let Some(system) = system.filter(|system| !system.is_empty()) {
        conversation.messages.insert(0, Message::new(Role::System, system));
    }
    fields.only("tools", &[json!([])])?;
    fields.only("tool_choice", &[json!({"type": "none"}), json!({"type": "auto"})])?;
    fields.only("thinking", &[json!({"type": "disabled"})])?;
    Ok(conversation)
}

/// Writes an answer as Anthropic's messages.
struct MessageFormat {
    id: String,
    model: String,
    prompt: usize,
    begun: bool,
}

impl MessageFormat {
    fn new(state: &AppState, request: RequestId, question: &AnswerRequest) -> Self {
        let prompt = question.prompts.iter().map(|prompt| prompt.len()).sum();
        let id = format!("msg_{}", request.number());
        Self { id, model: state.model.clone(), prompt, begun: false }
    }

    /// The message, with how it ended once it has.
    fn message(&self, content: Value, end: Option<&JobEnd>) -> Value {
        let cached = end.map_or(0, |end| end.cached);
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content,
            "stop_reason": end.map(stop_reason),
            "stop_sequence": end.and_then(|end| end.stop_text.clone()),
            "usage": {
                "input_tokens": self.prompt - cached, "cache_read_input_tokens": cached,
                "cache_creation_input_tokens": 0,
                "output_tokens": end.map_or(0, |end| end.generated),
            },
        })
    }

    fn delta(&mut self, text: &str) -> Vec<StreamEvent> {
        let text = if self.begun { text } else { text.trim_start() };
        self.begun |= !text.is_empty();
        if text.is_empty() {
            return Vec::new();
        }
        let delta = json!({"type": "text_delta", "text": text});
        vec![named("content_block_delta", json!({"index": 0, "delta": delta}))]
    }
}

fn stop_reason(end: &JobEnd) -> &'static str {
    match end.reason {
        EndReason::StopId => "end_turn",
        EndReason::StopText => "stop_sequence",
        EndReason::Length => "max_tokens",
    }
}

/// An event whose data say its name too.
fn named(name: &'static str, mut data: Value) -> StreamEvent {
    data["type"] = name.into();
    StreamEvent { name: Some(name), data: data.to_string() }
}

impl StreamFormat for MessageFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        vec![
            named("message_start", json!({"message": self.message(json!([]), None)})),
            named("content_block_start", block),
        ]
    }

    fn next(&mut self, _: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Token { text, .. } => self.delta(&text),
            JobEvent::End(end) => {
                let mut events = self.delta(&end.text);
                let whole = self.message(json!([]), Some(&end));
                let delta = json!({
                    "stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"],
                });
                events.push(named("content_block_stop", json!({"index": 0})));
                events
                    .push(named("message_delta", json!({"delta": delta, "usage": whole["usage"]})));
                events
            }
            JobEvent::Prompt(_) | JobEvent::Failed => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<StreamEvent> {
        vec![named("message_stop", json!({}))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        vec![named("error", error.json())]
    }
}
