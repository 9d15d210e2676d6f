//! Who a chat is with: a model of this process, or a server.

use std::ops::ControlFlow;

use bitnet_chat::{Answer, ChatError, ChatSession};

/// Takes an answer piece by piece; an empty piece only asks whether to go on.
pub(crate) type PieceSink<'a> = &'a mut dyn FnMut(&str) -> ControlFlow<()>;

/// What came of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PartnerReply {
    /// It was answered.
    Answered(Answer),
    /// It is not part of the conversation, for this reason.
    LeftOut(String),
}

/// Keeps a conversation and answers.
pub(crate) trait ChatPartner {
    /// Whether the most likely words are taken.
    fn is_greedy(&self) -> bool;

    /// Forgets all but the system's message.
    fn reset(&mut self);

    /// Begins anew with this message of the system; with none if it is empty.
    fn set_system(&mut self, text: &str);

    /// Answers a message of the user.
    fn answer(&mut self, text: &str, out: PieceSink) -> anyhow::Result<PartnerReply>;
}

impl ChatPartner for ChatSession<'_> {
    fn is_greedy(&self) -> bool {
        self.settings().sampler.temperature == 0.0
    }

    fn reset(&mut self) {
        ChatSession::reset(self);
    }

    fn set_system(&mut self, text: &str) {
        ChatSession::set_system(self, text);
    }

    fn answer(&mut self, text: &str, out: PieceSink) -> anyhow::Result<PartnerReply> {
        match ChatSession::answer(self, text, out) {
            Ok(answer) => Ok(PartnerReply::Answered(answer)),
            // The conversation goes on without the turn; every other error ends the program.
            Err(error @ ChatError::TooLong { .. }) => Ok(PartnerReply::LeftOut(error.to_string())),
            Err(ChatError::Text(error)) => Err(error.into()),
            Err(ChatError::Engine(error)) => Err(error.into()),
        }
    }
}
