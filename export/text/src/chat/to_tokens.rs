//! From the text that a Jinja template rendered to token ids.
//!
//! Contents never pass through the template: it renders placeholders (`placeholder`), and the text
//! around them is the template's own. Only that text may become special tokens.
//!
//! ```text
//! rendered   <s>[user] ⟨0⟩</s>[assistant] ⟨1⟩</s>
//! parts      <s> | "[user] " | message 0 | </s> | "[assistant] " | message 1 | </s>
//! trained                                                          ^^^^^^^^^^^^^^^^
//! ```

use super::jinja::{Jinja, RenderInputs};
use super::message::{Dialogue, Message, Role, strip};
use super::placeholder::{RenderedPart, split_at_placeholders};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// A part of a rendered conversation.
enum ConversationPart<'a> {
    /// Text of the template.
    Text(&'a str),
    /// A special token in that text.
    Special(u32),
    /// The content of a message.
    Content(&'a Message),
}

pub(super) fn encode(
    template: &Jinja,
    tokenizer: &Tokenizer,
    messages: &[Message],
    generation_prompt: bool,
) -> Result<Dialogue, TextError> {
    let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.special_spelling(id));
    let bos = spelling(tokenizer.bos()).unwrap_or_default();
    let eos = spelling(tokenizer.eos()).unwrap_or_default();
    let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
    let rendered = template.render(&roles, RenderInputs { bos, eos, generation_prompt })?;
    let pieces =
        split_at_placeholders(&rendered, &roles).map_err(|what| template.error(None, what))?;
    parts_to_tokens(tokenizer, &parts(tokenizer, &pieces, messages))
}

/// Renders a short conversation with and without the generation prompt. A template that refuses or
/// ignores system messages is still accepted, for conversations without one.
pub(super) fn probe(template: &Jinja) -> Result<(), TextError> {
    let all = [Role::System, Role::User, Role::Assistant, Role::User];
    match probe_with(template, &all) {
        Err(TextError::ChatTemplate { .. }) => probe_with(template, &all[1..]),
        result => result,
    }
}

fn probe_with(template: &Jinja, roles: &[Role]) -> Result<(), TextError> {
    for (generation_prompt, roles) in [(false, &roles[..roles.len() - 1]), (true, roles)] {
        let inputs = RenderInputs { bos: "<s>", eos: "</s>", generation_prompt };
        let rendered = template.render(roles, inputs)?;
        split_at_placeholders(&rendered, roles).map_err(|what| template.error(None, what))?;
    }
    Ok(())
}

/// The special token that this template puts after an answer.
pub(super) fn answer_end(template: &Jinja, tokenizer: &Tokenizer) -> Option<u32> {
    let said = |role| Message { role, content: String::new() };
    let messages = [Role::User, Role::Assistant, Role::User].map(said);
    let Dialogue { ids, trained } = encode(template, tokenizer, &messages, false).ok()?;
    let end = ids.into_iter().zip(trained).rfind(|(_, trained)| *trained)?.0;
    tokenizer.special_spelling(end).map(|_| end)
}

fn parts<'a>(
    tokenizer: &Tokenizer,
    pieces: &[RenderedPart<'a>],
    messages: &'a [Message],
) -> Vec<ConversationPart<'a>> {
    let mut parts = Vec::new();
    for piece in pieces {
        match piece {
            RenderedPart::Literal(text) => push_literal(&mut parts, tokenizer, text),
            RenderedPart::Content(index) => {
                parts.push(ConversationPart::Content(&messages[*index]));
            }
        }
    }
    parts
}

/// Splits template text at special tokens; the longest match wins.
fn push_literal<'a>(parts: &mut Vec<ConversationPart<'a>>, tokenizer: &Tokenizer, text: &'a str) {
    let mut begin = 0;
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        let special = tokenizer.special_tokens().iter();
        let mut special = special.filter(|(spelling, _)| text[at..].starts_with(spelling));
        let Some((spelling, id)) = special.next() else {
            at += letter.len_utf8();
            continue;
        };
        push_text(parts, &text[begin..at]);
        parts.push(ConversationPart::Special(*id));
        at += spelling.len();
        begin = at;
    }
    push_text(parts, &text[begin..]);
}

fn push_text<'a>(parts: &mut Vec<ConversationPart<'a>>, text: &'a str) {
    if !text.is_empty() {
        parts.push(ConversationPart::Text(text));
    }
}

fn parts_to_tokens(
    tokenizer: &Tokenizer,
    parts: &[ConversationPart],
) -> Result<Dialogue, TextError> {
    let mut dialogue = Dialogue::default();
    let begins =
        matches!(parts, [ConversationPart::Special(id), ..] if Some(*id) == tokenizer.bos());
    dialogue.push(tokenizer.bos().filter(|_| !begins), false);
    for (at, part) in parts.iter().enumerate() {
        let trained = is_trained(&parts[..at], &parts[at..]);
        match part {
            ConversationPart::Text(text) => dialogue.push(tokenizer.encode(text)?, trained),
            ConversationPart::Special(id) => dialogue.push([*id], trained),
            ConversationPart::Content(message) => {
                dialogue.push(tokenizer.encode(strip(&message.content))?, trained);
            }
        }
    }
    Ok(dialogue)
}

/// Whether the first part of `here` is trained: an answer, or the special token that ends it with
/// any whitespace in between.
fn is_trained(before: &[ConversationPart], here: &[ConversationPart]) -> bool {
    match (before, here) {
        (_, [ConversationPart::Content(message), ..]) => message.role == Role::Assistant,
        ([.., last], [ConversationPart::Special(_), ..]) if is_answer(last) => true,
        ([.., last], [ConversationPart::Text(text), ConversationPart::Special(_), ..])
        | ([.., last, ConversationPart::Text(text)], [ConversationPart::Special(_), ..]) => {
            is_answer(last) && strip(text).is_empty()
        }
        _ => false,
    }
}

fn is_answer(part: &ConversationPart) -> bool {
    matches!(part, ConversationPart::Content(message) if message.role == Role::Assistant)
}
