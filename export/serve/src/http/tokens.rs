//! Text to ids and back, and what programs ask about the tokenizer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::conversation::prompt;
use super::error::ApiError;
use super::fields::expected;
use super::messages_in::read_messages;
use super::state::AppState;
use super::tools::Tools;

/// `POST /tokenize`. A text that is the spelling of one special token is that token, as programs
/// ask for `eos_token`; anywhere else such a spelling stays text.
pub(crate) async fn tokenize(
    State(state): State<Arc<AppState>>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Value>, ApiError> {
    state.check_model(&mut fields)?;
    let (prompt, content) = (fields.text("prompt")?, fields.text("content")?);
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    if prompt.is_some() && content.is_some() {
        return Err(fields.error("content", "expected only without prompt"));
    }
    fields.finish()?;
    let missing = || ApiError::field("prompt", "is missing; expected a string");
    let text = prompt.or(content).ok_or_else(missing)?;
    let refused = |error: bitnet_text::TextError| ApiError::field("prompt", error.to_string());
    let ids = match state.tokenizer.special_id(&text) {
        Some(id) => vec![id],
        None => state.tokenizer.encode(&text).map_err(refused)?,
    };
    let bos = state.hidden_bos(&ids).filter(|_| special);
    let ids: Vec<u32> = bos.into_iter().chain(ids).collect();
    Ok(Json(json!({"count": ids.len(), "max_model_len": state.context, "tokens": ids})))
}

/// `POST /detokenize`. Special tokens are spelled.
pub(crate) async fn detokenize(
    State(state): State<Arc<AppState>>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Value>, ApiError> {
    state.check_model(&mut fields)?;
    let value = fields.require("tokens")?;
    fields.finish()?;
    let limit = state.vocab_size;
    let id = |id: &Value| id.as_u64().filter(|id| *id < limit as u64).map(|id| id as u32);
    let ids = value.as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<u32>>>());
    let wanted = format!("a list of token ids below {limit}");
    let ids = ids.ok_or_else(|| expected("tokens", &wanted, &value))?;
    Ok(Json(json!({"prompt": state.tokenizer.decode_with_special(&ids)})))
}

/// `POST /apply-template`: the prompt that a conversation becomes.
pub(crate) async fn apply_template(
    State(state): State<Arc<AppState>>,
    JsonBody(mut fields): JsonBody,
) -> Result<Json<Value>, ApiError> {
    state.check_model(&mut fields)?;
    let mut conversation = read_messages("messages", fields.require("messages")?)?;
    conversation.tools = Tools::of_chat(&mut fields)?.json();
    fields.finish()?;
    let ids = prompt(&state, &conversation, "messages")?;
    Ok(Json(json!({"prompt": state.tokenizer.decode_with_special(&ids), "tokens": *ids})))
}

/// `GET /tokenizer_info`: what `tokenizer_config.json` of the model would say.
pub(crate) async fn tokenizer_info(
    State(state): State<Arc<AppState>>,
) -> Result<Json<Value>, ApiError> {
    let config = state.tokenizer.hf_config(Some(&state.template), state.context);
    let config = config.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let mut config = config.ok_or_else(ApiError::internal)?;
    if let Some(all) = config.as_object_mut() {
        all.entry("pad_token").or_insert(Value::Null);
    }
    Ok(Json(config))
}
