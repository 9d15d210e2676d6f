//! The rows of one epoch of one set, each readable on its own.
//!
//! Which row comes next in a run, and from which set, is `loader`'s.

use super::cache::TokenCache;
use super::loader::{Epoch, LoaderSettings};
use super::order::permutation;
use super::packing::{Lengths, LongRows, Packing, PackingStatistics, Segment};
use super::row::{Place, Row};

/// An epoch: a pure function of the set's tokens, the settings, the set's name and the number of
/// the epoch. It costs a few words of memory a document.
#[derive(Debug)]
pub struct EpochPlan {
    cache: TokenCache,
    seq_len: usize,
    packing: Packing,
}

impl EpochPlan {
    /// Orders and packs the documents of `set` for its epoch of that number.
    pub fn new(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self {
        let order = permutation(settings.seed, set, epoch, cache.documents());
        Self::of(cache, settings.seq_len, settings.policy, &order)
    }

    /// In the order of the files, for evaluation: of text every pair once, conversations cut to a
    /// row.
    pub fn in_file_order(cache: &TokenCache, seq_len: usize) -> Self {
        let order: Vec<usize> = (0..cache.documents()).collect();
        let policy = if cache.is_marked() { LongRows::Truncate } else { LongRows::Split };
        Self::of(cache, seq_len, policy, &order)
    }

    fn of(cache: &TokenCache, seq_len: usize, policy: LongRows, order: &[usize]) -> Self {
        let pack = if cache.is_marked() { Packing::of_wholes } else { Packing::of_text };
        Self { cache: cache.clone(), seq_len, packing: pack(order, cache, seq_len, policy) }
    }

    /// Documents of which no row holds anything, because they are too long or their trained
    /// tokens lie beyond the end of a row.
    pub fn left_out(&self) -> Vec<Place> {
        self.packing.left_out().iter().map(|&document| self.cache.place(document)).collect()
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.packing.statistics().rows
    }

    /// What packing did to the documents.
    pub fn statistics(&self) -> PackingStatistics {
        self.packing.statistics()
    }

    /// Row `row`, from 0.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn row(&self, row: u64) -> Row {
        Row::read(&self.cache, self.seq_len, &self.packing.segments(row))
    }
}

impl Epoch for EpochPlan {
    type Item = Row;

    fn plan(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self {
        Self::new(cache, settings, set, epoch)
    }

    fn items(&self) -> u64 {
        self.rows()
    }

    fn item(&self, number: u64) -> Row {
        self.row(number)
    }

    fn why_empty(&self) -> (u64, u64, u64) {
        let PackingStatistics { documents, too_short, dropped, untrained, .. } = self.statistics();
        (documents, too_short, dropped + untrained)
    }
}

impl Lengths for TokenCache {
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
    use crate::data::sample::cache_of;
    use proptest::prelude::*;

    fn settings(policy: LongRows, seq_len: usize) -> LoaderSettings {
        LoaderSettings { seed: 1, seq_len, policy }
    }

    fn rows(plan: &EpochPlan) -> Vec<Row> {
        (0..plan.rows()).map(|row| plan.row(row)).collect()
    }

    #[test]
    fn a_row_holds_inputs_targets_mask_and_segment_starts() {
        let cache = cache_of(&[vec![10, 11, 12], vec![20, 21, 22, 23]]);
        let rows = rows(&EpochPlan::in_file_order(&cache, 3));
        assert_eq!(rows[0].tokens, [10, 11, 20]);
        assert_eq!(rows[0].targets, [11, 12, 21]);
        assert_eq!(rows[0].loss_mask, [1.0, 1.0, 1.0]);
        assert_eq!(rows[0].starts, [0, 0, 2]);
        // The second document goes on as a segment of its own; the padding is one more.
        assert_eq!(rows[1].tokens, [21, 22, 0]);
        assert_eq!(rows[1].targets, [22, 23, 0]);
        assert_eq!(rows[1].loss_mask, [1.0, 1.0, 0.0]);
        assert_eq!(rows[1].starts, [0, 0, 2]);
        let places: Vec<_> = rows[1].documents.iter().map(ToString::to_string).collect();
        assert_eq!(places, ["sample:2"]);
    }

    #[test]
    fn a_cut_document_still_has_a_target_for_its_last_input() {
        let cache = cache_of(&[vec![1, 2, 3, 4, 5]]);
        let plan = EpochPlan::new(&cache, settings(LongRows::Truncate, 3), "a", 0);
        assert_eq!(plan.row(0).tokens, [1, 2, 3]);
        assert_eq!(plan.row(0).targets, [2, 3, 4]);
        assert_eq!(plan.rows(), 1);
    }

    #[test]
    fn epochs_hold_the_same_documents_in_another_order() {
        let documents: Vec<Vec<u32>> = (0..40).map(|n| vec![n, n + 100]).collect();
        let cache = cache_of(&documents);
        let inputs = |epoch| {
            let plan = EpochPlan::new(&cache, settings(LongRows::Split, 8), "a", epoch);
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
        EpochPlan::in_file_order(&cache_of(&[vec![1, 2]]), 4).row(1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_row_is_well_formed(
            lengths in prop::collection::vec(1..30_usize, 1..20),
            seq_len in 1..16_usize,
            policy in prop::sample::select(vec![LongRows::Split, LongRows::Truncate, LongRows::Drop]),
        ) {
            let documents: Vec<Vec<u32>> = lengths
                .iter()
                .enumerate()
                .map(|(n, &length)| (0..length).map(|at| (n * 100 + at) as u32).collect())
                .collect();
            let plan = EpochPlan::new(&cache_of(&documents), settings(policy, seq_len), "a", 0);
            for row in rows(&plan) {
                for length in [row.tokens.len(), row.targets.len(), row.loss_mask.len(), row.starts.len()] {
                    prop_assert_eq!(length, seq_len);
                }
                for at in 0..seq_len {
                    let start = row.starts[at] as usize;
                    prop_assert!(start <= at && row.starts[start] as usize == start);
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
