//! Keys and values that were computed, found again by the tokens that they belong to: a radix tree
//! whose edges are pages.
//!
//! ```text
//! root ─┬─ [64 tokens] ─┬─ [64 tokens] ── [9 tokens]      a finished conversation
//!       │               └─ [64 tokens] …                  another one with the same instructions
//!       └─ [64 tokens] …
//! ```
//!
//! Sequences in work hold the same pages as the tree: a full page exists once, however many begin
//! with it. A page that a sequence holds is never dropped; of the others the least recently used go
//! first, from the ends of branches. Scores of prompts stand beside the pages, so that a beginning
//! that was scored is not scored again.

use bitnet_engine::{KvCache, KvPage};

use super::scores::PromptScores;

/// A shorter common beginning is computed again: many texts begin alike by chance.
pub(crate) const SHORTEST_PREFIX: usize = 16;

/// Tokens that follow others, with their keys and values.
#[derive(Debug)]
struct Node {
    /// At least one; as many as a page holds if others follow.
    tokens: Vec<u32>,
    page: KvPage,
    scores: PromptScores,
    /// When it was last asked for; never before one that follows it.
    used: u64,
    children: Vec<Node>,
}

/// The pages of all sequences.
#[derive(Debug)]
pub(crate) struct PageTree {
    roots: Vec<Node>,
    page_bytes: usize,
    pages: usize,
    score_bytes: usize,
    dropped: usize,
    /// Counts what was asked.
    now: u64,
}

/// How many tokens two sequences have in common at their beginning.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PageTree {
    /// An empty tree of pages of `page_bytes` bytes each.
    pub(crate) fn new(page_bytes: usize) -> Self {
        Self { roots: Vec::new(), page_bytes, pages: 0, score_bytes: 0, dropped: 0, now: 0 }
    }

    /// What one page takes.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// What all pages and scores take.
    pub(crate) fn bytes(&self) -> usize {
        self.pages * self.page_bytes + self.score_bytes
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Number of pages that were dropped for want of memory.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped
    }

    /// `empty` with the longest beginning of `prompt` that is known, at most `limit` tokens, and
    /// its scores. `scored`: how many of the most likely tokens these must tell; `None`: none are
    /// wanted.
    pub(crate) fn find(
        &mut self,
        prompt: &[u32],
        limit: usize,
        scored: Option<usize>,
        empty: &KvCache,
    ) -> (KvCache, PromptScores) {
        self.now += 1;
        let mut cache = empty.clone();
        let mut scores = PromptScores { top: scored, tokens: Vec::new() };
        let mut level = &mut self.roots;
        // While each page is known as a whole, and scored if that is wanted.
        while cache.len().is_multiple_of(KvCache::PAGE)
            && (scored.is_none() || scores.tokens.len() == cache.len())
        {
            let (start, rest) = (cache.len(), &prompt[cache.len()..]);
            let common = |node: &Node| common_prefix(&node.tokens, rest);
            // Siblings may begin alike (they differ inside the page), so the longest match is
            // taken.
            let Some(node) = level.iter_mut().max_by_key(|node| common(node)) else { break };
            let common = common(node);
            if common == 0 || (scored.is_some() && node.scores.top != scored) {
                break;
            }
            node.used = self.now;
            // The page is shared even if only its first `common` tokens fit: the cache counts no
            // more of them, and writing after them copies the page first.
            cache.share_page(start / KvCache::PAGE, node.page.clone(), common);
            scores.tokens.extend(node.scores.part(0, common).tokens);
            level = &mut node.children;
        }
        let known = scores.usable(cache.len(), scored).min(limit);
        // A short match would only hold a page in memory.
        let known = if known < SHORTEST_PREFIX { 0 } else { known };
        cache.truncate(known);
        (cache, scores.part(0, known + 1))
    }

    /// Keeps the full pages of `cache`, which holds the first of `tokens`; if the sequence `ended`,
    /// the last one too. Of pages with the same tokens the cache and the tree then hold one.
    pub(crate) fn keep(
        &mut self,
        tokens: &[u32],
        cache: &mut KvCache,
        scores: &PromptScores,
        ended: bool,
    ) {
        self.now += 1;
        let held = &tokens[..tokens.len().min(cache.len())];
        let mut level = &mut self.roots;
        for (index, tokens) in held.chunks(KvCache::PAGE).enumerate() {
            let is_full = tokens.len() == KvCache::PAGE;
            // A page that still grows is not shared: its sequence would have to copy it at the next
            // token.
            let Some(page) = cache.page(index).filter(|_| is_full || ended) else { return };
            let scores = scores.part(index * KvCache::PAGE, tokens.len());
            let known = level.iter().position(|node| node.is_alike(tokens));
            // A partly filled page of a finished sequence and its full version are one node;
            // `merge` keeps the longer one.
            let place = known.unwrap_or(level.len());
            if known.is_none() {
                self.pages += 1;
                level.push(Node::empty(page.clone()));
            }
            let node = &mut level[place];
            self.score_bytes -= node.scores.bytes();
            node.merge(tokens, page, scores);
            self.score_bytes += node.scores.bytes();
            node.used = self.now;
            if is_full {
                // Two sequences may have computed the same page at the same time; from here on they
                // hold one.
                cache.share_page(index, node.page.clone(), KvCache::PAGE);
            }
            level = &mut node.children;
        }
    }

    /// What would be left if everything went that no sequence holds.
    pub(crate) fn least_bytes(&self) -> usize {
        let free = self.free_nodes();
        let bytes = |node: &&Node| self.page_bytes + node.scores.bytes();
        self.bytes() - free.iter().map(bytes).sum::<usize>()
    }

    /// The pages that no sequence holds, nor one after them.
    fn free_nodes(&self) -> Vec<&Node> {
        let mut free = Vec::new();
        for node in &self.roots {
            node.list_free(&mut free);
        }
        free
    }

    /// Drops pages that no sequence holds, least recently used first, until all take at most
    /// `limit` bytes or none is left.
    pub(crate) fn shrink_to(&mut self, limit: usize) {
        while self.bytes() > limit {
            let mut free: Vec<u64> = self.free_nodes().iter().map(|node| node.used).collect();
            free.sort_unstable();
            // The `over`-th oldest of the pages that may go is the newest that must; two walks then
            // drop them.
            let over = (self.bytes() - limit).div_ceil(self.page_bytes.max(1)).min(free.len());
            let Some(newest) = over.checked_sub(1).map(|last| free[last]) else { return };
            let mut dropping = Dropping { newest, left: over, score_bytes: 0 };
            // All that is older first; of those that were used together the ends.
            for newest in [newest - 1, newest] {
                dropping.newest = newest;
                dropping.drop_from(&mut self.roots);
            }
            self.score_bytes -= dropping.score_bytes;
            self.pages -= over - dropping.left;
            self.dropped += over - dropping.left;
        }
    }
}

