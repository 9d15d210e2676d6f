//! `POST /v1/chat/completions`: the next turn of a conversation.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bitnet_text::Conversation;
use serde_json::{Value, json};

use super::answer::{
    Answered, StreamEvent, StreamFormat, TokenUsage, collect, fingerprint, finish_reason, stream,
};
use super::body::JsonBody;
use super::error::ApiError;
use super::fields::BodyFields;
use super::logprobs;
use super::messages_in::read_messages;
use super::response_format::read_response_format;
use super::sampling::AnswerSettings;
use super::state::{AnswerRequest, AppState, now};
use crate::inference::{JobEvent, RequestId};
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
    let conversation = read_messages("messages", fields.require("messages")?)?;
    let settings = AnswerSettings::read(&mut fields, state.vocab_size)?;
    let top = read_logprobs(&mut fields)?;
    let most = fields.count("max_tokens", 1..=1 << 32)?;
    let max_tokens = fields.count("max_completion_tokens", 1..=1 << 32)?.or(most);
    let grammar = read_response_format(state, &mut fields)?;
    fields.only("tools", &[json!([])])?;
    fields.only("tool_choice", &["none".into(), "auto".into()])?;
    fields.only("parallel_tool_calls", &[true.into(), false.into()])?;
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
    })
}

/// The prompt of a conversation.
pub(crate) fn prompt(
    state: &AppState,
    conversation: &Conversation,
    name: &str,
) -> Result<Arc<[u32]>, ApiError> {
    let ids = state.template.prompt(&state.tokenizer, conversation);
    Ok(ids.map_err(|error| ApiError::field(name, error.to_string()))?.into())
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
    id: String,
    created: u64,
    usage: TokenUsage,
    /// Whether log-probabilities were asked for.
    scored: bool,
    stream_usage: bool,
    /// Whether each answer said something: the space that parts it from the header is left out.
    begun: Vec<bool>,
}

impl ChatFormat {
    fn new(state: &Arc<AppState>, request: RequestId, question: &AnswerRequest) -> Self {
        let prompt = question.prompts.iter().map(|prompt| prompt.len()).sum();
        Self {
            state: Arc::clone(state),
            id: format!("chatcmpl-{}", request.number()),
            created: now(),
            usage: TokenUsage { prompt, ..TokenUsage::default() },
            scored: question.top.is_some(),
            stream_usage: question.settings.stream_usage,
            begun: vec![false; question.settings.choices],
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created,
            "model": self.state.model, "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    fn whole(mut self, answers: &[Answered]) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let Some(end) = &answer.end else { continue };
            self.usage.add(end);
            let scored = || logprobs::objects(&self.state.tokenizer, &answer.tokens);
            let content = answer.text.trim_start();
            choices.push(json!({
                "index": index,
                "message": {"role": "assistant", "content": content, "refusal": null},
                "logprobs": self.scored.then(scored),
                "finish_reason": finish_reason(end.reason),
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
        StreamEvent::data(&self.object("chat.completion.chunk", json!([choice])))
    }

    /// A piece of an answer without the space at its very beginning.
    fn said<'a>(&mut self, choice: usize, text: &'a str) -> &'a str {
        let text = if self.begun[choice] { text } else { text.trim_start() };
        self.begun[choice] |= !text.is_empty();
        text
    }
}

impl StreamFormat for ChatFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        let role = json!({"role": "assistant", "content": ""});
        let all = 0..self.begun.len();
        all.map(|index| self.chunk(index, role.clone(), Value::Null, None)).collect()
    }

    fn next(&mut self, choice: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Token { text, token } => {
                let text = self.said(choice, &text);
                let scored = || logprobs::objects(&self.state.tokenizer, [&token]);
                let scored = if self.scored { scored() } else { Value::Null };
                if text.is_empty() && scored.is_null() {
                    return Vec::new();
                }
                vec![self.chunk(choice, json!({"content": text}), scored, None)]
            }
            JobEvent::End(end) => {
                self.usage.add(&end);
                let text = self.said(choice, &end.text);
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                vec![self.chunk(choice, delta, Value::Null, Some(finish_reason(end.reason)))]
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
