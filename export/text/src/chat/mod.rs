//! Conversations as token ids, with the tokens that are trained. Training and the chat program use
//! the same code, so their prompts cannot differ.
//!
//! `b158` is the template of 2B4T. For Jinja templates, `source`, `python`, `filters`, `methods`,
//! `json` and `repr` make the engine of `jinja` what transformers' is, `marks` keeps message text apart from the template's own,
//! `renderer` renders and encodes, `answers` finds what is trained, `to_tokens` joins the two,
//! `memory` bounds what a template may allocate. `ready` encodes what another program rendered.
//! `row` renders rows of data in the same sandbox. `stored` reads and writes the templates of model
//! folders and GGUF files.

mod answers;
mod arguments;
mod b158;
mod filters;
mod jinja;
mod json;
mod marks;
mod memory;
mod message;
mod methods;
mod python;
mod ready;
mod renderer;
mod repr;
mod row;
mod source;
mod stored;
mod to_tokens;

use std::path::Path;

use crate::error::TextError;
use crate::tokenizer::Tokenizer;
pub use memory::LimitedAllocator;
pub use message::{Conversation, Dialogue, Message, Role};
pub use row::RowTemplate;
pub use stored::CHAT_TEMPLATE_FILE;

use b158::HeaderEncoding;
use jinja::Jinja;
use renderer::Renderer;

/// How a conversation is written in tokens.
///
/// With any template, message contents never become special tokens, even where they spell one.
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
    /// after the token that begins a document. Header and content of a turn are encoded as one
    /// string: the ids that `apply_chat_template` of transformers and llama.cpp make of
    /// [`ChatTemplate::source_for`]. The prompt ends in `Assistant:`; the space belongs to the
    /// answer.
    ///
    /// A tokenizer without `<|eot_id|>` ends turns with its end-of-text token.
    pub fn b158() -> Self {
        Self { kind: TemplateKind::B158(HeaderEncoding::Joined) }
    }

    /// The same text with header and content encoded apart, as the published program for GPUs does.
    /// No other program that reads the template makes these ids.
    pub fn b158_apart() -> Self {
        Self { kind: TemplateKind::B158(HeaderEncoding::Apart) }
    }

    /// A Jinja template, such as the `chat_template` of a Hugging Face repository; `path` is only
    /// for messages. It is compiled and tested on a short conversation.
    ///
    /// Its text is encoded as one string between special tokens, as transformers does. A template
    /// that does not terminate, writes too much or takes too much memory ends in an error. It
    /// cannot include files or reach anything outside.
    ///
    /// Trained is what it encloses in `{% generation %}`. One without such a block: what the
    /// assistant has to say after the generation prompt, up to the last token that ends the turn.
    pub fn jinja(path: &Path, source: &str) -> Result<Self, TextError> {
        let template = Jinja::new(path, source)?;
        to_tokens::probe(&template)?;
        Ok(Self { kind: TemplateKind::Jinja(template) })
    }

    /// Identifies the template in fingerprints: its kind and its source.
    pub fn identity(&self) -> String {
        match &self.kind {
            TemplateKind::B158(form) => form.source(),
            TemplateKind::Jinja(template) => format!("jinja\n{}", template.source()),
        }
    }

    /// The template as Jinja, for other programs to read from `chat_template.jinja`,
    /// `tokenizer_config.json` or a GGUF.
    ///
    /// It writes the token that begins a document where a tokenizer adds it to texts, since no
    /// program adds it to a conversation.
    pub fn source_for(&self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        match &self.kind {
            TemplateKind::B158(form) => {
                Ok(b158::with_end(&form.source(), &b158::turn_end_spelling(tokenizer)))
            }
            TemplateKind::Jinja(template) => {
                let renderer = Renderer { template, tokenizer };
                let bos = if renderer.lacks_bos() { "{{ bos_token }}" } else { "" };
                Ok(format!("{bos}{}", template.source()))
            }
        }
    }

    /// A whole conversation, trained on what the assistant says.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Dialogue, TextError> {
        match &self.kind {
            TemplateKind::B158(form) => b158::encode(*form, tokenizer, conversation),
            TemplateKind::Jinja(template) => Renderer { template, tokenizer }.encode(conversation),
        }
    }

    /// The prompt for the assistant's next answer.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Vec<u32>, TextError> {
        match &self.kind {
            TemplateKind::B158(form) => b158::prompt(*form, tokenizer, conversation),
            TemplateKind::Jinja(template) => Renderer { template, tokenizer }.prompt(conversation),
        }
    }

    /// What the published form of a template writes at the end of its prompt and this one leaves to
    /// the answer: the space of `b158`.
    pub fn before_answer(&self) -> &'static str {
        match &self.kind {
            TemplateKind::B158(HeaderEncoding::Joined) => " ",
            TemplateKind::B158(HeaderEncoding::Apart) | TemplateKind::Jinja(_) => "",
        }
    }

    /// Whether the template reads this field of a message (`tool_calls`, `reasoning_content`) or
    /// this variable (`tools`). What it does not read would be dropped.
    pub fn reads(&self, field: &str) -> bool {
        match &self.kind {
            TemplateKind::B158(_) => false,
            TemplateKind::Jinja(template) => template.source().contains(field),
        }
    }

    /// The token that ends a turn of the assistant; `None` where the template ends none.
    pub fn turn_end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        match &self.kind {
            TemplateKind::B158(_) => b158::turn_end(tokenizer).ok(),
            TemplateKind::Jinja(template) => Renderer { template, tokenizer }.turn_end(),
        }
    }

    /// The tokens that end an answer: that of the turn, and those that end a document. Empty where
    /// there are none.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids = Vec::new();
        // A model may end the document where it should end its turn: both stop it.
        let document = [tokenizer.eos(), tokenizer.eos_token()];
        for id in document.into_iter().chain([self.turn_end(tokenizer)]).flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// What a user of this template should know: in plain sentences.
    pub fn warnings(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.turn_end(tokenizer).is_none() {
            warnings.push(
                "the chat template ends an answer with no special token, so a model trained with \
                 it never learns to stop"
                    .to_owned(),
            );
        }
        if self.differs_elsewhere(tokenizer) {
            warnings.push(
                "the chat template b158-apart encodes headers and contents apart; other programs \
                 encode them joined and make other tokens of the same conversation"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Whether other programs make other ids of a conversation.
    fn differs_elsewhere(&self, tokenizer: &Tokenizer) -> bool {
        let conversation = Conversation::from(vec![
            Message::new(Role::User, "Hello there"),
            Message::new(Role::Assistant, "Good day"),
        ]);
        let ids = |template: &Self| template.encode(tokenizer, &conversation).ok();
        // A tokenizer that splits at the colon anyway makes the same ids both ways.
        matches!(self.kind, TemplateKind::B158(HeaderEncoding::Apart))
            && ids(self) != ids(&Self::b158())
    }
}

#[cfg(test)]
mod tests;
