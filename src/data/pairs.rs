//! Preference pairs: a prompt with a chosen and a rejected answer, as two rows of equal length.
//!
//! A pair that is too long loses the beginning of its prompt and never a part of an answer. Its
//! rows are padded to a length that depends on this pair alone, so that what the model makes of it
//! does not depend on the pairs beside it.

use std::sync::Arc;

use super::cache::TokenCache;
use super::loader::{Epoch, LoaderSettings};
use super::order::permutation;
use super::packing::LongRows;
use super::row::{Place, Row};

/// Rows are padded to a multiple of this many tokens.
const LENGTH_STEP: usize = 32;

/// A prompt with two answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The set it is from.
    pub set: Arc<str>,
    /// Its number in the set, from 0.
    pub index: usize,
    /// Prompt and better answer; only the answer is marked.
    pub chosen: Row,
    /// Prompt and worse answer.
    pub rejected: Row,
}

/// What became of the pairs of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairStatistics {
    /// Pairs that came in.
    pub pairs: u64,
    /// Pairs whose prompt lost its beginning.
    pub truncated: u64,
    /// Left out: too long under `drop`, or an answer that does not fit.
    pub dropped: u64,
    /// Tokens of both rows of all pairs, padding not counted.
    pub tokens: u64,
    /// The same with the padding.
    pub capacity: u64,
}

/// The pairs of one epoch of one set, in a shuffled order.
#[derive(Debug)]
pub struct PairPlan {
    cache: TokenCache,
    set: Arc<str>,
    seq_len: usize,
    order: Vec<usize>,
    left_out: Vec<usize>,
    statistics: PairStatistics,
}

/// How a pair fits into rows.
enum Fit {
    /// Rows of `length` tokens, with `cut` tokens of the prompt left out behind the first.
    Rows { length: usize, cut: usize },
    /// Not at all.
    Not,
}

impl PairPlan {
    /// In the order of the files: for evaluation and for reference log-probabilities.
    pub fn in_file_order(cache: &TokenCache, settings: LoaderSettings, set: &str) -> Self {
        let order = (0..cache.documents() / 2).collect();
        Self::of(cache, settings, set, order)
    }

    fn of(cache: &TokenCache, settings: LoaderSettings, set: &str, order: Vec<usize>) -> Self {
        let (cache, seq_len) = (cache.clone(), settings.seq_len);
        let statistics = PairStatistics { pairs: order.len() as u64, ..Default::default() };
        let mut plan =
            Self { cache, set: set.into(), seq_len, order, left_out: Vec::new(), statistics };
        let order = std::mem::take(&mut plan.order);
        for pair in order {
            plan.admit(pair, settings.policy);
        }
        plan
    }

    /// What became of the pairs.
    pub fn statistics(&self) -> PairStatistics {
        self.statistics
    }

    /// The number in the set of item `number`.
    pub fn index(&self, number: u64) -> usize {
        self.order[number as usize]
    }

    /// The pairs that were left out.
    pub fn left_out(&self) -> Vec<Place> {
        self.left_out.iter().map(|&pair| self.cache.place(2 * pair)).collect()
    }

    fn admit(&mut self, pair: usize, policy: LongRows) {
        let Fit::Rows { length, cut } = self.fit(pair) else {
            return self.leave_out(pair);
        };
        if cut > 0 && policy == LongRows::Drop {
            return self.leave_out(pair);
        }
        let [chosen, rejected] = self.lengths(pair);
        self.statistics.truncated += u64::from(cut > 0);
        self.statistics.tokens += (chosen + rejected - 2 - 2 * cut) as u64;
        self.statistics.capacity += 2 * length as u64;
        self.order.push(pair);
    }

    fn leave_out(&mut self, pair: usize) {
        self.statistics.dropped += 1;
        self.left_out.push(pair);
    }

    fn lengths(&self, pair: usize) -> [usize; 2] {
        [2 * pair, 2 * pair + 1].map(|document| self.cache.length(document) as usize)
    }

    fn fit(&self, pair: usize) -> Fit {
        let [chosen, rejected] = self.lengths(pair);
        let inputs = chosen.max(rejected) - 1;
        let cut = inputs.saturating_sub(self.seq_len);
        let prompt = self.cache.first_trained(2 * pair).unwrap_or(0);
        if cut >= prompt.max(1) {
            return Fit::Not;
        }
        let length = (inputs - cut).next_multiple_of(LENGTH_STEP).min(self.seq_len);
        Fit::Rows { length, cut }
    }
}

