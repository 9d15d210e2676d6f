//! Rows for held-out loss: in the order of the files, without shuffling, every pair once.

use super::cache::TokenCache;
use super::plan::EpochPlan;
use super::row::Row;

/// All rows of a validation set. Documents are packed by splitting, so the sum of the losses runs
/// over every token of every document but the first; with `TokenCache::statistics` it gives bits
/// per byte.
pub fn validation_rows(cache: &TokenCache, seq_len: usize) -> impl Iterator<Item = Row> + use<> {
    let plan = EpochPlan::in_file_order(cache, seq_len);
    (0..plan.rows()).map(move |row| plan.row(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::cache_of;

    #[test]
    fn every_pair_comes_once_and_in_file_order() {
        let cache = cache_of(&[vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9, 10, 11]]);
        let rows: Vec<Row> = validation_rows(&cache, 3).collect();
        let trained = |row: &Row| {
            let pairs = row.tokens.iter().zip(&row.targets).zip(&row.loss_mask);
            pairs.filter(|(_, mask)| **mask > 0.0).map(|((a, b), _)| (*a, *b)).collect::<Vec<_>>()
        };
        let pairs: Vec<_> = rows.iter().flat_map(trained).collect();
        let expected = [(1, 2), (2, 3), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11)];
        assert_eq!(pairs, expected);
    }
}
