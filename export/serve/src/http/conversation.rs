//! From a conversation to its prompt, and to what the answer must be.

use std::sync::Arc;

use bitnet_text::{Conversation, Message, Role};

use super::error::ApiError;
use super::state::AppState;
use super::tool_form::{self, ToolForm, for_template};
use super::tools::Tools;
use crate::grammar::AnswerGrammar;

/// The prompt of a conversation; `name` is its field.
pub(crate) fn prompt(
    state: &AppState,
    conversation: &Conversation,
    name: &str,
) -> Result<Arc<[u32]>, ApiError> {
    let conversation = for_template(&state.template, conversation);
    let ids = state.template.prompt(&state.tokenizer, &conversation);
    Ok(ids.map_err(|error| ApiError::field(name, error.to_string()))?.into())
}

/// The same where an answer may have begun: as at Anthropic's, the text of a last message of the assistant is
/// what the model goes on from.
pub(crate) fn continued_prompt(
    state: &AppState,
    mut conversation: Conversation,
    name: &str,
) -> Result<Arc<[u32]>, ApiError> {
    let is_begun = |last: &mut Message| {
        last.role == Role::Assistant && last.fields.is_empty() && !last.content.is_empty()
    };
    let Some(begun) = conversation.messages.pop_if(is_begun) else {
        return prompt(state, &conversation, name);
    };
    let ids = prompt(state, &conversation, name)?;
    let begun = format!("{}{}", state.template.before_answer(), begun.content);
    let begun = state.tokenizer.encode_behind(ids.last().copied(), &begun);
    let begun = begun.map_err(|error| ApiError::field(name, error.to_string()))?;
    Ok([&*ids, &*begun].concat().into())
}

/// How calls are written and what answers must be: by the functions that may be called, or by the
/// format in the field `name`, but not by both.
pub(crate) fn bind(
    state: &AppState,
    tools: &Tools,
    format: Option<AnswerGrammar>,
    name: &str,
) -> Result<(Option<ToolForm>, Option<AnswerGrammar>), ApiError> {
    match (tool_form::bind(&state.template, &state.grammars, tools)?, format) {
        (Some(_), Some(_)) => Err(ApiError::field(name, "is not supported together with tools")),
        (Some((form, grammar)), None) => Ok((Some(form), Some(grammar))),
        (None, format) => Ok((None, format)),
    }
}
