//! Conversations as token ids: who speaks, what is trained, where the assistant begins. Training
//! and the chat program both ask here, so they cannot disagree.
//!
//! The template of 2B4T lives in `native`; templates in Jinja are run in `jinja`, cut up in
//! `cut` and turned into ids in `rendered`. Reading conversations from files lives elsewhere.

mod cut;
mod jinja;
mod native;
mod rendered;

use std::path::Path;

use crate::error::TextError;
use crate::tokenizer::{EOT, Tokenizer};
use jinja::Jinja;
use native::Cut;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// Sets the scene, before the conversation.
    System,
    /// Asks.
    User,
    /// Answers: what a model learns to say.
    Assistant,
}

impl Speaker {
    /// The word in data files and templates: `system`, `user` or `assistant`.
    pub fn word(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// The speaker of exactly that word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::System, Self::User, Self::Assistant].into_iter().find(|one| one.word() == word)
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub speaker: Speaker,
    /// What is said. Whitespace around it is not part of it, and it may be empty.
    pub content: String,
}

/// Token ids of a conversation with, for each id, whether it is trained as a target.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dialogue {
    /// The tokens.
    pub ids: Vec<u32>,
    /// As many marks: `true` where the token is something the assistant says.
    pub trained: Vec<bool>,
}

impl Dialogue {
    fn push(&mut self, ids: impl IntoIterator<Item = u32>, trained: bool) {
        self.ids.extend(ids);
        self.trained.resize(self.ids.len(), trained);
    }
}

/// How a conversation is written in tokens.
///
/// Whatever the template, what was said never becomes a special token, even where it spells one,
/// and whitespace around it (that of Python's `str.strip`) is dropped.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    B158(Cut),
    Jinja(Jinja),
}

impl ChatTemplate {
    /// The template of `BitNet` b1.58 2B4T: `System: …<|eot_id|>User: …<|eot_id|>Assistant: …`,
    /// header and content encoded apart.
    ///
    /// A tokenizer without `<|eot_id|>` ends turns with its end-of-text token.
    pub fn b158() -> Self {
        Self { kind: Kind::B158(Cut::Apart) }
    }

    /// The same text, header and content of a turn encoded as one string: the ids that
    /// `apply_chat_template` of transformers gives.
    ///
    /// The space that ends a header then often joins the first word (`Ġhello`), a token that
    /// counts as content. [`ChatTemplate::prompt`] still ends in a bare space, so with this
    /// template it is not a prefix of what was trained.
    pub fn b158_joined() -> Self {
        Self { kind: Kind::B158(Cut::Joined) }
    }

    /// A Jinja template, such as the `chat_template` of a Hugging Face repository; `path` is only
    /// for messages. It is compiled, and tried out on a short conversation.
    ///
    /// The template never sees what was said: it is given a placeholder for each content, and
    /// must render every placeholder once, unchanged and in order. Its own text may name special
    /// tokens (`lstrip` and `rstrip` of these are not applied); its own text and every content
    /// are encoded apart. A template that loops, recurses or writes without end is stopped with
    /// an error. It can include no other file and sees nothing of the machine.
    ///
    /// Trained are the assistant's contents, and the special token right after each. Whitespace
    /// that the template puts between the two is trained with them: the model must say it to
    /// reach the end.
    pub fn jinja(path: &Path, source: &str) -> Result<Self, TextError> {
        let template = Jinja::new(path, source)?;
        rendered::probe(&template)?;
        Ok(Self { kind: Kind::Jinja(template) })
    }

    /// What identifies the template, for fingerprints: its kind and its source.
    pub fn identity(&self) -> String {
        let kind = match &self.kind {
            Kind::B158(Cut::Apart) => "b158",
            Kind::B158(Cut::Joined) => "b158 joined",
            Kind::Jinja(_) => "jinja",
        };
        format!("{kind}\n{}", self.jinja_source())
    }

    /// The template as Jinja, for other programs to read from `tokenizer_config.json` or a GGUF.
    ///
    /// That of 2B4T ends turns with `<|eot_id|>`; for a tokenizer that may lack it take
    /// [`ChatTemplate::jinja_source_for`].
    pub fn jinja_source(&self) -> &str {
        match &self.kind {
            Kind::B158(_) => native::SOURCE,
            Kind::Jinja(template) => template.source(),
        }
    }

    /// The same with the token that ends turns in this tokenizer.
    pub fn jinja_source_for(&self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        match &self.kind {
            Kind::B158(_) => {
                let end = tokenizer.special_spelling(native::turn_end(tokenizer)?);
                Ok(native::SOURCE.replace(EOT[0], end.unwrap_or(EOT[0])))
            }
            Kind::Jinja(template) => Ok(template.source().to_owned()),
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
            Kind::B158(cut) => native::encode(*cut, tokenizer, messages),
            Kind::Jinja(template) => rendered::encode(template, tokenizer, messages, false),
        }
    }

    /// The tokens after which the assistant speaks.
    ///
    /// With [`ChatTemplate::b158`] they are the first tokens of [`ChatTemplate::encode`] of the
    /// same messages and any answer. With a Jinja template that is the template's own affair.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
    ) -> Result<Vec<u32>, TextError> {
        match &self.kind {
            Kind::B158(cut) => native::prompt(*cut, tokenizer, messages),
            Kind::Jinja(template) => Ok(rendered::encode(template, tokenizer, messages, true)?.ids),
        }
    }

    /// The tokens that end an answer: `<|eot_id|>`, the end-of-text token, and what a Jinja
    /// template puts after an answer. Empty where the tokenizer has none of them.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids: Vec<u32> = tokenizer.eot().into_iter().chain(tokenizer.eos()).collect();
        if let Kind::Jinja(template) = &self.kind {
            let end = rendered::answer_end(template, tokenizer);
            ids.extend(end.filter(|id| !ids.contains(id)));
        }
        ids
    }
}

/// Without the whitespace around it, as Python's `str.strip` and so Jinja's `trim` understand it:
/// that of Unicode and four separators of ASCII.
fn strip(text: &str) -> &str {
    text.trim_matches(|letter: char| {
        letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
    })
}

#[cfg(test)]
mod tests;
