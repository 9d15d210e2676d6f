//! Which part of which document goes into which row.
//!
//! Pure arithmetic on lengths: a document of n tokens gives n−1 pairs of input and target, and a
//! row holds `seq_len` pairs. Tokens are read in `row`, the order comes from `order`.

use serde::{Deserialize, Serialize};

/// What happens to a document that is longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRows {
    /// The pairs of all documents form one stream that is cut every `seq_len` pairs. A document
    /// that goes on in the next row is a new segment there. Only an epoch's last row is padded.
    Split,
    /// A document is cut to one row. No document is ever split over two: one that does not fit
    /// into the rest of a row opens the next.
    Truncate,
    /// As `Truncate`, but longer documents are left out.
    Drop,
}

/// What packing did to the documents of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackingStatistics {
    /// Documents that came in.
    pub documents: u64,
    /// Left out because they have no pair: fewer than two tokens.
    pub too_short: u64,
    /// Left out because they are longer than a row.
    pub dropped: u64,
    /// Cut to the length of a row.
    pub truncated: u64,
    /// Lying in more than one row.
    pub split: u64,
    /// Rows of the epoch.
    pub rows: u64,
    /// Pairs in them, padding not counted: the trained targets.
    pub pairs: u64,
    /// Pairs there is room for.
    pub capacity: u64,
}

impl PackingStatistics {
    /// The part of the rows that is not padding, from 0 to 1.
    pub fn efficiency(&self) -> f64 {
        self.pairs as f64 / self.capacity.max(1) as f64
    }
}

/// Neighbouring pairs of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The document's number in the cache.
    pub(crate) document: usize,
    /// The first input, counted in the document.
    pub(crate) from: usize,
    /// How many pairs; at least one.
    pub(crate) pairs: usize,
}

/// The rows of an epoch, each found without walking through those before it.
#[derive(Debug)]
pub(crate) struct Packing {
    seq_len: u64,
    /// Documents that take part, in order.
    order: Vec<usize>,
    /// For each the pairs up to its end.
    ends: Vec<u64>,
    /// Where documents stay whole: for each row the first entry of `order`, and the end.
    rows: Option<Vec<usize>>,
    statistics: PackingStatistics,
}

impl Packing {
    /// Packs the documents `order`; `length` is a document's number of tokens.
    pub(crate) fn new(
        order: &[usize],
        length: impl Fn(usize) -> u64,
        seq_len: usize,
        policy: LongRows,
    ) -> Self {
        assert!(seq_len > 0, "a row holds at least one pair");
        let mut packing = Self {
            seq_len: seq_len as u64,
            order: Vec::with_capacity(order.len()),
            ends: Vec::with_capacity(order.len()),
            rows: None,
            statistics: PackingStatistics { documents: order.len() as u64, ..Default::default() },
        };
        for &document in order {
            packing.admit(document, length(document), policy);
        }
        match policy {
            LongRows::Split => packing.count_split(),
            LongRows::Truncate | LongRows::Drop => packing.keep_whole(),
        }
        packing.count_rows();
        packing
    }

    pub(crate) fn statistics(&self) -> PackingStatistics {
        self.statistics
    }

    /// The segments of a row in order; what they leave free is padding.
    pub(crate) fn segments(&self, row: u64) -> Vec<Segment> {
        assert!(row < self.statistics.rows, "row {row} of {}", self.statistics.rows);
        match &self.rows {
            Some(rows) => {
                let row = row as usize;
                (rows[row]..rows[row + 1]).map(|index| self.segment(index, 0, u64::MAX)).collect()
            }
            None => self.stretch(row * self.seq_len, (row + 1) * self.seq_len),
        }
    }

    fn admit(&mut self, document: usize, tokens: u64, policy: LongRows) {
        let pairs = match tokens.saturating_sub(1) {
            0 => return self.statistics.too_short += 1,
            pairs if pairs <= self.seq_len || policy == LongRows::Split => pairs,
            _ if policy == LongRows::Drop => return self.statistics.dropped += 1,
            _ => {
                self.statistics.truncated += 1;
                self.seq_len
            }
        };
        self.order.push(document);
        self.ends.push(self.pairs() + pairs);
    }

