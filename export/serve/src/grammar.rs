//! Answers that must be JSON: which tokens may come next.
//!
//! The masks are those of the `llguidance` crate. White space between values is bounded, so that a model
//! cannot go on with it forever.

use std::sync::{Arc, OnceLock};

use bitnet_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

/// White space that may stand between two values.
const WHITE_SPACE: &str = "[ \\n\\t]{0,12}";

/// Makes grammars for one tokenizer; what they share is made when the first is asked for.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    /// Ends an answer; without one no answer could be complete.
    end: Option<u32>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// What may follow in one answer.
pub(crate) struct AnswerGrammar(Matcher);

/// The grammar cannot go on: a limit of its size was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrammarFailed;

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, end: Option<u32>) -> Self {
        Self { tokenizer, vocab_size, end, factory: OnceLock::new() }
    }

    /// JSON that a schema describes.
    ///
    /// # Errors
    /// What is wrong with the schema, or with the tokenizer.
    pub(crate) fn json(&self, mut schema: Value) -> Result<AnswerGrammar, String> {
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
        }
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        parser.map(|parser| AnswerGrammar(Matcher::new(Ok(parser)))).map_err(|error| short(&error))
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let end = self.end.ok_or("no token of this model ends an answer")?;
        let words: Vec<Vec<u8>> = (0..self.vocab_size as u32).map(|id| self.word(id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(self.vocab_size as u32, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| short(&error))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }

    /// The bytes of a token; special ones are marked, so that no text is made of them.
    fn word(&self, id: u32) -> Vec<u8> {
        let bytes = self.tokenizer.token_bytes(id);
        if self.tokenizer.is_special(id) {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat();
        }
        bytes
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Grammars").field("end", &self.end).finish_non_exhaustive()
    }
}

impl AnswerGrammar {
    /// The same grammar at the same place, for another answer.
    pub(crate) fn copy(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Chooses with `choose` among the tokens that may follow, and goes on behind the chosen one.
    pub(crate) fn next(
        &mut self,
        choose: impl FnOnce(&dyn Fn(u32) -> bool) -> u32,
    ) -> Result<u32, GrammarFailed> {
        let mask = self.0.compute_mask_or_eos().map_err(|_| GrammarFailed)?;
        let id = choose(&|id| mask.is_allowed(id));
        self.0.consume_token(id).map_err(|_| GrammarFailed)?;
        Ok(id)
    }

    /// Whether the answer is complete and nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.is_stopped()
    }
}

impl std::fmt::Debug for AnswerGrammar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("AnswerGrammar").finish_non_exhaustive()
    }
}

/// The first line of what the crate says.
fn short(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}
