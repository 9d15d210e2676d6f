//! The packed sequences of one epoch of one set, each readable on its own.

use std::sync::Arc;

use super::cache::TokenCache;
use super::document::SourceLocation;
use super::epoch::{EpochPlan, LoaderSettings};
use super::order::permutation;
use super::packing::{DocumentLengths, LongDocuments, PackedLayout, PackingStatistics, Segment};
use super::sequence::PackedSequence;

/// An epoch of packed sequences. It takes a few words of memory per document.
#[derive(Debug)]
pub struct SequencePlan {
    cache: TokenCache,
    set: Arc<str>,
    seq_len: usize,
    layout: PackedLayout,
}

impl SequencePlan {
    /// In the order of the files, for evaluation. Text is split, so that every pair of input and
    /// target comes once; conversations are truncated.
    pub fn in_file_order(cache: &TokenCache, seq_len: usize) -> Self {
        let order: Vec<usize> = (0..cache.documents()).collect();
        let policy = if cache.is_marked() { LongDocuments::Truncate } else { LongDocuments::Split };
        Self::in_order(cache, "", seq_len, policy, &order)
    }

    fn in_order(
        cache: &TokenCache,
        set: &str,
        seq_len: usize,
        policy: LongDocuments,
        order: &[usize],
    ) -> Self {
        let pack = if cache.is_marked() { PackedLayout::of_wholes } else { PackedLayout::of_text };
        let layout = pack(order, cache, seq_len, policy);
        Self { cache: cache.clone(), set: set.into(), seq_len, layout }
    }
}

impl EpochPlan for SequencePlan {
    type Item = PackedSequence;

    fn new(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self {
        let order = permutation(settings.seed, set, epoch, cache.documents());
        Self::in_order(cache, set, settings.seq_len, settings.policy, &order)
    }

    fn items(&self) -> u64 {
        self.layout.statistics().rows
    }

    fn item(&self, number: u64) -> PackedSequence {
        let segments = self.layout.segments(number);
        PackedSequence::from_segments(&self.cache, &self.set, self.seq_len, segments)
    }

    fn statistics(&self) -> PackingStatistics {
        self.layout.statistics()
    }

    fn left_out(&self) -> Vec<SourceLocation> {
        self.layout.left_out().iter().map(|&document| self.cache.location(document)).collect()
    }
}

/// All sequences of a validation set, in the order of the files. For text, the losses cover every
/// token of every document but its first; with [`TokenCache::statistics`] they give bits per byte.
pub fn validation_sequences(
    cache: &TokenCache,
    seq_len: usize,
) -> impl Iterator<Item = PackedSequence> + use<> {
    let plan = SequencePlan::in_file_order(cache, seq_len);
    (0..plan.items()).map(move |number| plan.item(number))
}

impl DocumentLengths for TokenCache {
    fn tokens(&self, document: usize) -> usize {
        self.length(document) as usize
    }

