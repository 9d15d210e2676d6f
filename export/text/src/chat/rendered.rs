//! What a Jinja template rendered, as token ids. The engine lives in `jinja`, the cutting of its
//! result in `cut`.

use super::cut::{Piece, pieces};
use super::jinja::{Jinja, Terms};
use super::{Dialogue, Message, Speaker, strip};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// What a rendered conversation is made of.
enum Part<'a> {
    /// The template's words.
    Text(&'a str),
    /// A special token among them.
    Special(u32),
    /// What somebody said.
    Said(&'a Message),
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
    let speakers: Vec<Speaker> = messages.iter().map(|message| message.speaker).collect();
    let rendered = template.render(&speakers, Terms { bos, eos, generation_prompt })?;
    let pieces = pieces(&rendered, &speakers).map_err(|what| template.error(None, what))?;
    parts_to_tokens(tokenizer, &parts(tokenizer, &pieces, messages))
}

/// Renders a short conversation with and without the prompt for an answer. A template that
/// refuses or ignores the system's words still serves conversations that have none.
pub(super) fn probe(template: &Jinja) -> Result<(), TextError> {
    let all = [Speaker::System, Speaker::User, Speaker::Assistant, Speaker::User];
    match probe_with(template, &all) {
        Err(TextError::ChatTemplate { .. }) => probe_with(template, &all[1..]),
        result => result,
    }
}

fn probe_with(template: &Jinja, speakers: &[Speaker]) -> Result<(), TextError> {
    for (generation_prompt, speakers) in
        [(false, &speakers[..speakers.len() - 1]), (true, speakers)]
    {
        let terms = Terms { bos: "<s>", eos: "</s>", generation_prompt };
        let rendered = template.render(speakers, terms)?;
        pieces(&rendered, speakers).map_err(|what| template.error(None, what))?;
    }
    Ok(())
}

/// The special token that this template puts after an answer.
pub(super) fn answer_end(template: &Jinja, tokenizer: &Tokenizer) -> Option<u32> {
    let said = |speaker| Message { speaker, content: String::new() };
    let messages = [Speaker::User, Speaker::Assistant, Speaker::User].map(said);
    let Dialogue { ids, trained } = encode(template, tokenizer, &messages, false).ok()?;
    let end = ids.into_iter().zip(trained).rfind(|(_, trained)| *trained)?.0;
    tokenizer.special_spelling(end).map(|_| end)
}

fn parts<'a>(
    tokenizer: &Tokenizer,
    pieces: &[Piece<'a>],
    messages: &'a [Message],
) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Literal(text) => push_literal(&mut parts, tokenizer, text),
            Piece::Content(index) => parts.push(Part::Said(&messages[*index])),
        }
    }
    parts
}

/// Cuts the template's words at special tokens, of which the longest wins.
fn push_literal<'a>(parts: &mut Vec<Part<'a>>, tokenizer: &Tokenizer, text: &'a str) {
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
        parts.push(Part::Special(*id));
        at += spelling.len();
        begin = at;
    }
    push_text(parts, &text[begin..]);
}

fn push_text<'a>(parts: &mut Vec<Part<'a>>, text: &'a str) {
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
}

fn parts_to_tokens(tokenizer: &Tokenizer, parts: &[Part]) -> Result<Dialogue, TextError> {
    let mut dialogue = Dialogue::default();
    let begins = matches!(parts, [Part::Special(id), ..] if Some(*id) == tokenizer.bos());
    dialogue.push(tokenizer.bos().filter(|_| !begins), false);
    for (at, part) in parts.iter().enumerate() {
        let trained = is_trained(&parts[..at], &parts[at..]);
        match part {
            Part::Text(text) => dialogue.push(tokenizer.encode(text)?, trained),
            Part::Special(id) => dialogue.push([*id], trained),
            Part::Said(message) => {
                dialogue.push(tokenizer.encode(strip(&message.content))?, trained);
            }
        }
    }
    Ok(dialogue)
}

/// Whether the first of `here` is the assistant's, or leads from its content to the end of its
/// turn: a special token, with nothing but whitespace before it.
fn is_trained(before: &[Part], here: &[Part]) -> bool {
    match (before, here) {
        (_, [Part::Said(message), ..]) => message.speaker == Speaker::Assistant,
        ([.., last], [Part::Special(_), ..]) if is_answer(last) => true,
        ([.., last], [Part::Text(text), Part::Special(_), ..])
        | ([.., last, Part::Text(text)], [Part::Special(_), ..]) => {
            is_answer(last) && strip(text).is_empty()
        }
        _ => false,
    }
}

fn is_answer(part: &Part) -> bool {
    matches!(part, Part::Said(message) if message.speaker == Speaker::Assistant)
}