impl Node {
    fn empty(page: KvPage) -> Self {
        let (tokens, scores, children) = (Vec::new(), PromptScores::default(), Vec::new());
        Self { tokens, page, scores, used: 0, children }
    }

    /// Whether these tokens and its own are one the beginning of the other.
    fn is_alike(&self, tokens: &[u32]) -> bool {
        self.tokens.starts_with(tokens) || tokens.starts_with(&self.tokens)
    }

    /// Takes what others like it have beyond its own.
    fn merge(&mut self, tokens: &[u32], page: KvPage, scores: PromptScores) {
        if tokens.len() > self.tokens.len() {
            (self.tokens, self.page) = (tokens.to_vec(), page);
        }
        let is_more = scores.tokens.len() >= self.scores.tokens.len();
        if scores.top.is_some() && (is_more || scores.top != self.scores.top) {
            self.scores = scores;
        }
    }

    /// Lists the pages that can be dropped. `false`: a sequence holds this page or one after it.
    fn list_free<'a>(&'a self, free: &mut Vec<&'a Self>) -> bool {
        // A page goes only after all that follow it: a child without its beginning could never be
        // found again.
        let children = self.children.iter().filter(|child| !child.list_free(free)).count();
        // One holder is the tree itself; more are sequences in work.
        let is_free = children == 0 && self.page.holders() == 1;
        free.extend(is_free.then_some(self));
        is_free
    }
}

/// What is dropped from a tree.
struct Dropping {
    /// Nothing that was used later.
    newest: u64,
    /// Pages that are still to go.
    left: usize,
    /// What the scores took that went.
    score_bytes: usize,
}

