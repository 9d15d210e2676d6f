//! Packing: which part of which document goes into which row.
//!
//! This is arithmetic on lengths only. A document of n tokens gives n−1 pairs of input and target,
//! and a row holds `seq_len` pairs. With rows of 8 pairs and documents a (5 pairs), b (6), c (3):
//!
//! ```text
//! split      aaaaabbb   bbbccc..        one stream, cut every 8 pairs
//!                 |        |            a segment begins at each document and at each row
//! truncate   aaaaaccc   bbbbbb..        whole documents, each in the fullest row it fits in
//! ```
//!
//! The dots are padding. `sequence` reads the tokens, `order` orders the documents.

use serde::{Deserialize, Serialize};

/// The number of rows that are open at the same time while whole documents are packed. More open
/// rows leave less padding, but mix documents that are far apart in the order.
const OPEN_ROWS: usize = 32;

/// What happens to a document that is longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongDocuments {
    /// Text: the pairs of all documents form one stream that is cut every `seq_len` pairs. A
    /// document that continues in the next row starts a new segment there, and only the last row of
    /// an epoch is padded. Conversations: a long one becomes several pieces of at most one row.
    Split,
    /// A document is cut to one row. Documents are never split over two rows: one that does not fit
    /// into the rest of an open row goes into another.
    Truncate,
    /// As `Truncate`, but longer documents are left out.
    Drop,
}

/// What packing did to the documents of an epoch. Preference pairs count as one document each.
///
/// Documents that are left out are counted and reported, because the loss would not show them:
/// truncation can remove all trained tokens of a conversation whose answer comes last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackingStatistics {
    /// All documents.
    pub documents: u64,
    /// Left out because they have no pair: fewer than two tokens.
    pub too_short: u64,
    /// Left out because they are too long.
    pub dropped: u64,
    /// Cut to the length of a row (preference pairs: the start of the prompt is cut).
    pub truncated: u64,
    /// Left out because the part that fits in a row has no trained token.
    pub untrained: u64,
    /// Split over several rows.
    pub split: u64,
    /// Rows of the epoch.
    pub rows: u64,
    /// Pairs of input and target in them, without padding.
    pub pairs: u64,
    /// The same with padding.
    pub capacity: u64,
}

impl PackingStatistics {
    /// The fraction of the rows that is not padding.
    pub fn efficiency(&self) -> f64 {
        self.pairs as f64 / self.capacity.max(1) as f64
    }
}

/// Consecutive pairs of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The index of the document in the cache.
    pub document: usize,
    /// The index of the first input in the document.
    pub from: usize,
    /// The number of pairs; at least one.
    pub pairs: usize,
}

/// What packing needs to know about documents.
pub(crate) trait DocumentLengths {
    /// Tokens of a document.
    fn tokens(&self, document: usize) -> usize;
    /// Whether any of these pairs of a document has a trained target.
    fn trains(&self, segment: Segment) -> bool;
}

/// The rows of an epoch, with random access.
#[derive(Debug)]
pub(crate) struct PackedLayout {
    seq_len: u64,
    /// Documents or pieces of them, in order: the document and its first pair. There may be many.
    entries: Vec<(u32, u32)>,
    /// For each entry the number of pairs up to its end.
    ends: Vec<u64>,
    /// The first entry of each row, and the end; `None` if rows are cut from one stream.
    rows: Option<Vec<usize>>,
    /// Documents with trained tokens that no row contains.
    left_out: Vec<usize>,
    statistics: PackingStatistics,
}

impl PackedLayout {
    /// Packs text: every pair is trained.
    pub(crate) fn of_text(
        order: &[usize],
        lengths: &impl DocumentLengths,
        seq_len: usize,
        policy: LongDocuments,
    ) -> Self {
        if policy != LongDocuments::Split {
            return Self::of_wholes(order, lengths, seq_len, policy);
        }
        let mut packing = Self::empty(order.len(), seq_len);
        for &document in order {
            // n tokens are n - 1 pairs: each token but the last is an input, each but the first a
            // target.
            match lengths.tokens(document).saturating_sub(1) {
                0 => packing.statistics.too_short += 1,
                pairs => packing.push(Segment { document, from: 0, pairs }),
            }
        }
        packing.count_split();
        packing.count_rows();
        packing
    }

