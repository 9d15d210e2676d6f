//! `POST /v1/chat/completions`: the next turn of a conversation.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{
    Answered, StreamEvent, StreamFormat, TokenUsage, collect, fingerprint, finish_reason, stream,
};
use super::answer_parts::{AnswerPart, AnswerParts, ToolCall, whole};
use super::body::JsonBody;
use super::conversation::{bind, prompt};
use super::error::ApiError;
use super::fields::BodyFields;
use super::logprobs;
use super::messages_in::{call_json, read_messages};
use super::response_format::read_response_format;
use super::sampling::AnswerSettings;
use super::state::{AnswerRequest, AppState, now};
use super::tool_form::ToolForm;
use super::tools::Tools;
use crate::inference::{EndReason, JobEvent, RequestId};
use crate::options::MOST_LOGPROBS;

/// The handler.
pub(crate) async fn chat_completions(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    // Templates and grammars may take a while; other requests go on.
    let question = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&question)?;
    let format = ChatFormat::new(&state, request, &question);
    let (stream_asked, count) = (question.settings.stream, question.settings.choices);
    if stream_asked {
        return Ok(stream(events, count, format));
    }
    let answers = collect(events, count).await?;
    Ok(Json(format.whole(&answers)).into_response())
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<AnswerRequest, ApiError> {
    state.check_model(&mut fields)?;
    let mut conversation = read_messages("messages", fields.require("messages")?)?;
    let tools = Tools::of_chat(&mut fields)?;
    conversation.tools = tools.json();
    let settings = AnswerSettings::read(&mut fields, state.vocab_size)?;
    let top = read_logprobs(&mut fields)?;
    let max_tokens = read_max_tokens(&mut fields)?;
    let format = read_response_format(state, &mut fields)?;
    let (calls, grammar) = bind(state, &tools, format, "response_format")?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.finish()?;
    Ok(AnswerRequest {
        prompts: vec![prompt(state, &conversation, "messages")?],
        settings,
        max_tokens,
        stop_ids: Arc::clone(&state.chat_stop_ids),
        top,
        scores_prompt: false,
        grammar,
        calls,
    })
}

/// The limit under its new or its old name.
fn read_max_tokens(fields: &mut BodyFields) -> Result<Option<usize>, ApiError> {
    let old = fields.count("max_tokens", 1..=1 << 32)?;
    let new = fields.count("max_completion_tokens", 1..=1 << 32)?;
    if old.is_some() && new.is_some() && old != new {
        let message = "expected the number of max_completion_tokens, or that alone";
        return Err(fields.error("max_tokens", message));
    }
    Ok(new.or(old))
}

fn read_logprobs(fields: &mut BodyFields) -> Result<Option<usize>, ApiError> {
    let asked = fields.flag("logprobs")?.unwrap_or(false);
    match fields.count("top_logprobs", 0..=MOST_LOGPROBS)? {
        Some(_) if !asked => Err(fields.error("top_logprobs", "expected only with logprobs: true")),
        top => Ok(asked.then_some(top.unwrap_or(0))),
    }
}

/// Writes answers as OpenAI's chat completions.
struct ChatFormat {
    state: Arc<AppState>,
    number: u64,
    created: u64,
    usage: TokenUsage,
    /// Whether log-probabilities were asked for.
    scored: bool,
    stream_usage: bool,
    /// How calls are written, if there may be some.
    form: Option<ToolForm>,
    /// The text of each answer, and its calls of functions.
    answers: Vec<AnswerParts>,
    /// How many calls each answer made.
    calls: Vec<usize>,
}

