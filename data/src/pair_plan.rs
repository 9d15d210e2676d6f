//! The preference pairs of one epoch of one set: a prompt with a chosen and a rejected answer, as
//! two sequences of equal length.
//!
//! ```text
//! chosen     p p p p | c c c . . .
//! rejected   p p p p | r r r r r .      `p` prompt, `.` padding
//! ```
//!
//! A pair that is too long loses the start of its prompt, but no part of an answer. Its length
//! depends only on this pair, so the result of the model does not depend on the pairs beside it.

use std::sync::Arc;

use super::cache::TokenCache;
use super::document::SourceLocation;
use super::epoch::{EpochPlan, LoaderSettings};
use super::order::permutation;
use super::packing::{LongDocuments, PackingStatistics};
use super::sequence::PackedSequence;

/// Sequences are padded to a multiple of this many tokens.
const LENGTH_STEP: usize = 32;

/// A prompt with two answers.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// Its set.
    pub set: Arc<str>,
    /// Its index in the set.
    pub index: usize,
    /// Prompt and better answer; only the answer is trained.
    pub chosen: PackedSequence,
    /// Prompt and worse answer.
    pub rejected: PackedSequence,
}

/// The pairs of one epoch of one set.
#[derive(Debug)]
pub struct PairPlan {
    cache: TokenCache,
    set: Arc<str>,
    seq_len: usize,
    /// The indices of the pairs that fit.
    order: Vec<usize>,
    left_out: Vec<usize>,
    statistics: PackingStatistics,
}

/// The sequences of a pair have `length` tokens. The `cut` tokens after the first are left out.
struct PairShape {
    length: usize,
    cut: usize,
}

impl PairPlan {
    /// In the order of the files, for evaluation and for reference log-probabilities.
    pub fn in_file_order(cache: &TokenCache, settings: LoaderSettings, set: &str) -> Self {
        Self::in_order(cache, settings, set, &(0..cache.documents() / 2).collect::<Vec<_>>())
    }

    fn in_order(cache: &TokenCache, settings: LoaderSettings, set: &str, order: &[usize]) -> Self {
        let statistics = PackingStatistics { documents: order.len() as u64, ..Default::default() };
        let mut plan = Self {
            cache: cache.clone(),
            set: set.into(),
            seq_len: settings.seq_len,
            order: Vec::with_capacity(order.len()),
            left_out: Vec::new(),
            statistics,
        };
        for &pair in order {
            plan.add(pair, settings.policy);
        }
        plan
    }

    /// The index in the set of item `number`.
    pub fn index(&self, number: u64) -> usize {
        self.order[number as usize]
    }

    fn add(&mut self, pair: usize, policy: LongDocuments) {
        let shape = self.shape(pair);
        let shape = shape.filter(|shape| shape.cut == 0 || policy != LongDocuments::Drop);
        let Some(PairShape { length, cut }) = shape else {
            self.statistics.dropped += 1;
            return self.left_out.push(pair);
        };
        let [chosen, rejected] = self.lengths(pair);
        self.statistics.truncated += u64::from(cut > 0);
        // A pair is two rows of a pass.
        self.statistics.rows += 2;
        self.statistics.pairs += (chosen + rejected - 2 - 2 * cut) as u64;
        self.statistics.capacity += 2 * length as u64;
        self.order.push(pair);
    }

    fn lengths(&self, pair: usize) -> [usize; 2] {
        [2 * pair, 2 * pair + 1].map(|document| self.cache.length(document) as usize)
    }

    /// `None` if the answers do not fit even without the prompt, or if there is nothing to prefer.
    fn shape(&self, pair: usize) -> Option<PairShape> {
        let [chosen, rejected] = self.lengths(pair);
        let inputs = chosen.max(rejected) - 1;
        // Both sides lose the same tokens, as many as the longer one needs: the prompt stays
        // common.
        let cut = inputs.saturating_sub(self.seq_len);
        let prompt = self.cache.first_trained(2 * pair)?;
        let length = (inputs - cut).next_multiple_of(LENGTH_STEP).min(self.seq_len);
        // The cut may reach into the prompt only; the first token (BOS) always stays.
        (cut < prompt.max(1)).then_some(PairShape { length, cut })
    }
}

