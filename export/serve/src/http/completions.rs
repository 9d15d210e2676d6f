//! `POST /v1/completions`: prompts as text or ids, continued, and scored on demand.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::{
    Answered, StreamEvent, StreamFormat, TokenUsage, collect, fingerprint, finish_reason, stream,
};
use super::body::JsonBody;
use super::error::ApiError;
use super::fields::{BodyFields, expected};
use super::logprobs;
use super::sampling::AnswerSettings;
use super::state::{AnswerRequest, AppState, now};
use crate::inference::{JobEvent, RequestId, ScoredToken};
use crate::options::{MOST_LOGPROBS, MOST_PROMPTS};

/// As OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// A request, read.
struct Completion {
    question: AnswerRequest,
    /// The prompts as text, where they are repeated.
    echo: Option<Vec<String>>,
    /// Tokens at the beginning of each prompt that the client does not see.
    hidden: Vec<usize>,
}

/// The handler.
pub(crate) async fn completions(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    let completion = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&completion.question)?;
    let count = completion.question.prompts.len() * completion.question.settings.choices;
    let format = CompletionFormat::new(&state, request, completion);
    if format.completion.question.settings.stream {
        return Ok(stream(events, count, format));
    }
    let answers = collect(events, count).await?;
    Ok(Json(format.whole(&answers)).into_response())
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<Completion, ApiError> {
    state.check_model(&mut fields)?;
    let prompts = read_prompts(state, fields.require("prompt")?)?;
    let settings = AnswerSettings::read(&mut fields, state.vocab_size)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let top = fields.count("logprobs", 0..=MOST_LOGPROBS)?;
    // An answer of no tokens makes sense only where the prompt is echoed: evaluation tools ask so
    // for its scores.
    let shortest = u64::from(!echo);
    let max_tokens = fields.count("max_tokens", shortest..=1 << 32)?.unwrap_or(DEFAULT_TOKENS);
    // `best_of` equal to `n` asks for nothing more.
    fields.only("best_of", &[settings.choices.into()])?;
    fields.only("suffix", &["".into()])?;
    fields.finish()?;
    let texts = echo.then(|| prompts.iter().map(|ids| state.tokenizer.decode(ids)).collect());
    let bos: Vec<_> = prompts.iter().map(|prompt| state.hidden_bos(prompt)).collect();
    // The model needs its BOS before a prompt; the client did not write it, and does not see it in
    // the scores.
    let with_bos = |(bos, ids): (&Option<u32>, Vec<u32>)| bos.iter().copied().chain(ids).collect();
    let question = AnswerRequest {
        prompts: bos.iter().zip(prompts).map(with_bos).collect(),
        settings,
        max_tokens: Some(max_tokens),
        stop_ids: Arc::clone(&state.stop_ids),
        top,
        scores_prompt: echo && top.is_some(),
        grammar: None,
        calls: None,
    };
    Ok(Completion {
        question,
        echo: texts,
        hidden: bos.iter().map(|bos| usize::from(bos.is_some())).collect(),
    })
}

/// A string, strings, ids, or lists of ids.
fn read_prompts(state: &AppState, value: Value) -> Result<Vec<Vec<u32>>, ApiError> {
    let wanted = "a string, a list of strings, a list of token ids, or a list of such lists";
    let list = match value {
        // A list of numbers is one prompt of token ids; a list of anything else is a list of
        // prompts.
        Value::Array(list) if list.first().is_some_and(|first| !first.is_number()) => list,
        one => vec![one],
    };
    if list.len() > MOST_PROMPTS {
        let message = format!("expected at most {MOST_PROMPTS} prompts, got {}", list.len());
        return Err(ApiError::field("prompt", message));
    }
    let prompt = |value: Value| match &value {
        Value::String(text) => state
            .tokenizer
            .encode(text)
            .map_err(|error| ApiError::field("prompt", error.to_string())),
        Value::Array(ids) => {
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
            ids.ok_or_else(|| expected("prompt", wanted, &value))
        }
        _ => Err(expected("prompt", wanted, &value)),
    };
    list.into_iter().map(prompt).collect()
}

/// Writes answers as OpenAI's text completions.
struct CompletionFormat {
    state: Arc<AppState>,
    completion: Completion,
    id: String,
    created: u64,
    usage: TokenUsage,
    /// Characters that each answer has so far.
    offsets: Vec<usize>,
}