impl ChatFormat {
    fn new(state: &Arc<AppState>, request: RequestId, question: &AnswerRequest) -> Self {
        Self {
            state: Arc::clone(state),
            number: request.number(),
            created: now(),
            usage: TokenUsage::of(&question.prompts),
            scored: question.top.is_some(),
            stream_usage: question.settings.stream_usage,
            form: question.calls,
            answers: vec![AnswerParts::new(question.calls); question.settings.choices],
            calls: vec![0; question.settings.choices],
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.number), "object": kind, "created": self.created,
            "model": self.state.model, "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    fn whole(mut self, answers: &[Answered]) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let Some(end) = &answer.end else { continue };
            self.usage.add(0, end);
            let scored = || logprobs::objects(&self.state.tokenizer, &answer.tokens);
            let (said, calls) = whole(self.form, &answer.text);
            let content =
                if said.is_empty() && !calls.is_empty() { Value::Null } else { said.into() };
            let mut message = json!({"role": "assistant", "content": content, "refusal": null});
            let reason = reason(end.reason, calls.len());
            if !calls.is_empty() {
                let each = calls.iter().enumerate();
                message["tool_calls"] = each.map(|(at, call)| self.call(index, at, call)).collect();
            }
            choices.push(json!({
                "index": index, "message": message,
                "logprobs": self.scored.then(scored), "finish_reason": reason,
            }));
        }
        let mut object = self.object("chat.completion", choices.into());
        object["usage"] = self.usage.json();
        object
    }

    fn chunk(
        &self,
        index: usize,
        delta: Value,
        logprobs: Value,
        reason: Option<&str>,
    ) -> StreamEvent {
        let choice = json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
        });
        let mut object = self.object("chat.completion.chunk", json!([choice]));
        if self.stream_usage {
            // Only the last event has it; OpenAI's others say so.
            object["usage"] = Value::Null;
        }
        StreamEvent::data(&object)
    }

    /// The identifier of a call, of which there is one in the life of a server.
    fn call_id(&self, choice: usize, call: usize) -> String {
        format!("call_{}_{choice}_{call}", self.number)
    }

    fn call(&self, choice: usize, at: usize, call: &ToolCall) -> Value {
        call_json(&self.call_id(choice, at), &call.name, call.arguments.as_str().into())
    }

    /// What a part of an answer adds to it; nothing for the end of a call.
    fn delta(&mut self, choice: usize, part: AnswerPart) -> Option<Value> {
        let call = match part {
            AnswerPart::Text(text) => return Some(json!({"content": text})),
            AnswerPart::CallEnds => return None,
            AnswerPart::CallBegins(name) => {
                let id = self.call_id(choice, self.calls[choice]);
                self.calls[choice] += 1;
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}})
            }
            AnswerPart::Arguments(piece) => json!({"function": {"arguments": piece}}),
        };
        let mut call = call;
        // Pieces of a call name it by its place alone; name and id come once.
        call["index"] = (self.calls[choice] - 1).into();
        Some(json!({"tool_calls": [call]}))
    }

    /// The chunks of some parts; the first of them has the log-probabilities.
    fn chunks(
        &mut self,
        choice: usize,
        parts: Vec<AnswerPart>,
        mut logprobs: Value,
    ) -> Vec<StreamEvent> {
        // Log-probabilities belong to tokens, and a token may give no part or several: they go with
        // the first, or with an empty text.
        let deltas: Vec<Value> =
            parts.into_iter().filter_map(|part| self.delta(choice, part)).collect();
        let empty = (deltas.is_empty() && !logprobs.is_null()).then(|| json!({"content": ""}));
        let deltas = deltas.into_iter().chain(empty);
        deltas.map(|delta| self.chunk(choice, delta, logprobs.take(), None)).collect()
    }
}

/// OpenAI's word for how an answer with `calls` calls ended.
fn reason(reason: EndReason, calls: usize) -> &'static str {
    match reason {
        // Only an answer that the model ended: one that was cut may hold half of a call.
        EndReason::StopId if calls > 0 => "tool_calls",
        other => finish_reason(other),
    }
}

impl StreamFormat for ChatFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        let role = json!({"role": "assistant", "content": ""});
        let all = 0..self.answers.len();
        all.map(|index| self.chunk(index, role.clone(), Value::Null, None)).collect()
    }

    fn next(&mut self, choice: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Token { text, token } => {
                let parts = self.answers[choice].push(&text);
                let scored = || logprobs::objects(&self.state.tokenizer, [&token]);
                let scored = if self.scored { scored() } else { Value::Null };
                self.chunks(choice, parts, scored)
            }
            JobEvent::End(end) => {
                self.usage.add(0, &end);
                let parts = self.answers[choice].finish(&end.text);
                let mut chunks = self.chunks(choice, parts, Value::Null);
                let reason = reason(end.reason, self.calls[choice]);
                chunks.push(self.chunk(choice, json!({}), Value::Null, Some(reason)));
                chunks
            }
            JobEvent::Prompt(_) | JobEvent::Failed => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<StreamEvent> {
        let mut last = Vec::new();
        if self.stream_usage {
            let mut object = self.object("chat.completion.chunk", json!([]));
            object["usage"] = self.usage.json();
            last.push(StreamEvent::data(&object));
        }
        last.push(StreamEvent { name: None, data: "[DONE]".to_owned() });
        last
    }
}
