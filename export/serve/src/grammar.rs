//! Answers that must be JSON or calls of functions: which tokens may come next.
//!
//! The masks are those of the `llguidance` crate. White space between values is bounded, so that a
//! model cannot go on with it forever.

use std::sync::{Arc, OnceLock};

use bitnet_text::Tokenizer;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

/// White space that may stand between two values.
const WHITE_SPACE: &str = "[ \\n\\t]{0,12}";

/// Makes grammars for one tokenizer; what they share is made when the first is asked for.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    /// End an answer; without one no answer could be complete.
    ends: Arc<[u32]>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// What may follow in one answer.
pub(crate) struct AnswerGrammar(Matcher);

/// The grammar cannot go on: a limit of its size was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GrammarFailed;

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, ends: Arc<[u32]>) -> Self {
        Self { tokenizer, vocab_size, ends, factory: OnceLock::new() }
    }

    /// JSON that a schema describes.
    ///
    /// # Errors
    /// What is wrong with the schema, or with the tokenizer.
    pub(crate) fn json(&self, schema: Value) -> Result<AnswerGrammar, String> {
        self.compile(TopLevelGrammar::from_json_schema(bounded(schema)))
    }

    /// Answers as `lark` has them, where `@arguments0` is JSON that the first schema describes.
    ///
    /// # Errors
    /// As [`Grammars::json`].
    pub(crate) fn calls(&self, lark: String, schemas: Vec<Value>) -> Result<AnswerGrammar, String> {
        let mut all = TopLevelGrammar::from_lark(lark);
        for (index, schema) in schemas.into_iter().enumerate() {
            let mut grammar = GrammarWithLexer::from_json_schema(bounded(schema));
            // The name after `@` in the Lark text.
            grammar.name = Some(format!("arguments{index}"));
            all.grammars.push(grammar);
        }
        self.compile(all)
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<AnswerGrammar, String> {
        // Made with the first grammar: a server that is asked for none does not pay for it.
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(grammar).map_err(|error| short(&error))?;
        let matcher = Matcher::new(Ok(parser));
        // What can only refer to itself, or is too large, is found out with the first token.
        matcher.deep_clone().compute_mask_or_eos().map_err(|error| short(&error))?;
        Ok(AnswerGrammar(matcher))
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let end = self.ends.first().copied().ok_or("no token of this model ends an answer")?;
        let words: Vec<Vec<u8>> = (0..self.vocab_size as u32).map(|id| self.word(id)).collect();
        // Building the trie reads every token once; it is shared by all grammars of the server.
        let trie = TokTrie::from(&TokRxInfo::new(self.vocab_size as u32, end), &words);
        // Any of the model's ends may come where the grammar allows an end.
        let trie = trie.with_eos_tokens(&self.ends);
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
        out.debug_struct("Grammars").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl AnswerGrammar {
    /// The same grammar at the same place, for another answer.
    pub(crate) fn copy(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// Chooses with `choose` among the tokens that may follow, and continues after the chosen one.
    pub(crate) fn next(
        &mut self,
        choose: impl FnOnce(&dyn Fn(u32) -> bool) -> u32,
    ) -> Result<u32, GrammarFailed> {
        // The mask comes before sampling, so temperature and penalties act among allowed tokens
        // only.
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

/// A schema whose white space is bounded.
fn bounded(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

/// The first line of what the crate says.
fn short(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}
