//! Log-probabilities in OpenAI's two forms.
//!
//! A number is written as the shortest text that reads back as the same f64. A token's own number
//! and the same token's among the most likely are one value, so programs may compare them exactly.

use bitnet_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::inference::ScoredToken;

/// The form of `/v1/completions`: four lists, one entry a token.
pub(crate) fn lists<'a>(
    tokenizer: &Tokenizer,
    tokens: impl IntoIterator<Item = &'a ScoredToken>,
    mut offset: usize,
) -> Value {
    let (mut texts, mut logprobs) = (Vec::new(), Vec::new());
    let (mut tops, mut offsets) = (Vec::new(), Vec::new());
    for token in tokens {
        let text = token_text(tokenizer, token.id);
        offsets.push(offset);
        offset += text.chars().count();
        texts.push(text);
        logprobs.push(token.logprob);
        tops.push(token.logprob.map(|logprob| top_map(tokenizer, token, logprob)));
    }
    json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}

/// Where several tokens have one text, the most likely stays.
fn top_map(tokenizer: &Tokenizer, token: &ScoredToken, logprob: f64) -> Map<String, Value> {
    let mut map = Map::new();
    // The chosen token comes last: it is added where it is not among the most likely.
    for (id, logprob) in token.top.iter().copied().chain([(token.id, logprob)]) {
        map.entry(token_text(tokenizer, id)).or_insert_with(|| logprob.into());
    }
    map
}

/// The form of `/v1/chat/completions`: one object a token.
pub(crate) fn objects<'a>(
    tokenizer: &Tokenizer,
    tokens: impl IntoIterator<Item = &'a ScoredToken>,
) -> Value {
    let object = |id, logprob: Option<f64>| {
        let bytes = tokenizer.token_bytes(id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
    };
    let all = tokens.into_iter().map(|token| {
        let mut entry = object(token.id, token.logprob);
        let top = token.top.iter().map(|(id, logprob)| object(*id, Some(*logprob)));
        entry["top_logprobs"] = top.collect();
        entry
    });
    json!({"content": all.collect::<Vec<_>>()})
}

/// What a token stands for; a part of a character as OpenAI spells it, `bytes:\xe2\x80`.
fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    use std::fmt::Write;
    match String::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => text,
        Err(error) => error.as_bytes().iter().fold("bytes:".to_owned(), |mut text, byte| {
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    }
}
