//! A tokenizer as GGUF files store it: tokens by id, their kinds, and how text becomes tokens.
//! `gguf` maps it to metadata keys; `to_vocabulary` and `from_vocabulary` convert it.

use crate::split_pattern::SplitPattern;

/// A tokenizer as a GGUF file stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// Spelling by id: byte-level letters (`Ġthe`), or plain text for added tokens.
    pub tokens: Vec<String>,
    /// One for each token.
    pub kinds: Vec<TokenKind>,
    /// How text becomes tokens.
    pub merging: Merging,
    /// Begins a document.
    pub bos: Option<u32>,
    /// Ends a document.
    pub eos: Option<u32>,
    /// Ends a turn of a chat.
    pub eot: Option<u32>,
    /// Pads batches.
    pub padding: Option<u32>,
    /// Whether a text begins with `bos`.
    pub add_bos: bool,
    /// What the file does not say and had to be assumed.
    pub assumed: Option<String>,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Merging {
    /// Words of bytes; `left right` are joined, highest priority first.
    ByteLevel {
        /// How text becomes words.
        split: SplitPattern,
        /// The pairs.
        merges: Vec<String>,
    },
    /// The whole text at once, with `▁` for a space. Two pieces are joined where that makes a
    /// token, the one with the highest score first.
    SentencePiece {
        /// One for each token.
        scores: Vec<f32>,
        /// Whether a space is put before a text.
        space_prefix: bool,
    },
}

/// What a token is, by ggml's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Made of bytes and merges.
    Normal,
    /// Stands for letters that no token can spell.
    Unknown,
    /// Never found in text: begins, ends, separates.
    Control,
    /// Matched in text as a whole.
    UserDefined,
    /// An unused id.
    Unused,
    /// One byte of a letter that is not a token: `<0x0A>`.
    Byte,
}

impl TokenKind {
    const ALL: [Self; 6] =
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte];

    /// ggml's number.
    pub fn as_ggml(self) -> i32 {
        1 + self as i32
    }

    /// The kind of ggml's number.
    pub fn from_ggml(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_ggml() == number)
    }

    /// Whether the token is one of the vocabulary, and not added to it.
    pub(crate) fn is_ordinary(self) -> bool {
        matches!(self, Self::Normal | Self::Byte)
    }
}
