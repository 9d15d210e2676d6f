//! The tokens of one `tokenizer.json` by spelling and by id, while its parts are checked.

use std::collections::HashMap;
use std::path::Path;

use crate::error::TextError;

/// Tokens and ids of one file, in both directions.
pub(crate) struct TokenTable<'a> {
    pub(crate) path: &'a Path,
    limit: u64,
    ids: HashMap<&'a str, u32>,
    tokens: HashMap<u32, &'a str>,
}

impl<'a> TokenTable<'a> {
    /// `tokens` is the number of tokens the file lists. Ids up to twice that many are accepted:
    /// gaps are legal, but each one is an unused row of the embedding.
    pub(crate) fn new(path: &'a Path, tokens: usize) -> Self {
        Self { path, limit: 2 * tokens as u64, ids: HashMap::new(), tokens: HashMap::new() }
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub(crate) fn insert(
        &mut self,
        field: &'static str,
        token: &'a str,
        id: u64,
    ) -> Result<(), TextError> {
        let (path, limit) = (self.path.to_owned(), self.limit);
        let Some(small) = u32::try_from(id).ok().filter(|_| id < limit) else {
            return Err(TextError::IdTooLarge { path, field, token: token.to_owned(), id, limit });
        };
        // Two spellings of one id: encoding would work, and decoding would show the wrong one.
        if let Some(first) = self.tokens.insert(small, token) {
            let (first, second) = (first.to_owned(), token.to_owned());
            return Err(TextError::IdTwice { path, field, id: small, first, second });
        }
        self.ids.insert(token, small);
        Ok(())
    }
}