impl EpochPlan for PairPlan {
    type Item = PreferencePair;

    fn new(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self {
        let order = permutation(settings.seed, set, epoch, cache.documents() / 2);
        Self::in_order(cache, settings, set, &order)
    }

    fn items(&self) -> u64 {
        self.order.len() as u64
    }

    fn item(&self, number: u64) -> PreferencePair {
        let index = self.index(number);
        let PairShape { length, cut } = self.shape(index).expect("the order has pairs that fit");
        let [chosen, rejected] = [2 * index, 2 * index + 1]
            .map(|document| PackedSequence::from_document(&self.cache, document, cut, length));
        PreferencePair { set: Arc::clone(&self.set), index, chosen, rejected }
    }

    fn statistics(&self) -> PackingStatistics {
        self.statistics
    }

    fn left_out(&self) -> Vec<SourceLocation> {
        self.left_out.iter().map(|&pair| self.cache.location(2 * pair)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::cache_of_dialogues;
    use bitnet_text::Dialogue;

    /// A prompt of ids from 100 and an answer of ids from `answer`, which alone is trained.
    fn side(prompt: u32, answer: u32, length: u32) -> Dialogue {
        let ids = (100..100 + prompt).chain(answer..answer + length).collect();
        Dialogue { ids, trained: (0..prompt + length).map(|at| at >= prompt).collect() }
    }

    fn plan(sides: &[Dialogue], seq_len: usize, policy: LongDocuments) -> PairPlan {
        let settings = LoaderSettings { seed: 1, seq_len, policy };
        PairPlan::in_file_order(&cache_of_dialogues(sides), settings, "train")
    }

    #[test]
    fn both_rows_have_one_length_that_depends_on_the_pair_alone() {
        let sides = [side(3, 1, 2), side(3, 11, 4), side(3, 1, 40), side(3, 11, 2)];
        let plan = plan(&sides, 100, LongDocuments::Truncate);
        let pair = plan.item(0);
        assert_eq!(pair.chosen.tokens[..5], [100, 101, 102, 1, 0]);
        assert_eq!(pair.chosen.targets[..5], [101, 102, 1, 2, 0]);
        assert_eq!(pair.chosen.loss_mask[..5], [0.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(pair.rejected.loss_mask[..7], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!((pair.chosen.tokens.len(), pair.rejected.tokens.len()), (32, 32));
        assert_eq!(plan.item(1).chosen.tokens.len(), 64);
        assert_eq!(pair.chosen.segment_starts, [0; 32]);
        assert_eq!((plan.statistics().pairs, plan.statistics().capacity), (56, 192));
    }

    #[test]
    fn a_long_prompt_loses_what_follows_its_first_token_and_equally_on_both_sides() {
        let plan = plan(&[side(6, 1, 2), side(6, 11, 4)], 6, LongDocuments::Truncate);
        let pair = plan.item(0);
        // Nine inputs of which six fit: three tokens after the first go.
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
        let plan = plan(&sides, 6, LongDocuments::Truncate);
        assert_eq!((plan.items(), plan.statistics().dropped), (1, 1));
        assert_eq!(plan.item(0).index, 1);
        assert_eq!(plan.left_out()[0].line, 1);
    }

    #[test]
    fn drop_leaves_out_what_would_be_cut() {
        let sides = [side(6, 1, 2), side(6, 11, 4), side(3, 1, 1), side(3, 11, 2)];
        let plan = plan(&sides, 6, LongDocuments::Drop);
        assert_eq!((plan.items(), plan.statistics().truncated), (1, 0));
    }
}
