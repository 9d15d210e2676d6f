//! Keys and values of finished requests, found again by the tokens that they belong to.
//!
//! Whole contexts are kept, the least recently used go first. A request whose prompt begins as one
//! of them takes it over where little of it is lost; where much would be, it takes a copy of the
//! common beginning. Scores of prompts are kept beside them, so that a beginning that was scored is not
//! scored again.

use bitnet_engine::KvCache;

use super::job::ScoredToken;

/// A shorter common beginning is computed again: many texts begin alike by chance.
pub(crate) const SHORTEST_PREFIX: usize = 16;

/// A context is taken over if it loses no more tokens than that. Computing them again takes less than
/// half a second; copying a long context can take longer than a token.
const TAKEN_OVER: usize = 128;

/// A context with the tokens that it holds.
#[derive(Debug)]
pub(crate) struct StoredContext {
    /// As many as the cache holds.
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: KvCache,
    pub(crate) scores: PromptScores,
    /// What it takes.
    pub(crate) bytes: usize,
}

/// What the model thought of the first tokens of a context.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PromptScores {
    /// How many of the most likely tokens are told with each; `None`: nothing was scored.
    pub(crate) top: Option<usize>,
    pub(crate) tokens: Vec<ScoredToken>,
}

impl PromptScores {
    /// How many of `common` first tokens a request can take over that wants `top` of the most likely
    /// tokens with each; `None`: it wants no scores. The token behind the last score is computed again,
    /// since the next score comes from it.
    pub(crate) fn usable(&self, common: usize, wanted: Option<usize>) -> usize {
        match wanted {
            None => common,
            Some(_) if self.top != wanted => 0,
            Some(_) => common.min(self.tokens.len()).saturating_sub(1),
        }
    }

    /// The scores that belong to a context of the first `len` tokens.
    pub(crate) fn first(&self, len: usize) -> Self {
        let count = self.tokens.len().min(len + 1);
        Self { top: self.top, tokens: self.tokens[..count].to_vec() }
    }

    /// What they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        let token = size_of::<ScoredToken>() + self.top.unwrap_or(0) * size_of::<(u32, f64)>();
        self.tokens.len() * token
    }
}

/// Contexts, least recently used first.
#[derive(Debug, Default)]
pub(crate) struct PrefixStore {
    contexts: Vec<StoredContext>,
    bytes: usize,
}

