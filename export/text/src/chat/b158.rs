//! The chat template of BitNet b1.58 2B4T, in Rust.
//!
//! Header and content are encoded separately, so a conversation's prompt is always a prefix of the
//! same conversation with an answer:
//!
//! ```text
//! separate   User :Ġ | hello | <|eot_id|>      prompt ends in `Assistant:Ġ`, then the answer
//! joined     User : | Ġhello | <|eot_id|>      the space merges into the first word
//! ```

use super::message::{Dialogue, Message, Role, strip};
use crate::error::TextError;
use crate::tokenizer::{EOT, Tokenizer};

/// The same template as Jinja source.
pub(super) const SOURCE: &str = concat!(
    "{% for m in messages %}",
    "{{ m.role|capitalize + ': ' + m.content|trim + '<|eot_id|>' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
);

/// Whether a turn's header and content are encoded separately or as one string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderEncoding {
    Separate,
    Joined,
}

pub(super) fn encode(
    encoding: HeaderEncoding,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Dialogue, TextError> {
    let end = turn_end(tokenizer)?;
    let mut dialogue = Dialogue::default();
    dialogue.push(tokenizer.bos(), false);
    for message in messages {
        let trained = message.role == Role::Assistant;
        match encoding {
            HeaderEncoding::Separate => push_separate(&mut dialogue, tokenizer, message)?,
            HeaderEncoding::Joined => push_joined(&mut dialogue, tokenizer, message)?,
        }
        dialogue.push([end], trained);
    }
    Ok(dialogue)
}

pub(super) fn prompt(
    encoding: HeaderEncoding,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<u32>, TextError> {
    let mut ids = encode(encoding, tokenizer, messages)?.ids;
    ids.extend(tokenizer.encode(header(Role::Assistant))?);
    Ok(ids)
}

/// The token after each turn.
pub(super) fn turn_end(tokenizer: &Tokenizer) -> Result<u32, TextError> {
    let end = tokenizer.eot().or_else(|| tokenizer.eos());
    end.ok_or_else(|| TextError::NoTurnEnd { path: tokenizer.path().to_owned(), token: EOT[0] })
}

fn header(role: Role) -> &'static str {
    match role {
        Role::System => "System: ",
        Role::User => "User: ",
        Role::Assistant => "Assistant: ",
    }
}

fn push_separate(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    dialogue.push(tokenizer.encode(header(message.role))?, false);
    let content = tokenizer.encode(strip(&message.content))?;
    dialogue.push(content, message.role == Role::Assistant);
    Ok(())
}

fn push_joined(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    let header = header(message.role);
    let tokens = tokenizer.encode_with_ends(&format!("{header}{}", strip(&message.content)))?;
    // A token that reaches into the content says some of it, whatever it began with.
    let begin = tokens.iter().position(|(_, end)| *end > header.len()).unwrap_or(tokens.len());
    let ids = |tokens: &[(u32, usize)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    dialogue.push(ids(&tokens[..begin]), false);
    dialogue.push(ids(&tokens[begin..]), message.role == Role::Assistant);
    Ok(())
}
