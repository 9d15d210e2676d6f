//! The template of 2B4T, in Rust. Jinja templates live in `jinja`.

use super::{Dialogue, Message, Speaker, strip};
use crate::error::TextError;
use crate::tokenizer::{EOT, Tokenizer};

/// The same as Jinja.
pub(super) const SOURCE: &str = concat!(
    "{% for m in messages %}",
    "{{ m.role|capitalize + ': ' + m.content|trim + '<|eot_id|>' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
);

/// Whether a turn's header and content become tokens one by one or as one string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Apart,
    Joined,
}

pub(super) fn encode(
    cut: Cut,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Dialogue, TextError> {
    let end = turn_end(tokenizer)?;
    let mut dialogue = Dialogue::default();
    dialogue.push(tokenizer.bos(), false);
    for message in messages {
        let trained = message.speaker == Speaker::Assistant;
        match cut {
            Cut::Apart => push_apart(&mut dialogue, tokenizer, message)?,
            Cut::Joined => push_joined(&mut dialogue, tokenizer, message)?,
        }
        dialogue.push([end], trained);
    }
    Ok(dialogue)
}

pub(super) fn prompt(
    cut: Cut,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<u32>, TextError> {
    let mut ids = encode(cut, tokenizer, messages)?.ids;
    ids.extend(tokenizer.encode(header(Speaker::Assistant))?);
    Ok(ids)
}

/// The token after each turn.
pub(super) fn turn_end(tokenizer: &Tokenizer) -> Result<u32, TextError> {
    let end = tokenizer.eot().or_else(|| tokenizer.eos());
    end.ok_or_else(|| TextError::NoTurnEnd { path: tokenizer.path().to_owned(), token: EOT[0] })
}

fn header(speaker: Speaker) -> &'static str {
    match speaker {
        Speaker::System => "System: ",
        Speaker::User => "User: ",
        Speaker::Assistant => "Assistant: ",
    }
}

fn push_apart(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    dialogue.push(tokenizer.encode(header(message.speaker))?, false);
    let content = tokenizer.encode(strip(&message.content))?;
    dialogue.push(content, message.speaker == Speaker::Assistant);
    Ok(())
}

fn push_joined(
    dialogue: &mut Dialogue,
    tokenizer: &Tokenizer,
    message: &Message,
) -> Result<(), TextError> {
    let header = header(message.speaker);
    let tokens = tokenizer.encode_with_ends(&format!("{header}{}", strip(&message.content)))?;
    // A token that reaches into the content says some of it, whatever it began with.
    let begin = tokens.iter().position(|(_, end)| *end > header.len()).unwrap_or(tokens.len());
    let ids = |tokens: &[(u32, usize)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    dialogue.push(ids(&tokens[..begin]), false);
    dialogue.push(ids(&tokens[begin..]), message.speaker == Speaker::Assistant);
    Ok(())
}