/// How many tokens two sequences have in common at their beginning.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixStore {
    /// What all contexts take.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of tokens in all contexts.
    pub(crate) fn tokens(&self) -> usize {
        self.contexts.iter().map(|context| context.tokens.len()).sum()
    }

    /// The length of the longest beginning of `prompt` that a context holds, at most `limit`, with
    /// scores if some are wanted.
    pub(crate) fn longest(&self, prompt: &[u32], limit: usize, scored: Option<usize>) -> usize {
        self.best(prompt, scored).map_or(0, |(_, common)| common.min(limit))
    }

    /// A cache with the first `len` tokens of `prompt`, as [`PrefixStore::longest`] found them, and
    /// their scores.
    pub(crate) fn lend(
        &mut self,
        prompt: &[u32],
        len: usize,
        scored: Option<usize>,
    ) -> Option<(KvCache, PromptScores)> {
        let (index, common) = self.best(prompt, scored)?;
        let scores = self.contexts[index].scores.first(len);
        let mut context = self.contexts.remove(index);
        self.bytes -= context.bytes;
        if context.tokens.len() - len.min(common) <= TAKEN_OVER {
            context.cache.truncate(len.min(common));
            return Some((context.cache, scores));
        }
        let copy = context.cache.prefix(len.min(common));
        self.bytes += context.bytes;
        self.contexts.push(context);
        Some((copy, scores))
    }

    /// Keeps a context; others that are a beginning of it are dropped.
    pub(crate) fn keep(&mut self, context: StoredContext) {
        if context.tokens.len() < SHORTEST_PREFIX {
            return;
        }
        self.contexts.retain(|other| !context.tokens.starts_with(&other.tokens));
        self.contexts.push(context);
        self.bytes = self.contexts.iter().map(|context| context.bytes).sum();
    }

    /// Drops the least recently used contexts until all take at most `limit` bytes.
    pub(crate) fn shrink_to(&mut self, limit: usize) {
        while self.bytes > limit && !self.contexts.is_empty() {
            self.bytes -= self.contexts.remove(0).bytes;
        }
    }

    /// The context with the longest common beginning, of equals the most recent.
    fn best(&self, prompt: &[u32], scored: Option<usize>) -> Option<(usize, usize)> {
        let common = |context: &StoredContext| {
            context.scores.usable(common_prefix(&context.tokens, prompt), scored)
        };
        let all = self.contexts.iter().map(common).enumerate();
        all.filter(|(_, common)| *common >= SHORTEST_PREFIX).max_by_key(|(_, common)| *common)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::model;
    use bitnet_engine::{ThreadPool, Workspace};

    fn context(tokens: &[u32]) -> StoredContext {
        let (model, pool) = (model(512), ThreadPool::new(1).unwrap());
        let mut cache = model.new_cache();
        model.forward(&mut Workspace::new(&pool), &mut cache, tokens).unwrap();
        let scores = PromptScores::default();
        StoredContext { tokens: tokens.to_vec(), cache, scores, bytes: tokens.len() }
    }

    fn ids(first: u32, count: u32) -> Vec<u32> {
        (first..first + count).collect()
    }

    #[test]
    fn a_context_that_loses_little_is_taken_over_and_another_is_copied() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 40)));
        let prompt = [&ids(0, 30)[..], &[99; 5]].concat();
        assert_eq!(store.longest(&prompt, prompt.len() - 1, None), 30);
        assert_eq!(store.lend(&prompt, 30, None).unwrap().0.len(), 30);
        assert_eq!((store.bytes(), store.tokens()), (0, 0), "it went with the request");
        store.keep(context(&ids(0, 200)));
        assert_eq!(store.lend(&prompt, 30, None).unwrap().0.len(), 30);
        assert_eq!((store.bytes(), store.tokens()), (200, 200), "it stayed");
    }

    #[test]
    fn the_least_recently_used_go_first_and_beginnings_of_others_at_once() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 20)));
        store.keep(context(&ids(0, 30)));
        assert_eq!(store.tokens(), 30);
        store.keep(context(&ids(100, 180)));
        store.lend(&ids(100, 20), 19, None).unwrap();
        store.keep(context(&ids(50, 30)));
        store.shrink_to(215);
        assert_eq!(store.longest(&ids(0, 30), 99, None), 0);
        assert_eq!(store.longest(&ids(100, 30), 99, None), 30);
        store.shrink_to(0);
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn only_scores_of_the_same_kind_are_taken_over() {
        let token = |id| ScoredToken { id, logprob: Some(-1.0), top: vec![(id, -1.0)] };
        let scores =
            PromptScores { top: Some(1), tokens: ids(0, 30).into_iter().map(token).collect() };
        let mut store = PrefixStore::default();
        store.keep(StoredContext { scores: scores.clone(), ..context(&ids(0, 40)) });
        assert_eq!(store.longest(&ids(0, 60), 59, None), 40);
        assert_eq!(store.longest(&ids(0, 60), 59, Some(1)), 29, "the last is computed again");
        assert_eq!(store.longest(&ids(0, 60), 59, Some(2)), 0);
        let (cache, lent) = store.lend(&ids(0, 60), 29, Some(1)).unwrap();
        assert_eq!((cache.len(), lent), (29, scores));
    }

    #[test]
    fn short_beginnings_are_not_kept_or_found() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 9)));
        assert_eq!(store.tokens(), 0);
        store.keep(context(&ids(0, 20)));
        assert_eq!(store.longest(&[0, 1, 2, 3, 77], 99, None), 0);
        assert!(store.lend(&[5, 6], 1, None).is_none());
    }
}
