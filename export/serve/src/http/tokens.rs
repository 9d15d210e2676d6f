//! Text to ids and back, and what programs ask about the tokenizer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::task::block_in_place;

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
    // A text may be as long as a body; other requests go on.
    let ids = match state.tokenizer.special_id(&text) {
        Some(id) => vec![id],
        None => block_in_place(|| state.tokenizer.encode(&text)).map_err(refused)?,
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
    let text = block_in_place(|| state.tokenizer.decode_with_special(&ids));
    Ok(Json(json!({"prompt": text})))
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
    // A template may run for seconds; other requests go on.
    let ids = block_in_place(|| prompt(&state, &conversation, "messages"))?;
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

#[cfg(test)]
mod tests {
    use bitnet_text::ChatTemplate;

    use super::*;
    use crate::http::fields::BodyFields;
    use crate::options::ServedModel;
    use crate::server::start;
    use crate::tests::{options, served};

    /// Takes a million steps for a message that says so.
    const SLOW: &str = "{% for message in messages %}{{ message.content }}\
        {% if 'slow' in message.content %}{% for a in range(9999) %}{% for b in range(9999) %}\
        {{ '' }}{% endfor %}{% endfor %}{% endif %}{% endfor %}";

    #[test]
    fn a_template_that_takes_its_time_holds_up_nobody() {
        let template = ChatTemplate::jinja("slow.jinja".as_ref(), SLOW).unwrap();
        let served = ServedModel { template, ..served(256) };
        let (state, _stopped) = start(served, &options()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let fields = json!({"messages": [{"role": "user", "content": "slow"}]});
        let fields = BodyFields::new(fields.as_object().unwrap().clone());
        let (begins, begun) = std::sync::mpsc::channel();
        let slow = runtime.spawn(async move {
            let _ = begins.send(());
            apply_template(State(state), JsonBody(fields)).await.is_err()
        });
        begun.recv().unwrap();
        runtime.block_on(runtime.spawn(async {})).unwrap();
        assert!(!slow.is_finished(), "the only worker did something else meanwhile");
        assert!(runtime.block_on(slow).unwrap(), "a template without end is refused");
    }
}
