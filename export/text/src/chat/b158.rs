//! The chat template of BitNet b1.58 2B4T, in Rust.
//!
//! ```text
//! joined   User : Ġhello | <|eot_id|>     prompt ends in `Assistant:`, the answer begins with its space
//! apart    User :Ġ | hello | <|eot_id|>   prompt ends in `Assistant:Ġ`
//! ```
//!
//! Other programs render the whole text and encode it: joined. The published template ends its
//! prompt in a bare space, a token that joined training never shows before an answer. Ours leaves
//! that space to the answer, so that every program asks exactly what was trained.

use super::message::{Conversation, Dialogue, Message, Role, strip};
use crate::error::TextError;
use crate::tokenizer::{EOT, Tokenizer};

/// The turns of both forms.
const TURNS: &str = "{% for m in messages %}\
    {{ m.role|capitalize + ': ' + m.content|trim + '<|eot_id|>' }}{% endfor %}";
/// Says which form a stored template is; renderers skip comments.
const APART_COMMENT: &str = "{# headers and contents are encoded apart #}";
/// The template as transformers' copy of 2B4T has it.
const PUBLISHED: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}\
    {% set content = message['role'] | capitalize + ': '+ message['content'] | trim + \
    '<|eot_id|>' %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}\
    {% endif %}";

/// Whether a turn's header and content are encoded as one string or separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderEncoding {
    Joined,
    Apart,
}

impl HeaderEncoding {
    /// The template as Jinja, ending turns with `<|eot_id|>`.
    pub(super) fn source(self) -> String {
        let (comment, prompt) = match self {
            Self::Joined => ("", "Assistant:"),
            Self::Apart => (APART_COMMENT, "Assistant: "),
        };
        let ask = format!("{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}");
        format!("{comment}{{{{ bos_token }}}}{TURNS}{ask}")
    }

    /// The form whose source this is, for a tokenizer that ends turns with `end`.
    pub(super) fn of_source(source: &str, end: &str) -> Option<Self> {
        let forms = [Self::Joined, Self::Apart];
        forms.into_iter().find(|form| with_end(&form.source(), end) == source.trim())
    }

    fn prompt(self) -> &'static str {
        match self {
            Self::Joined => "Assistant:",
            Self::Apart => "Assistant: ",
        }
    }
}

/// `source` with the token that ends turns.
pub(super) fn with_end(source: &str, end: &str) -> String {
    source.replace(EOT[0], end)
}

/// Whether a source is the template as published, or as earlier versions of this crate wrote it.
pub(super) fn is_published(source: &str) -> bool {
    let ask = "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
    let source = source.trim().trim_start_matches("{{ bos_token }}");
    source == PUBLISHED || source == format!("{TURNS}{ask}")
}

pub(super) fn encode(
    form: HeaderEncoding,
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> Result<Dialogue, TextError> {
    let end = turn_end(tokenizer)?;
    let mut dialogue = Dialogue::default();
    dialogue.push(tokenizer.bos(), false);
    for message in &conversation.messages {
        match form {
            HeaderEncoding::Apart => push_apart(&mut dialogue, tokenizer, message)?,
            HeaderEncoding::Joined => push_joined(&mut dialogue, tokenizer, message)?,
        }
        // The model learns to end its own turns, and only those.
        dialogue.push([end], message.is_trained());
    }
    Ok(dialogue)
}

pub(super) fn prompt(
    form: HeaderEncoding,
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> Result<Vec<u32>, TextError> {
    let mut ids = encode(form, tokenizer, conversation)?.ids;
    ids.extend(tokenizer.encode(form.prompt())?);
    Ok(ids)
}

/// The token after each turn.
pub(super) fn turn_end(tokenizer: &Tokenizer) -> Result<u32, TextError> {
    let end = tokenizer.eot().or_else(|| tokenizer.eos());
    end.ok_or_else(|| TextError::NoTurnEnd { path: tokenizer.path().to_owned(), token: EOT[0] })
}

/// Its spelling; `<|eot_id|>` for a tokenizer without one.
pub(super) fn turn_end_spelling(tokenizer: &Tokenizer) -> String {
    let end = turn_end(tokenizer).ok().and_then(|end| tokenizer.special_spelling(end));
    end.unwrap_or(EOT[0]).to_owned()
}

fn header(role: Role) -> &'static str {
    match role {
        Role::System => "System: ",
        Role::User => "User: ",
        Role::Assistant => "Assistant: ",
        Role::Tool => "Tool: ",
    }
}

fn push_apart(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    dialogue.push(tokenizer.encode(header(message.role))?, false);
    let content = tokenizer.encode(strip(&message.content))?;
    dialogue.push(content, message.is_trained());
    Ok(())
}

fn push_joined(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    let header = header(message.role);
    let tokens = tokenizer.encode_with_ranges(&format!("{header}{}", strip(&message.content)))?;
    // The answer begins after the colon, as the prompt ends there.
    let answer = header.trim_end().len();
    for (id, range) in tokens {
        dialogue.push([id], message.is_trained() && range.end > answer);
    }
    Ok(())
}