impl Dropping {
    fn drop_from(&mut self, level: &mut Vec<Node>) {
        level.retain_mut(|node| {
            self.drop_from(&mut node.children);
            let is_end = node.children.is_empty() && node.page.holders() == 1;
            if self.left == 0 || node.used > self.newest || !is_end {
                return true;
            }
            self.left -= 1;
            self.score_bytes += node.scores.bytes();
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::job::ScoredToken;
    use crate::tests::model;
    use bitnet_engine::{Model, ThreadPool, Workspace};

    const PAGE: usize = KvCache::PAGE;

    struct Contexts {
        model: Model,
        threads: ThreadPool,
    }

    impl Contexts {
        fn new() -> Self {
            Self { model: model(512), threads: ThreadPool::new(1).unwrap() }
        }

        fn computed(&self, tokens: &[u32]) -> KvCache {
            let mut cache = self.model.new_cache();
            self.model.forward(&mut Workspace::new(&self.threads), &mut cache, tokens).unwrap();
            cache
        }

        /// Keeps a finished sequence; its own cache is gone afterwards.
        fn keep(&self, tree: &mut PageTree, tokens: &[u32]) {
            tree.keep(tokens, &mut self.computed(tokens), &PromptScores::default(), true);
        }

        fn found(&self, tree: &mut PageTree, prompt: &[u32]) -> usize {
            tree.find(prompt, prompt.len(), None, &self.model.new_cache()).0.len()
        }
    }

    /// Tokens that begin like those with the same `first`, and go on like those with the same
    /// `then`.
    fn ids(first: u32, common: usize, then: u32, count: usize) -> Vec<u32> {
        let id = |i: usize| (i as u32 * 7 + if i < common { first } else { 100 + then }) % 300;
        (0..count).map(id).collect()
    }

    #[test]
    fn sequences_that_begin_alike_share_full_pages_and_are_found_to_the_token() {
        let (contexts, mut tree) = (Contexts::new(), PageTree::new(10));
        contexts.keep(&mut tree, &ids(1, 150, 1, 200));
        assert_eq!((tree.pages(), tree.bytes()), (4, 40));
        contexts.keep(&mut tree, &ids(1, 150, 2, 200));
        // Two pages are common; in the third they differ.
        assert_eq!(tree.pages(), 6);
        assert_eq!(contexts.found(&mut tree, &ids(1, 150, 2, 300)), 200);
        assert_eq!(contexts.found(&mut tree, &ids(1, 150, 3, 300)), 150);
        assert_eq!(contexts.found(&mut tree, &ids(1, 70, 3, 300)), 70);
        assert_eq!(contexts.found(&mut tree, &ids(1, 15, 3, 300)), 0, "too few");
        assert_eq!(contexts.found(&mut tree, &ids(2, 300, 0, 300)), 0);
        // A beginning brings nothing, a continuation only what is new.
        contexts.keep(&mut tree, &ids(1, 150, 2, 140));
        contexts.keep(&mut tree, &ids(1, 150, 2, 260));
        assert_eq!(tree.pages(), 7);
        assert_eq!(contexts.found(&mut tree, &ids(1, 150, 2, 300)), 260);
    }

    #[test]
    fn a_sequence_in_work_gets_the_page_that_is_known_already() {
        let (contexts, mut tree) = (Contexts::new(), PageTree::new(10));
        let tokens = ids(1, 100, 0, 100);
        let (mut one, mut two) = (contexts.computed(&tokens), contexts.computed(&tokens));
        tree.keep(&tokens, &mut one, &PromptScores::default(), false);
        assert_eq!(tree.pages(), 1, "the unfinished page is its own");
        tree.keep(&tokens, &mut two, &PromptScores::default(), false);
        // The tree, both caches and this handle.
        assert_eq!(two.page(0).unwrap().holders(), 4);
        assert_eq!(two.page(1).unwrap().holders(), 2);
    }

    #[test]
    fn the_least_recently_used_go_first_and_never_what_a_sequence_holds() {
        let (contexts, mut tree) = (Contexts::new(), PageTree::new(10));
        let (old, new, held) = (ids(1, 128, 0, 128), ids(2, 128, 0, 128), ids(3, 128, 0, 128));
        for tokens in [&old, &held, &new] {
            contexts.keep(&mut tree, tokens);
        }
        assert_eq!(tree.least_bytes(), 0);
        let work = tree.find(&held, PAGE, None, &contexts.model.new_cache()).0;
        assert_eq!(tree.least_bytes(), 10, "of six pages one is held");
        contexts.found(&mut tree, &old);
        contexts.found(&mut tree, &new);
        tree.shrink_to(40);
        assert_eq!((tree.pages(), tree.dropped()), (4, 2), "the end of one, then that of another");
        assert_eq!(contexts.found(&mut tree, &held), PAGE);
        assert_eq!(contexts.found(&mut tree, &old), PAGE);
        assert_eq!(contexts.found(&mut tree, &new), 128);
        tree.shrink_to(0);
        assert_eq!((tree.pages(), contexts.found(&mut tree, &held)), (1, PAGE));
        drop(work);
        tree.shrink_to(0);
        assert_eq!((tree.pages(), tree.bytes()), (0, 0));
    }

    #[test]
    fn only_scores_of_the_same_kind_are_found() {
        let (contexts, mut tree) = (Contexts::new(), PageTree::new(10));
        let token = |id| ScoredToken { id, logprob: Some(-1.0), top: vec![(id, -1.0)] };
        let tokens = ids(1, 150, 0, 150);
        let all = tokens.iter().map(|id| token(*id)).collect();
        // The prompt is scored, and what was generated after it is not.
        let scores = PromptScores { top: Some(1), tokens: all }.part(0, 140);
        tree.keep(&tokens, &mut contexts.computed(&tokens), &scores, true);
        assert!(tree.bytes() > 30 + scores.bytes() - 1);
        let empty = contexts.model.new_cache();
        let mut find = |scored| tree.find(&ids(1, 150, 5, 200), 199, scored, &empty);
        assert_eq!(find(None).0.len(), 150);
        let (cache, found) = find(Some(1));
        assert_eq!((cache.len(), found), (139, scores), "the last is computed again");
        assert_eq!(find(Some(2)).0.len(), 0);
        drop(cache);
        tree.shrink_to(0);
        assert_eq!(tree.bytes(), 0);
    }
}
