//! A tokenizer of Hugging Face's format as GGUF stores it.
//!
//! Only what llama.cpp knows by name can be written; anything else it would read as other ids.

use serde_json::Value;

use crate::error::TextError;
use crate::pieces;
use crate::split_pattern::SplitPattern;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_json::{self, Merge, Splitting, TokenizerJson};
use crate::vocabulary::{Merging, TokenKind, Vocabulary};

impl Tokenizer {
    /// This tokenizer for the GGUF file of a model with `rows` embedding rows. Ids beyond the
    /// tokenizer's own become unused `[PAD…]` tokens.
    ///
    /// # Errors
    /// When text is normalised or split in a way that GGUF has no name for, or when there are more
    /// tokens than rows.
    pub fn vocabulary(&self, rows: usize) -> Result<Vocabulary, TextError> {
        self.fits(rows)?;
        let file = tokenizer_json::parse(self.path(), self.json())?;
        let splitting: Splitting = serde_json::from_slice(self.json())
            .map_err(|error| self.inexpressible("pre_tokenizer", error.to_string()))?;
        let (tokens, kinds) = tokens_of(&file, rows, splitting.model.byte_fallback);
        let merging = if splitting.model.byte_fallback {
            let inexpressible = |(field, what): (&str, String)| self.inexpressible(field, what);
            pieces::describe(&file, &splitting, &tokens, &kinds).map_err(inexpressible)?
        } else {
            Merging::ByteLevel { split: self.split_pattern(splitting)?, merges: merge_lines(file) }
        };
        let (bos, eos, eot) = (self.bos(), self.eos_token(), self.eot());
        let (padding, add_bos, assumed) = (None, self.first().is_some(), None);
        Ok(Vocabulary { tokens, kinds, merging, bos, eos, eot, padding, add_bos, assumed })
    }

    /// Refuses a tokenizer with more tokens than a model has rows of its embedding: the ids beyond
    /// would read what is not there.
    ///
    /// # Errors
    /// Names both numbers.
    pub fn fits(&self, rows: usize) -> Result<(), TextError> {
        if self.vocab_size() <= rows {
            return Ok(());
        }
        let what = format!(
            "has {} tokens; expected at most {rows}, the model's vocab_size",
            self.vocab_size()
        );
        Err(self.inexpressible("model.vocab", what))
    }

    fn split_pattern(&self, splitting: Splitting) -> Result<SplitPattern, TextError> {
        if let Some(normalizer) = splitting.normalizer.filter(|value| !value.is_null()) {
            let what = format!("GGUF has no name for {normalizer}; expected null");
            return Err(self.inexpressible("normalizer", what));
        }
        let pre = splitting.pre_tokenizer.unwrap_or(Value::Null);
        SplitPattern::of(&pre, splitting.model.ignore_merges).ok_or_else(|| {
            let known = SplitPattern::names();
            let what = format!("GGUF has no name for {pre}; expected that of {known}");
            self.inexpressible("pre_tokenizer", what)
        })
    }

    fn inexpressible(&self, field: &str, what: String) -> TextError {
        let (path, field) = (self.path().to_owned(), field.to_owned());
        TextError::Inexpressible { path, field, what }
    }
}

/// Spelling and kind of every row.
fn tokens_of(file: &TokenizerJson, rows: usize, bytes: bool) -> (Vec<String>, Vec<TokenKind>) {
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![TokenKind::Unused; rows];
    for (token, id) in &file.model.vocab.0 {
        let is_byte = bytes && pieces::byte_of(token).is_some();
        tokens[*id as usize].clone_from(token);
        kinds[*id as usize] = if is_byte { TokenKind::Byte } else { TokenKind::Normal };
    }
    // After the vocabulary: a token that is in both has the kind of an added one.
    for added in &file.added_tokens {
        let unknown = bytes && file.model.unk_token.as_ref() == Some(&added.content);
        let ordinary = if added.special { TokenKind::Control } else { TokenKind::UserDefined };
        // No index is out of range: `fits` compared the largest id with the rows.
        tokens[added.id as usize].clone_from(&added.content);
        kinds[added.id as usize] = if unknown { TokenKind::Unknown } else { ordinary };
    }
    (tokens, kinds)
}

fn merge_lines(file: TokenizerJson) -> Vec<String> {
    let line = |merge| match merge {
        Merge::Pair(left, right) => format!("{left} {right}"),
        Merge::Line(line) => line,
    };
    file.model.merges.into_iter().map(line).collect()
}