    fn trains(&self, Segment { document, from, pairs }: Segment) -> bool {
        // A document of text is trained throughout, and a whole conversation was checked.
        !self.is_marked() || self.trains_any(document, from + 1..from + pairs + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::cache_of;
    use proptest::prelude::*;

    fn settings(policy: LongDocuments, seq_len: usize) -> LoaderSettings {
        LoaderSettings { seed: 1, seq_len, policy }
    }

    fn rows(plan: &SequencePlan) -> Vec<PackedSequence> {
        (0..plan.items()).map(|row| plan.item(row)).collect()
    }

    #[test]
    fn a_row_holds_inputs_targets_mask_and_segment_starts() {
        let cache = cache_of(&[vec![10, 11, 12], vec![20, 21, 22, 23]]);
        let rows = rows(&SequencePlan::in_file_order(&cache, 3));
        assert_eq!(rows[0].tokens, [10, 11, 20]);
        assert_eq!(rows[0].targets, [11, 12, 21]);
        assert_eq!(rows[0].loss_mask, [1.0, 1.0, 1.0]);
        assert_eq!(rows[0].segment_starts, [0, 0, 2]);
        // The second document goes on as a segment of its own; the padding is one more.
        assert_eq!(rows[1].tokens, [21, 22, 0]);
        assert_eq!(rows[1].targets, [22, 23, 0]);
        assert_eq!(rows[1].loss_mask, [1.0, 1.0, 0.0]);
        assert_eq!(rows[1].segment_starts, [0, 0, 2]);
        let places: Vec<_> = rows[1].documents.iter().map(ToString::to_string).collect();
        assert_eq!(places, ["sample:2"]);
        assert_eq!(rows[1].segments, [Segment { document: 1, from: 1, pairs: 2 }]);
    }

    #[test]
    fn a_cut_document_still_has_a_target_for_its_last_input() {
        let cache = cache_of(&[vec![1, 2, 3, 4, 5]]);
        let plan = SequencePlan::new(&cache, settings(LongDocuments::Truncate, 3), "a", 0);
        assert_eq!(plan.item(0).tokens, [1, 2, 3]);
        assert_eq!(plan.item(0).targets, [2, 3, 4]);
        assert_eq!(plan.items(), 1);
    }

    #[test]
    fn epochs_hold_the_same_documents_in_another_order() {
        let documents: Vec<Vec<u32>> = (0..40).map(|n| vec![n, n + 100]).collect();
        let cache = cache_of(&documents);
        let inputs = |epoch| {
            let plan = SequencePlan::new(&cache, settings(LongDocuments::Split, 8), "a", epoch);
            rows(&plan).into_iter().flat_map(|row| row.tokens).collect::<Vec<_>>()
        };
        assert_eq!(inputs(0), inputs(0));
        assert_ne!(inputs(0), inputs(1));
        let sorted = |mut tokens: Vec<i32>| {
            tokens.sort_unstable();
            tokens
        };
        assert_eq!(sorted(inputs(0)), sorted(inputs(1)));
    }

    #[test]
    #[should_panic(expected = "row 1 of 1")]
    fn a_row_beyond_the_epoch_is_a_bug_of_the_caller() {
        SequencePlan::in_file_order(&cache_of(&[vec![1, 2]]), 4).item(1);
    }

    #[test]
    fn every_pair_comes_once_and_in_file_order() {
        let cache = cache_of(&[vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9, 10, 11]]);
        let rows: Vec<PackedSequence> = validation_sequences(&cache, 3).collect();
        let trained = |row: &PackedSequence| {
            let pairs = row.tokens.iter().zip(&row.targets).zip(&row.loss_mask);
            pairs.filter(|(_, mask)| **mask > 0.0).map(|((a, b), _)| (*a, *b)).collect::<Vec<_>>()
        };
        let pairs: Vec<_> = rows.iter().flat_map(trained).collect();
        let expected = [(1, 2), (2, 3), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11)];
        assert_eq!(pairs, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_row_is_well_formed(
            lengths in prop::collection::vec(1..30_usize, 1..20),
            seq_len in 1..16_usize,
            policy in prop::sample::select(vec![LongDocuments::Split, LongDocuments::Truncate, LongDocuments::Drop]),
        ) {
            let documents: Vec<Vec<u32>> = lengths
                .iter()
                .enumerate()
                .map(|(n, &length)| (0..length).map(|at| (n * 100 + at) as u32).collect())
                .collect();
            let plan = SequencePlan::new(&cache_of(&documents), settings(policy, seq_len), "a", 0);
            for row in rows(&plan) {
                for length in [row.tokens.len(), row.targets.len(), row.loss_mask.len(), row.segment_starts.len()] {
                    prop_assert_eq!(length, seq_len);
                }
                for at in 0..seq_len {
                    let start = row.segment_starts[at] as usize;
                    prop_assert!(start <= at && row.segment_starts[start] as usize == start);
                    if row.loss_mask[at] > 0.0 {
                        prop_assert_eq!(row.targets[at], row.tokens[at] + 1);
                        prop_assert_eq!(row.tokens[at] - row.tokens[start], (at - start) as i32);
                    } else {
                        prop_assert_eq!((row.tokens[at], row.targets[at]), (0, 0));
                    }
                }
            }
        }
    }
}
