//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form, for text and calls.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_text::{Conversation, Message, Role};
use serde_json::{Value, json};

use super::answer::{StreamEvent, StreamFormat, collect, stream};
use super::answer_parts::{AnswerPart, AnswerParts, whole};
use super::body::JsonBody;
use super::conversation::{bind, continued_prompt};
use super::error::ApiError;
use super::fields::BodyFields;
use super::message_blocks::read_turns;
use super::messages_in::read_content;
use super::sampling::{AnswerSettings, read_notes, read_sampler, read_stops};
use super::state::{AnswerRequest, AppState};
use super::tool_form::ToolForm;
use super::tools::Tools;
use crate::inference::{EndReason, JobEnd, JobEvent, RequestId};

/// The handler of `/v1/messages`.
pub(crate) async fn messages(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    let question = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&question)?;
    let mut format = MessageFormat::new(&state, request, &question);
    if question.settings.stream {
        return Ok(stream(events, 1, format));
    }
    let answer = collect(events, 1).await?.pop().ok_or_else(ApiError::internal)?;
    let content = format.content(&answer.text);
    Ok(Json(format.message(content, answer.end.as_ref())).into_response())
}

/// The handler of `/v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<AppState>>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let (conversation, _) = read_conversation(&state, &mut fields)?;
    fields.finish()?;
    let ids = tokio::task::block_in_place(|| continued_prompt(&state, conversation, "messages"))?;
    Ok(Json(json!({"input_tokens": ids.len()})))
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<AnswerRequest, ApiError> {
    let (conversation, tools) = read_conversation(state, &mut fields)?;
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
    read_notes(&mut fields)?;
    fields.only("service_tier", &["auto".into(), "standard_only".into()])?;
    fields.finish()?;
    let (calls, grammar) = bind(state, &tools, None, "tools")?;
    Ok(AnswerRequest {
        prompts: vec![continued_prompt(state, conversation, "messages")?],
        settings,
        max_tokens,
        stop_ids: Arc::clone(&state.chat_stop_ids),
        top: None,
        scores_prompt: false,
        grammar,
        calls,
    })
}

/// Reads what both endpoints take: the model, the system's message, the turns and the functions.
fn read_conversation(
    state: &AppState,
    fields: &mut BodyFields,
) -> Result<(Conversation, Tools), ApiError> {
    state.check_model(fields)?;
    let system = fields.take("system").map(|value| read_content("system", value)).transpose()?;
    let mut messages = read_turns("messages", fields.require("messages")?)?;
    if let Some(system) = system.filter(|system| !system.is_empty()) {
        messages.insert(0, Message::new(Role::System, system));
    }
    let tools = Tools::of_message(fields)?;
    fields.only("thinking", &[json!({"type": "disabled"})])?;
    Ok((Conversation { messages, tools: tools.json() }, tools))
}

/// Writes an answer as Anthropic's messages.
struct MessageFormat {
    number: u64,
    model: String,
    prompt: usize,
    /// How calls are written, if there may be some.
    form: Option<ToolForm>,
    parts: AnswerParts,
    /// Blocks that are complete, and whether another is open.
    blocks: usize,
    open: bool,
    calls: usize,
}

impl MessageFormat {
    fn new(state: &AppState, request: RequestId, question: &AnswerRequest) -> Self {
        Self {
            number: request.number(),
            model: state.model.clone(),
            prompt: question.prompts.iter().map(|prompt| prompt.len()).sum(),
            form: question.calls,
            parts: AnswerParts::new(question.calls),
            blocks: 0,
            open: false,
            calls: 0,
        }
    }

    /// The blocks of a whole answer.
    fn content(&mut self, text: &str) -> Value {
        let (said, calls) = whole(self.form, text);
        let text = json!({"type": "text", "text": said});
        let mut blocks = Vec::new();
        // An answer has at least one block: an empty text, if there is nothing else.
        blocks.extend((!said.is_empty() || calls.is_empty()).then_some(text));
        for call in calls {
            let mut block = self.call_block(&call.name);
            block["input"] = serde_json::from_str(&call.arguments).unwrap_or_default();
            blocks.push(block);
        }
        blocks.into()
    }

    /// A block of the next call, without its arguments.
    fn call_block(&mut self, name: &str) -> Value {
        let id = format!("toolu_{}_{}", self.number, self.calls);
        self.calls += 1;
        json!({"type": "tool_use", "id": id, "name": name, "input": {}})
    }

    /// The message, with how it ended once it has.
    fn message(&self, content: Value, end: Option<&JobEnd>) -> Value {
        let cached = end.map_or(0, |end| end.cached);
        json!({
            "id": format!("msg_{}", self.number), "type": "message", "role": "assistant",
            "model": self.model, "content": content,
            "stop_reason": end.map(|end| stop_reason(end, self.calls)),
            "stop_sequence": end.and_then(|end| end.stop_text.clone()),
            "usage": {
                // Anthropic counts cached tokens apart from the others; OpenAI counts them as part
                // of the prompt.
                "input_tokens": self.prompt - cached, "cache_read_input_tokens": cached,
                "cache_creation_input_tokens": 0,
                "output_tokens": end.map_or(0, |end| end.generated),
            },
        })
    }

    fn begin_block(&mut self, block: Value) -> StreamEvent {
        self.open = true;
        named("content_block_start", json!({"index": self.blocks, "content_block": block}))
    }

    fn delta(&self, delta: Value) -> StreamEvent {
        named("content_block_delta", json!({"index": self.blocks, "delta": delta}))
    }

    fn end_block(&mut self) -> Option<StreamEvent> {
        let index = self.blocks;
        self.blocks += usize::from(self.open);
        std::mem::take(&mut self.open).then(|| named("content_block_stop", json!({"index": index})))
    }

    fn events(&mut self, parts: Vec<AnswerPart>) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        for part in parts {
            match part {
                AnswerPart::Text(text) => {
                    // Blocks of a stream have the order: start, deltas, stop; the next text opens
                    // one, a call closes it.
                    if !self.open {
                        events.push(self.begin_block(json!({"type": "text", "text": ""})));
                    }
                    events.push(self.delta(json!({"type": "text_delta", "text": text})));
                }
                AnswerPart::CallBegins(name) => {
                    events.extend(self.end_block());
                    let block = self.call_block(&name);
                    events.push(self.begin_block(block));
                }
                AnswerPart::Arguments(piece) => {
                    let delta = json!({"type": "input_json_delta", "partial_json": piece});
                    events.push(self.delta(delta));
                }
                AnswerPart::CallEnds => events.extend(self.end_block()),
            }
        }
        events
    }
}

fn stop_reason(end: &JobEnd, calls: usize) -> &'static str {
    match end.reason {
        EndReason::StopId if calls > 0 => "tool_use",
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
        vec![named("message_start", json!({"message": self.message(json!([]), None)}))]
    }

    fn next(&mut self, _: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Token { text, .. } => {
                let parts = self.parts.push(&text);
                self.events(parts)
            }
            JobEvent::End(end) => {
                let parts = self.parts.finish(&end.text);
                let mut events = self.events(parts);
                // As in a whole answer: at least one block.
                if self.blocks == 0 && !self.open {
                    events.push(self.begin_block(json!({"type": "text", "text": ""})));
                }
                events.extend(self.end_block());
                // One place computes the end for both forms: a stream takes three of its fields.
                let whole = self.message(json!([]), Some(&end));
                let delta = json!({
                    "stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"],
                });
                let last = json!({"delta": delta, "usage": whole["usage"]});
                events.push(named("message_delta", last));
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
