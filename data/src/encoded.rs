//! What a row became: sequences of tokens.

use bitnet_text::Dialogue;

use crate::turn_order::TurnChanges;

/// A document, or one side of a preference, as tokens.
#[derive(Debug)]
pub(crate) struct EncodedSequence {
    pub(crate) dialogue: Dialogue,
    /// Bytes of the text that is scored: all of a text, the answers of a conversation.
    pub(crate) bytes: usize,
}

/// What a row became. No sequence: it says nothing.
#[derive(Debug)]
pub(crate) struct EncodedRow {
    /// How its shape was recognised.
    pub(crate) shape: String,
    pub(crate) sequences: Vec<EncodedSequence>,
    /// What was done to its turns.
    pub(crate) turns: TurnChanges,
}