    /// Pairs of all documents admitted.
    fn pairs(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The pairs before entry `index` of the order.
    fn start(&self, index: usize) -> u64 {
        if index == 0 { 0 } else { self.ends[index - 1] }
    }

    fn count_split(&mut self) {
        let row = |pair: u64| pair / self.seq_len;
        let split = |index: &usize| row(self.start(*index)) != row(self.ends[*index] - 1);
        self.statistics.split = (0..self.order.len()).filter(split).count() as u64;
    }

    /// Greedy and in order: a document that does not fit opens a row.
    fn keep_whole(&mut self) {
        let mut rows = Vec::new();
        let mut row_start = 0;
        for index in 0..self.order.len() {
            if rows.is_empty() || self.ends[index] - row_start > self.seq_len {
                rows.push(index);
                row_start = self.start(index);
            }
        }
        rows.push(self.order.len());
        self.rows = Some(rows);
    }

    fn count_rows(&mut self) {
        let rows = match &self.rows {
            Some(rows) => rows.len() as u64 - 1,
            None => self.pairs().div_ceil(self.seq_len),
        };
        let (pairs, capacity) = (self.pairs(), rows * self.seq_len);
        self.statistics = PackingStatistics { rows, pairs, capacity, ..self.statistics };
    }

    /// The pairs `from..to` of the stream of all documents.
    fn stretch(&self, from: u64, to: u64) -> Vec<Segment> {
        let first = self.ends.partition_point(|&end| end <= from);
        let inside = |index: &usize| self.start(*index) < to;
        (first..self.order.len())
            .take_while(inside)
            .map(|index| self.segment(index, from, to))
            .collect()
    }

    /// What of a document lies in the pairs `from..to` of the stream.
    fn segment(&self, index: usize, from: u64, to: u64) -> Segment {
        let start = self.start(index);
        let (first, end) = (start.max(from), self.ends[index].min(to));
        Segment {
            document: self.order[index],
            from: (first - start) as usize,
            pairs: (end - first) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(lengths: &[u64], seq_len: usize, policy: LongRows) -> Packing {
        let order: Vec<usize> = (0..lengths.len()).collect();
        Packing::new(&order, |document| lengths[document], seq_len, policy)
    }

    /// (document, from, pairs) of every row.
    fn rows(packing: &Packing) -> Vec<Vec<(usize, usize, usize)>> {
        let plain = |segment: &Segment| (segment.document, segment.from, segment.pairs);
        let row = |row| packing.segments(row).iter().map(plain).collect();
        (0..packing.statistics().rows).map(row).collect()
    }

    #[test]
    fn splitting_cuts_one_stream_of_pairs_and_pads_only_its_end() {
        let packing = pack(&[4, 2, 8, 1, 3], 4, LongRows::Split);
        assert_eq!(
            rows(&packing),
            [
                vec![(0, 0, 3), (1, 0, 1)],
                vec![(2, 0, 4)],
                vec![(2, 4, 3), (4, 0, 1)],
                vec![(4, 1, 1)]
            ]
        );
        let statistics = packing.statistics();
        assert_eq!((statistics.documents, statistics.too_short, statistics.split), (5, 1, 2));
        assert_eq!((statistics.rows, statistics.pairs, statistics.capacity), (4, 13, 16));
        assert!((statistics.efficiency() - 13.0 / 16.0).abs() < 1e-12);
    }

    #[test]
    fn truncating_cuts_long_documents_and_never_splits_one() {
        let packing = pack(&[3, 3, 9, 0, 5, 2], 4, LongRows::Truncate);
        assert_eq!(
            rows(&packing),
            [vec![(0, 0, 2), (1, 0, 2)], vec![(2, 0, 4)], vec![(4, 0, 4)], vec![(5, 0, 1)]]
        );
        let statistics = packing.statistics();
        assert_eq!((statistics.truncated, statistics.dropped, statistics.split), (1, 0, 0));
    }

    #[test]
    fn dropping_leaves_long_documents_out_and_keeps_those_that_just_fit() {
        let packing = pack(&[5, 6, 3, 4], 4, LongRows::Drop);
        assert_eq!(rows(&packing), [vec![(0, 0, 4)], vec![(2, 0, 2)], vec![(3, 0, 3)]]);
        assert_eq!((packing.statistics().truncated, packing.statistics().dropped), (0, 1));
    }

    #[test]
    fn documents_without_a_pair_give_no_rows() {
        for policy in [LongRows::Split, LongRows::Truncate, LongRows::Drop] {
            assert_eq!(rows(&pack(&[0, 1], 4, policy)), Vec::<Vec<_>>::new());
            assert_eq!(rows(&pack(&[], 4, policy)), Vec::<Vec<_>>::new());
        }
    }

    #[test]
    fn policies_are_spelled_as_in_the_recipe() {
        let policies = [LongRows::Split, LongRows::Truncate, LongRows::Drop];
        let text = serde_json::to_string(&policies).unwrap();
        assert_eq!(text, r#"["split","truncate","drop"]"#);
    }

    proptest! {
        #[test]
        fn splitting_uses_every_pair_once_and_in_order(
            lengths in prop::collection::vec(0..40_u64, 0..30), seq_len in 1..20_usize,
        ) {
            let packing = pack(&lengths, seq_len, LongRows::Split);
            let rows = rows(&packing);
            let pairs = rows.iter().flatten().flat_map(|&(document, from, pairs)| {
                (from..from + pairs).map(move |pair| (document, pair))
            });
            let expected = lengths.iter().enumerate().flat_map(|(document, &tokens)| {
                (1..tokens as usize).map(move |end| (document, end - 1))
            });
            prop_assert!(pairs.eq(expected));
            let full = |row: &Vec<(_, _, usize)>| row.iter().map(|part| part.2).sum::<usize>() == seq_len;
            prop_assert!(rows.iter().rev().skip(1).all(full));
        }

        #[test]
        fn whole_documents_fill_rows_greedily(
            lengths in prop::collection::vec(0..40_u64, 0..30), seq_len in 1..20_usize, cut: bool,
        ) {
            let policy = if cut { LongRows::Truncate } else { LongRows::Drop };
            let packing = pack(&lengths, seq_len, policy);
            let rows = rows(&packing);
            let size = |row: &Vec<(_, _, usize)>| row.iter().map(|part| part.2).sum::<usize>();
            prop_assert!(rows.iter().all(|row| (1..=seq_len).contains(&size(row))));
            for next in rows.windows(2) {
                prop_assert!(size(&next[0]) + next[1][0].2 > seq_len, "it would have fitted");
            }
            let kept = lengths.iter().enumerate().filter_map(|(document, &tokens)| {
                let pairs = (tokens as usize).saturating_sub(1);
                let fits = pairs <= seq_len;
                (pairs > 0 && (cut || fits)).then_some((document, 0, pairs.min(seq_len)))
            });
            prop_assert!(rows.iter().flatten().copied().eq(kept));
        }
    }
}
