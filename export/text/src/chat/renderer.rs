//! A Jinja template with its tokenizer: renders conversations and encodes what was rendered.
//!
//! The template renders the messages themselves; the text is encoded as one string between special
//! tokens, as `apply_chat_template(tokenize=True)` of transformers does. `marks` keeps special
//! tokens that a message spells from becoming ones.

use std::ops::Range;

use super::jinja::{Jinja, RenderInputs};
use super::marks::{Marks, Rendered};
use super::message::{Conversation, Dialogue, Message};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// A template with the tokenizer it is rendered for.
#[derive(Clone, Copy)]
pub(super) struct Renderer<'a> {
    pub(super) template: &'a Jinja,
    pub(super) tokenizer: &'a Tokenizer,
}

impl Renderer<'_> {
    pub(super) fn marks(self, conversation: &Conversation) -> Result<Marks, TextError> {
        // As JSON all texts are in it, whatever field they stand in; it leaves private-use
        // characters as they are.
        let json = serde_json::json!([conversation.tools, messages(conversation)]).to_string();
        Marks::absent_from(&[&json, self.template.source()]).ok_or_else(|| {
            self.template.error(None, "cannot be run: every private-use character is in use".into())
        })
    }

    /// What the template sees of a conversation.
    pub(super) fn inputs(
        self,
        conversation: &Conversation,
        marks: Marks,
        generation_prompt: bool,
    ) -> RenderInputs {
        let guard = |value: &serde_json::Value| marks.guard(value, self.tokenizer);
        RenderInputs {
            // Values are guarded before the template sees them: it may join texts, and afterwards
            // nobody could tell its own special tokens from those of a message.
            messages: messages(conversation).iter().map(guard).collect(),
            tools: conversation.tools.iter().map(guard).collect(),
            bos: self.spelling(self.tokenizer.bos()),
            eos: self.spelling(self.tokenizer.eos_token()),
            others: self.tokenizer.declared_tokens(),
            generation_prompt,
            marks,
        }
    }

    pub(super) fn render(
        self,
        inputs: Vec<RenderInputs>,
    ) -> Result<Vec<Result<String, TextError>>, TextError> {
        self.template.render(inputs)
    }

    fn spelling(self, id: Option<u32>) -> String {
        id.and_then(|id| self.tokenizer.special_spelling(id)).unwrap_or_default().to_owned()
    }

    pub(super) fn writes_bos(self, rendered: &Rendered) -> bool {
        rendered.begins_with_bos(self.tokenizer)
    }

    pub(super) fn tokens(
        self,
        rendered: &Rendered,
        spans: &[Range<usize>],
    ) -> Result<Dialogue, TextError> {
        rendered.tokens(self.tokenizer, spans)
    }
}

fn messages(conversation: &Conversation) -> Vec<serde_json::Value> {
    conversation.messages.iter().map(Message::to_json).collect()
}
