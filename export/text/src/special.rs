//! The special tokens of a tokenizer: they stand for no text, and only a template writes them.

use crate::tokenizer_json::{AddedEntry, TokenizerJson};

/// A token that stands for no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpecialToken {
    pub(crate) spelling: String,
    pub(crate) id: u32,
    /// Whether it swallows whitespace before and after it.
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
}

/// The special tokens, longest spelling first, and the bytes that one can begin with.
#[derive(Clone)]
pub(crate) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    begins: [bool; 256],
}

impl SpecialTokens {
    pub(crate) fn of(file: &TokenizerJson) -> Self {
        let added = file.added_tokens.iter();
        let added = added.filter(|token| token.special && !token.content.is_empty());
        let token = |token: &AddedEntry| SpecialToken {
            spelling: token.content.clone(),
            id: token.id as u32,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
        };
        let mut tokens: Vec<_> = added.map(token).collect();
        // Then the first that fits is the longest: `<|im_start|>` before a shorter `<|im`.
        tokens.sort_by_key(|token| std::cmp::Reverse(token.spelling.len()));
        let mut begins = [false; 256];
        for token in &tokens {
            begins[token.spelling.as_bytes()[0] as usize] = true;
        }
        Self { tokens, begins }
    }

    /// The token that a text begins with; the longest spelling wins.
    pub(crate) fn at(&self, text: &str) -> Option<&SpecialToken> {
        let first = *text.as_bytes().first()?;
        // Asked at every letter of every message: nearly all are done with one look at the table.
        let mut tokens = self.tokens.iter().filter(|_| self.begins[first as usize]);
        tokens.find(|token| text.starts_with(token.spelling.as_str()))
    }

    /// The token with this id.
    pub(crate) fn of_id(&self, id: u32) -> Option<&SpecialToken> {
        self.tokens.iter().find(|token| token.id == id)
    }
}
