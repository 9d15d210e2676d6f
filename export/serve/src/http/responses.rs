//! `POST /v1/responses`: OpenAI's newer form, for text and calls. Nothing is stored between
//! requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer::{collect, stream};
use super::body::JsonBody;
use super::conversation::{bind, prompt};
use super::error::ApiError;
use super::fields::BodyFields;
use super::response_events::ResponseFormat;
use super::response_format::read_text_format;
use super::response_input::read_input;
use super::sampling::{AnswerSettings, read_notes, read_sampler};
use super::state::{AnswerRequest, AppState};
use super::tools::Tools;

/// What a response repeats of its request.
const ECHOED: [&str; 6] =
    ["instructions", "metadata", "parallel_tool_calls", "text", "tool_choice", "tools"];

/// The handler.
pub(crate) async fn responses(
    State(state): State<Arc<AppState>>,
    JsonBody(fields): JsonBody,
) -> Result<Response, ApiError> {
    let echo = fields.copies(&ECHOED);
    let question = tokio::task::block_in_place(|| read(&state, fields))?;
    let (request, events) = state.ask(&question)?;
    let mut format = ResponseFormat::new(&state, request, &question, echo);
    if question.settings.stream {
        return Ok(stream(events, 1, format));
    }
    let answer = collect(events, 1).await?.pop().ok_or_else(ApiError::internal)?;
    format.take_whole(&answer.text);
    Ok(Json(format.response(answer.end.as_ref())).into_response())
}

fn read(state: &AppState, mut fields: BodyFields) -> Result<AnswerRequest, ApiError> {
    state.check_model(&mut fields)?;
    let mut conversation = read_input(&mut fields)?;
    let tools = Tools::of_response(&mut fields)?;
    conversation.tools = tools.json();
    let settings = AnswerSettings {
        sampler: read_sampler(&mut fields, state.vocab_size)?,
        stop_texts: Vec::new(),
        choices: 1,
        stream: fields.flag("stream")?.unwrap_or(false),
        stream_usage: true,
    };
    let max_tokens = fields.count("max_output_tokens", 1..=1 << 32)?;
    let format = read_text_format(state, &mut fields)?;
    let (calls, grammar) = bind(state, &tools, format, "text.format")?;
    read_notes(&mut fields)?;
    for (name, neutral) in [
        ("store", json!([false])),
        ("background", json!([false])),
        ("truncation", json!(["disabled"])),
        ("service_tier", json!(["auto", "default"])),
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
        calls,
    })
}
