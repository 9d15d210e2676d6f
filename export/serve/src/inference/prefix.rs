//! Keys and values of finished requests, found again by the tokens that they belong to.
//!
//! Whole contexts are kept, the least recently used go first. A request whose prompt begins as one
//! of them takes it over where little of it is lost; where much would be, it takes a copy of the
//! common beginning.

use bitnet_engine::KvCache;

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
    /// What it takes.
    pub(crate) bytes: usize,
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

    /// The length of the longest beginning of `prompt` that a context holds, at most `limit`.
    pub(crate) fn longest(&self, prompt: &[u32], limit: usize) -> usize {
        self.best(prompt).map_or(0, |(_, common)| common.min(limit))
    }

    /// A cache with the first `len` tokens of `prompt`, as [`PrefixStore::longest`] found them.
    pub(crate) fn lend(&mut self, prompt: &[u32], len: usize) -> Option<KvCache> {
        let (index, common) = self.best(prompt)?;
        let mut context = self.contexts.remove(index);
        self.bytes -= context.bytes;
        if context.tokens.len() - len.min(common) <= TAKEN_OVER {
            context.cache.truncate(len.min(common));
            return Some(context.cache);
        }
        let copy = context.cache.prefix(len.min(common));
        self.bytes += context.bytes;
        self.contexts.push(context);
        Some(copy)
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
    fn best(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let common = |context: &StoredContext| common_prefix(&context.tokens, prompt);
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
        StoredContext { tokens: tokens.to_vec(), cache, bytes: tokens.len() }
    }

    fn ids(first: u32, count: u32) -> Vec<u32> {
        (first..first + count).collect()
    }

    #[test]
    fn a_context_that_loses_little_is_taken_over_and_another_is_copied() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 40)));
        let prompt = [&ids(0, 30)[..], &[99; 5]].concat();
        assert_eq!(store.longest(&prompt, prompt.len() - 1), 30);
        assert_eq!(store.lend(&prompt, 30).unwrap().len(), 30);
        assert_eq!((store.bytes(), store.tokens()), (0, 0), "it went with the request");
        store.keep(context(&ids(0, 200)));
        assert_eq!(store.lend(&prompt, 30).unwrap().len(), 30);
        assert_eq!((store.bytes(), store.tokens()), (200, 200), "it stayed");
    }

    #[test]
    fn the_least_recently_used_go_first_and_beginnings_of_others_at_once() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 20)));
        store.keep(context(&ids(0, 30)));
        assert_eq!(store.tokens(), 30);
        store.keep(context(&ids(100, 180)));
        store.lend(&ids(100, 20), 19).unwrap();
        store.keep(context(&ids(50, 30)));
        store.shrink_to(215);
        assert_eq!(store.longest(&ids(0, 30), 99), 0);
        assert_eq!(store.longest(&ids(100, 30), 99), 30);
        store.shrink_to(0);
        assert_eq!(store.bytes(), 0);
    }

    #[test]
    fn short_beginnings_are_not_kept_or_found() {
        let mut store = PrefixStore::default();
        store.keep(context(&ids(0, 9)));
        assert_eq!(store.tokens(), 0);
        store.keep(context(&ids(0, 20)));
        assert_eq!(store.longest(&[0, 1, 2, 3, 77], 99), 0);
        assert!(store.lend(&[5, 6], 1).is_none());
    }
}
