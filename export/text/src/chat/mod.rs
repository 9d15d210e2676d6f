//! Conversations as token ids, with the tokens that are trained. Training and the chat program use
//! the same code, so their prompts cannot differ.
//!
//! `b158` is the template of 2B4T. For Jinja templates, `jinja` renders, `placeholder` splits the
//! result, `to_tokens` encodes it.

mod b158;
mod jinja;
mod message;
mod placeholder;
mod to_tokens;

use std::path::Path;

use crate::error::TextError;
use crate::tokenizer::{EOT, Tokenizer};
pub use message::{Dialogue, Message, Role};

use b158::HeaderEncoding;
use jinja::Jinja;

/// How a conversation is written in tokens.
///
/// With any template, message contents never become special tokens, even where they spell one, and
/// surrounding whitespace (as Python's `str.strip` defines it) is dropped.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    kind: TemplateKind,
}

#[derive(Clone, Debug)]
enum TemplateKind {
    B158(HeaderEncoding),
    Jinja(Jinja),
}

impl ChatTemplate {
    /// The template of `BitNet` b1.58 2B4T: `System: …<|eot_id|>User: …<|eot_id|>Assistant: …`,
    /// header and content encoded separately.
    ///
    /// A tokenizer without `<|eot_id|>` ends turns with its end-of-text token.
    pub fn b158() -> Self {
        Self { kind: TemplateKind::B158(HeaderEncoding::Separate) }
    }

    /// The same text, header and content of a turn encoded as one string: the ids that
    /// `apply_chat_template` of transformers gives.
    ///
    /// The space that ends a header then often joins the first word (`Ġhello`), a token that
    /// counts as content. [`ChatTemplate::prompt`] still ends in a bare space, so with this
    /// template it is not a prefix of what was trained.
    pub fn b158_joined() -> Self {
        Self { kind: TemplateKind::B158(HeaderEncoding::Joined) }
    }

    /// A Jinja template, such as the `chat_template` of a Hugging Face repository; `path` is only
    /// for messages. It is compiled and tested on a short conversation.
    ///
    /// The template never sees the contents. It gets a placeholder for each and must render every
    /// placeholder once, unchanged and in order. Its own text may name special tokens (their
    /// `lstrip` and `rstrip` are not applied); that text and every content are encoded separately.
    /// A template that does not terminate or writes too much ends in an error. It cannot include
    /// files or reach anything outside.
    ///
    /// Trained are the assistant's contents and the special token right after each. Whitespace
    /// that the template puts between the two is trained as well: the model has to generate it to
    /// reach the end.
    pub fn jinja(path: &Path, source: &str) -> Result<Self, TextError> {
        let template = Jinja::new(path, source)?;
        to_tokens::probe(&template)?;
        Ok(Self { kind: TemplateKind::Jinja(template) })
    }

    /// Identifies the template in fingerprints: its kind and its source.
    pub fn identity(&self) -> String {
        let kind = match &self.kind {
            TemplateKind::B158(HeaderEncoding::Separate) => "b158",
            TemplateKind::B158(HeaderEncoding::Joined) => "b158 joined",
            TemplateKind::Jinja(_) => "jinja",
        };
        format!("{kind}\n{}", self.jinja_source())
    }

    /// The template as Jinja, for other programs to read from `tokenizer_config.json` or a GGUF.
    ///
    /// That of 2B4T ends turns with `<|eot_id|>`; for a tokenizer that may lack it take
    /// [`ChatTemplate::jinja_source_for`].
    pub fn jinja_source(&self) -> &str {
        match &self.kind {
            TemplateKind::B158(_) => b158::SOURCE,
            TemplateKind::Jinja(template) => template.source(),
        }
    }

    /// [`ChatTemplate::jinja_source`] with the token that ends turns in this tokenizer.
    pub fn jinja_source_for(&self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        match &self.kind {
            TemplateKind::B158(_) => {
                let end = tokenizer.special_spelling(b158::turn_end(tokenizer)?);
                Ok(b158::SOURCE.replace(EOT[0], end.unwrap_or(EOT[0])))
            }
            TemplateKind::Jinja(template) => Ok(template.source().to_owned()),
        }
    }

    /// A whole conversation, trained on every turn of the assistant: its content and the token
    /// that ends it, and nothing else.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Dialogue, TextError> {
        match &self.kind {
            TemplateKind::B158(encoding) => b158::encode(*encoding, tokenizer, messages),
            TemplateKind::Jinja(template) => {
                to_tokens::encode(template, tokenizer, messages, false)
            }
        }
    }

    /// The prompt for the assistant's next answer.
    ///
    /// With [`ChatTemplate::b158`] they are the first tokens of [`ChatTemplate::encode`] of the
    /// same messages and any answer. A Jinja template may or may not have this property.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Vec<u32>, TextError> {
        match &self.kind {
            TemplateKind::B158(encoding) => b158::prompt(*encoding, tokenizer, messages),
            TemplateKind::Jinja(template) => {
                Ok(to_tokens::encode(template, tokenizer, messages, true)?.ids)
            }
        }
    }

    /// The tokens that end an answer: `<|eot_id|>`, the end-of-text token, and what a Jinja
    /// template puts after an answer. Empty where the tokenizer has none of them.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids: Vec<u32> = tokenizer.eot().into_iter().chain(tokenizer.eos()).collect();
        if let TemplateKind::Jinja(template) = &self.kind {
            let end = to_tokens::answer_end(template, tokenizer);
            ids.extend(end.filter(|id| !ids.contains(id)));
        }
        ids
    }
}

#[cfg(test)]
mod tests;