    /// Packs documents, or pieces of them, that the end of a row never cuts.
    pub(crate) fn of_wholes(
        order: &[usize],
        lengths: &impl DocumentLengths,
        seq_len: usize,
        policy: LongDocuments,
    ) -> Self {
        let mut packing = Self::empty(order.len(), seq_len);
        let mut wholes = Vec::with_capacity(order.len());
        for &document in order {
            packing.add(document, lengths, policy, &mut wholes);
        }
        packing.fill(&wholes);
        packing.count_rows();
        packing
    }

    fn empty(documents: usize, seq_len: usize) -> Self {
        assert!(seq_len > 0, "a row holds at least one pair");
        Self {
            seq_len: seq_len as u64,
            entries: Vec::with_capacity(documents),
            ends: Vec::with_capacity(documents),
            rows: None,
            left_out: Vec::new(),
            statistics: PackingStatistics { documents: documents as u64, ..Default::default() },
        }
    }

    pub(crate) fn statistics(&self) -> PackingStatistics {
        self.statistics
    }

    /// Documents that were dropped, or whose trained tokens do not fit in a row.
    pub(crate) fn left_out(&self) -> &[usize] {
        &self.left_out
    }

    /// The segments of a row, in order. The rest of the row is padding.
    pub(crate) fn segments(&self, row: u64) -> Vec<Segment> {
        assert!(row < self.statistics.rows, "row {row} of {}", self.statistics.rows);
        match &self.rows {
            Some(rows) => {
                let row = row as usize;
                (rows[row]..rows[row + 1]).map(|index| self.segment(index, 0, u64::MAX)).collect()
            }
            None => self.stream_segments(row * self.seq_len, (row + 1) * self.seq_len),
        }
    }

    /// Adds the parts of a document that are packed to `wholes`, and counts the rest.
    fn add(
        &mut self,
        document: usize,
        lengths: &impl DocumentLengths,
        policy: LongDocuments,
        wholes: &mut Vec<Segment>,
    ) {
        let (pairs, row) = (lengths.tokens(document).saturating_sub(1), self.seq_len as usize);
        let before = wholes.len();
        // Pieces share no pair: the last target of one is the first input of the next.
        let piece = |from: usize| Segment { document, from, pairs: row.min(pairs - from) };
        match policy {
            _ if pairs == 0 => return self.statistics.too_short += 1,
            LongDocuments::Drop if pairs > row => {
                self.statistics.dropped += 1;
                return self.left_out.push(document);
            }
            LongDocuments::Split => {
                let pieces = (0..pairs).step_by(row).map(piece);
                // A piece without a trained token would cost a pass and teach nothing.
                wholes.extend(pieces.filter(|piece| lengths.trains(*piece)));
                self.statistics.split += u64::from(pairs > row);
            }
            LongDocuments::Drop | LongDocuments::Truncate => {
                wholes.extend(Some(piece(0)).filter(|piece| lengths.trains(*piece)));
                self.statistics.truncated += u64::from(pairs > row);
            }
        }
        if wholes.len() == before {
            self.statistics.untrained += 1;
            self.left_out.push(document);
        }
    }

    /// Best fit: each document goes into the open row in which it leaves the least space. If too
    /// many rows are open, the oldest is closed. Rows are ordered by when they were opened.
    fn fill(&mut self, wholes: &[Segment]) {
        let mut rows: Vec<(usize, Vec<Segment>)> = Vec::new();
        let mut oldest = 0;
        for whole in wholes {
            // Rows with 2 and with 5 pairs free: a document of 4 pairs goes into the second, one of
            // 2 into the first.
            let fits = |row: &usize| rows[*row].0 >= whole.pairs;
            let best = (oldest..rows.len()).filter(fits).min_by_key(|row| rows[*row].0);
            let row = best.unwrap_or_else(|| {
                rows.push((self.seq_len as usize, Vec::new()));
                // Rows are closed and never emptied: their numbers stay in the order in which they
                // were opened, so the layout depends on the order of the documents alone.
                oldest = oldest.max(rows.len().saturating_sub(OPEN_ROWS));
                rows.len() - 1
            });
            rows[row].0 -= whole.pairs;
            rows[row].1.push(*whole);
        }
        let mut firsts = vec![0];
        for (_, segments) in rows {
            for segment in segments {
                self.push(segment);
            }
            firsts.push(self.entries.len());
        }
        self.rows = Some(firsts);
    }