impl CompletionFormat {
    fn new(state: &Arc<AppState>, request: RequestId, completion: Completion) -> Self {
        let choices = completion.question.settings.choices;
        Self {
            state: Arc::clone(state),
            id: format!("cmpl-{}", request.number()),
            created: now(),
            usage: TokenUsage::of(&completion.question.prompts),
            offsets: vec![0; completion.question.prompts.len() * choices],
            completion,
        }
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.state.model, "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    fn prompt_of(&self, choice: usize) -> usize {
        choice / self.completion.question.settings.choices
    }

    fn echo_of(&self, choice: usize) -> &str {
        let texts = self.completion.echo.as_ref();
        texts.map_or("", |texts| texts[self.prompt_of(choice)].as_str())
    }

    /// The prompt's tokens without the one that was put before them.
    fn visible<'a>(&self, choice: usize, prompt: &'a [ScoredToken]) -> &'a [ScoredToken] {
        prompt.get(self.completion.hidden[self.prompt_of(choice)]..).unwrap_or_default()
    }

    fn whole(mut self, answers: &[Answered]) -> Value {
        let mut choices = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            let Some(end) = &answer.end else { continue };
            self.usage.add(self.prompt_of(index), end);
            let tokens = self.visible(index, &answer.prompt).iter().chain(&answer.tokens);
            let lists = || logprobs::lists(&self.state.tokenizer, tokens, 0);
            choices.push(json!({
                "index": index, "text": format!("{}{}", self.echo_of(index), answer.text),
                "logprobs": self.completion.question.top.map(|_| lists()),
                "finish_reason": finish_reason(end.reason),
            }));
        }
        let mut object = self.object(choices.into());
        object["usage"] = self.usage.json();
        object
    }

    fn chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Value,
        reason: Option<&str>,
    ) -> StreamEvent {
        let choice = json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason,
        });
        let mut object = self.object(json!([choice]));
        if self.completion.question.settings.stream_usage {
            // Only the last event has it; OpenAI's others say so.
            object["usage"] = Value::Null;
        }
        StreamEvent::data(&object)
    }

    fn lists(&mut self, choice: usize, tokens: &[ScoredToken]) -> Value {
        if self.completion.question.top.is_none() {
            return Value::Null;
        }
        let lists = logprobs::lists(&self.state.tokenizer, tokens, self.offsets[choice]);
        let texts = lists["tokens"].as_array().into_iter().flatten().filter_map(Value::as_str);
        // Characters, as OpenAI counts `text_offset`; they go on over the events of a stream.
        self.offsets[choice] += texts.map(|text| text.chars().count()).sum::<usize>();
        lists
    }
}

impl StreamFormat for CompletionFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        // An echo with scores waits for them: it is sent with the event that brings them.
        if self.completion.echo.is_none() || self.completion.question.scores_prompt {
            return Vec::new();
        }
        let all = 0..self.offsets.len();
        all.map(|index| self.chunk(index, self.echo_of(index), Value::Null, None)).collect()
    }

    fn next(&mut self, choice: usize, event: JobEvent) -> Vec<StreamEvent> {
        match event {
            JobEvent::Prompt(prompt) => {
                let visible = self.visible(choice, &prompt).to_vec();
                let lists = self.lists(choice, &visible);
                vec![self.chunk(choice, self.echo_of(choice), lists, None)]
            }
            JobEvent::Token { text, token } => {
                let lists = self.lists(choice, &[token]);
                if text.is_empty() && lists.is_null() {
                    return Vec::new();
                }
                vec![self.chunk(choice, &text, lists, None)]
            }
            JobEvent::End(end) => {
                self.usage.add(self.prompt_of(choice), &end);
                vec![self.chunk(choice, &end.text, Value::Null, Some(finish_reason(end.reason)))]
            }
            JobEvent::Failed => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<StreamEvent> {
        let mut last = Vec::new();
        if self.completion.question.settings.stream_usage {
            let mut object = self.object(json!([]));
            object["usage"] = self.usage.json();
            last.push(StreamEvent::data(&object));
        }
        last.push(StreamEvent { name: None, data: "[DONE]".to_owned() });
        last
    }
}