impl Epoch for PairPlan {
    type Item = Pair;

    fn plan(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self {
        let order = permutation(settings.seed, set, epoch, cache.documents() / 2);
        Self::of(cache, settings, set, order)
    }

    fn items(&self) -> u64 {
        self.order.len() as u64
    }

    fn item(&self, number: u64) -> Pair {
        let index = self.order[number as usize];
        let Fit::Rows { length, cut } = self.fit(index) else {
            unreachable!("only pairs that fit are in the order");
        };
        let row = |document| Row::whole(&self.cache, document, cut, length);
        let (chosen, rejected) = (row(2 * index), row(2 * index + 1));
        Pair { set: Arc::clone(&self.set), index, chosen, rejected }
    }

    fn why_empty(&self) -> (u64, u64, u64) {
        (self.statistics.pairs, 0, self.statistics.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::cache_of_dialogues;
    use bitnet_text::Dialogue;

    /// A prompt of ids from 100 and an answer of ids from `answer`, which alone is trained.
    fn side(prompt: u32, answer: u32, length: u32) -> Dialogue {
        let ids = (100..100 + prompt).chain(answer..answer + length).collect();
        Dialogue { ids, trained: (0..prompt + length).map(|at| at >= prompt).collect() }
    }

    fn plan(sides: &[Dialogue], seq_len: usize, policy: LongRows) -> PairPlan {
        let settings = LoaderSettings { seed: 1, seq_len, policy };
        PairPlan::in_file_order(&cache_of_dialogues(sides), settings, "train")
    }

    #[test]
    fn both_rows_have_one_length_that_depends_on_the_pair_alone() {
        let sides = [side(3, 1, 2), side(3, 11, 4), side(3, 1, 40), side(3, 11, 2)];
        let plan = plan(&sides, 100, LongRows::Truncate);
        let pair = plan.item(0);
        assert_eq!(pair.chosen.tokens[..5], [100, 101, 102, 1, 0]);
        assert_eq!(pair.chosen.targets[..5], [101, 102, 1, 2, 0]);
        assert_eq!(pair.chosen.loss_mask[..5], [0.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(pair.rejected.loss_mask[..7], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!((pair.chosen.tokens.len(), pair.rejected.tokens.len()), (32, 32));
        assert_eq!(plan.item(1).chosen.tokens.len(), 64);
        assert_eq!(pair.chosen.starts, [0; 32]);
        assert_eq!((plan.statistics().tokens, plan.statistics().capacity), (56, 192));
    }

    #[test]
    fn a_long_prompt_loses_what_follows_its_first_token_and_equally_on_both_sides() {
        let plan = plan(&[side(6, 1, 2), side(6, 11, 4)], 6, LongRows::Truncate);
        let pair = plan.item(0);
        // Nine inputs of which six fit: three tokens behind the first go.
        assert_eq!(pair.rejected.tokens, [100, 104, 105, 11, 12, 13]);
        assert_eq!(pair.rejected.targets, [104, 105, 11, 12, 13, 14]);
        assert_eq!(pair.chosen.tokens, [100, 104, 105, 1, 0, 0]);
        assert_eq!(pair.chosen.targets, [104, 105, 1, 2, 0, 0]);
        assert_eq!(pair.chosen.loss_mask, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(plan.statistics().truncated, 1);
    }

    #[test]
    fn an_answer_that_does_not_fit_leaves_its_pair_out() {
        let sides = [side(3, 1, 2), side(3, 11, 9), side(3, 1, 1), side(3, 11, 2)];
        let plan = plan(&sides, 6, LongRows::Truncate);
        assert_eq!((plan.items(), plan.statistics().dropped), (1, 1));
        assert_eq!(plan.item(0).index, 1);
        assert_eq!(plan.left_out()[0].line, 1);
    }

    #[test]
    fn drop_leaves_out_what_would_be_cut() {
        let sides = [side(6, 1, 2), side(6, 11, 4), side(3, 1, 1), side(3, 11, 2)];
        let plan = plan(&sides, 6, LongRows::Drop);
        assert_eq!((plan.items(), plan.statistics().truncated), (1, 0));
    }
}