    fn push(&mut self, segment: Segment) {
        // Eight bytes an entry instead of 16: sets have millions of documents.
        let small = |number: usize| u32::try_from(number).expect("fewer than 2^32");
        self.entries.push((small(segment.document), small(segment.from)));
        self.ends.push(self.pairs() + segment.pairs as u64);
    }

    /// Pairs of all entries.
    fn pairs(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The pairs before entry `index`.
    fn start(&self, index: usize) -> u64 {
        if index == 0 { 0 } else { self.ends[index - 1] }
    }

    fn count_split(&mut self) {
        let row = |pair: u64| pair / self.seq_len;
        let split = |index: &usize| row(self.start(*index)) != row(self.ends[*index] - 1);
        self.statistics.split = (0..self.entries.len()).filter(split).count() as u64;
    }

    fn count_rows(&mut self) {
        let rows = match &self.rows {
            Some(rows) => rows.len() as u64 - 1,
            None => self.pairs().div_ceil(self.seq_len),
        };
        let (pairs, capacity) = (self.pairs(), rows * self.seq_len);
        self.statistics = PackingStatistics { rows, pairs, capacity, ..self.statistics };
    }

    /// The segments of the pairs `from..to` of the stream.
    fn stream_segments(&self, from: u64, to: u64) -> Vec<Segment> {
        // `ends` rises, so the first entry of a row is found by bisection: any row can be read on
        // its own.
        let first = self.ends.partition_point(|&end| end <= from);
        let inside = |index: &usize| self.start(*index) < to;
        (first..self.entries.len())
            .take_while(inside)
            .map(|index| self.segment(index, from, to))
            .collect()
    }

    /// The part of an entry in the pairs `from..to` of the stream.
    fn segment(&self, index: usize, from: u64, to: u64) -> Segment {
        let start = self.start(index);
        // A document of the stream cut at a row: the next row begins inside it, with the input that
        // was the last target of this one.
        //
        //    document   t0 t1 t2 t3 t4 t5         pairs (t0,t1) (t1,t2) (t2,t3) | (t3,t4) (t4,t5)
        //    rows of 3                             row 0                         | row 1
        let (first, end) = (start.max(from), self.ends[index].min(to));
        let (document, begin) = self.entries[index];
        let (document, begin) = (document as usize, begin as usize);
        Segment { document, from: begin + (first - start) as usize, pairs: (end - first) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lengths in tokens, and the first trained token of every document.
    struct TestLengths<'a>(&'a [u64], usize);

    impl DocumentLengths for TestLengths<'_> {
        fn tokens(&self, document: usize) -> usize {
            self.0[document] as usize
        }

        fn trains(&self, segment: Segment) -> bool {
            segment.from + segment.pairs >= self.1
        }
    }

    fn pack(lengths: &[u64], seq_len: usize, policy: LongDocuments) -> PackedLayout {
        let order: Vec<usize> = (0..lengths.len()).collect();
        PackedLayout::of_text(&order, &TestLengths(lengths, 0), seq_len, policy)
    }

    /// Conversations of which every token from `first` on is trained.
    fn pack_conversations(lengths: &[u64], first: usize, policy: LongDocuments) -> PackedLayout {
        let order: Vec<usize> = (0..lengths.len()).collect();
        PackedLayout::of_wholes(&order, &TestLengths(lengths, first), 4, policy)
    }

    /// (document, from, pairs) of every row.
    fn rows(packing: &PackedLayout) -> Vec<Vec<(usize, usize, usize)>> {
        let plain = |segment: &Segment| (segment.document, segment.from, segment.pairs);
        let row = |row| packing.segments(row).iter().map(plain).collect();
        (0..packing.statistics().rows).map(row).collect()
    }

    #[test]
    fn splitting_cuts_one_stream_of_pairs_and_pads_only_its_end() {
        let packing = pack(&[4, 2, 8, 1, 3], 4, LongDocuments::Split);
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
        let packing = pack(&[3, 3, 9, 0, 5, 2], 4, LongDocuments::Truncate);
        assert_eq!(
            rows(&packing),
            [vec![(0, 0, 2), (1, 0, 2)], vec![(2, 0, 4)], vec![(4, 0, 4)], vec![(5, 0, 1)]]
        );
        let statistics = packing.statistics();
        assert_eq!((statistics.truncated, statistics.dropped, statistics.split), (1, 0, 0));
    }

    #[test]
    fn dropping_leaves_long_documents_out_and_keeps_those_that_just_fit() {
        let packing = pack(&[5, 6, 3, 4], 4, LongDocuments::Drop);
        assert_eq!(rows(&packing), [vec![(0, 0, 4)], vec![(2, 0, 2)], vec![(3, 0, 3)]]);
        assert_eq!((packing.statistics().truncated, packing.statistics().dropped), (0, 1));
    }

    #[test]
    fn a_conversation_whose_answer_does_not_fit_is_left_out_and_listed() {
        let packing = pack_conversations(&[9, 4, 6], 3, LongDocuments::Truncate);
        assert_eq!(rows(&packing), [vec![(0, 0, 4)], vec![(1, 0, 3)], vec![(2, 0, 4)]]);
        let packing = pack_conversations(&[9, 7, 3], 6, LongDocuments::Truncate);
        assert_eq!(rows(&packing), Vec::<Vec<_>>::new());
        let statistics = packing.statistics();
        assert_eq!((statistics.untrained, statistics.truncated), (3, 2));
        assert_eq!(packing.left_out(), [0, 1, 2]);
    }

    #[test]
    fn a_long_conversation_is_split_into_pieces_and_those_without_an_answer_are_left_out() {
        let packing = pack_conversations(&[11, 3], 6, LongDocuments::Split);
        assert_eq!(rows(&packing), [vec![(0, 4, 4)], vec![(0, 8, 2)]]);
        assert_eq!((packing.statistics().split, packing.left_out()), (1, [1].as_slice()));
    }

    #[test]
    fn a_short_document_fills_the_gap_that_a_long_one_left() {
        let packing = pack(&[4, 5, 4, 2, 2], 4, LongDocuments::Truncate);
        assert_eq!(
            rows(&packing),
            [vec![(0, 0, 3), (3, 0, 1)], vec![(1, 0, 4)], vec![(2, 0, 3), (4, 0, 1)]]
        );
        assert!((packing.statistics().efficiency() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn documents_without_a_pair_give_no_rows() {
        for policy in [LongDocuments::Split, LongDocuments::Truncate, LongDocuments::Drop] {
            assert_eq!(rows(&pack(&[0, 1], 4, policy)), Vec::<Vec<_>>::new());
            assert_eq!(rows(&pack(&[], 4, policy)), Vec::<Vec<_>>::new());
        }
    }

    #[test]
    fn policies_are_spelled_as_in_the_recipe() {
        let policies = [LongDocuments::Split, LongDocuments::Truncate, LongDocuments::Drop];
        let text = serde_json::to_string(&policies).unwrap();
        assert_eq!(text, r#"["split","truncate","drop"]"#);
    }

    proptest! {
        #[test]
        fn splitting_uses_every_pair_once_and_in_order(
            lengths in prop::collection::vec(0..40_u64, 0..30), seq_len in 1..20_usize,
        ) {
            let packing = pack(&lengths, seq_len, LongDocuments::Split);
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
        fn whole_documents_are_packed_once_and_no_two_rows_would_fit_in_one(
            lengths in prop::collection::vec(0..40_u64, 0..30), seq_len in 1..20_usize, cut: bool,
        ) {
            let policy = if cut { LongDocuments::Truncate } else { LongDocuments::Drop };
            let packing = pack(&lengths, seq_len, policy);
            let rows = rows(&packing);
            let size = |row: &Vec<(_, _, usize)>| row.iter().map(|part| part.2).sum::<usize>();
            prop_assert!(rows.iter().all(|row| (1..=seq_len).contains(&size(row))));
            for (a, b) in (0..rows.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
                prop_assert!(size(&rows[a]) + rows[b][0].2 > seq_len, "it would have fitted");
            }
            let kept = lengths.iter().enumerate().filter_map(|(document, &tokens)| {
                let pairs = (tokens as usize).saturating_sub(1);
                let fits = pairs <= seq_len;
                (pairs > 0 && (cut || fits)).then_some((document, 0, pairs.min(seq_len)))
            });
            let mut found: Vec<_> = rows.into_iter().flatten().collect();
            found.sort_unstable();
            prop_assert!(found.into_iter().eq(kept));
        }
    }
}
