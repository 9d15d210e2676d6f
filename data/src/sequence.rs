//! A packed sequence: model inputs, their targets, and where each segment begins.
//!
//! `packing` decides which documents share a sequence.

use std::sync::Arc;

use super::cache::TokenCache;
use super::document::SourceLocation;
use super::packing::Segment;

/// The id that fills the rest of a sequence. It is never trained on.
const PADDING: i32 = 0;

/// A sequence of `seq_len` tokens. All vectors except `documents` and `segments` have that length.
///
/// ```text
/// documents        [a b c] and [x y z], each followed by its next token
/// tokens           a b c x y z . .        `.` is padding
/// targets          b c d y z w . .
/// loss_mask        1 1 1 1 1 1 0 0
/// segment_starts   0 0 0 3 3 3 6 6
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedSequence {
    /// Inputs.
    pub tokens: Vec<i32>,
    /// For each input the token that follows it in its document.
    pub targets: Vec<i32>,
    /// 1 if the target is trained on; 0 if not, and in the padding.
    pub loss_mask: Vec<f32>,
    /// For each token the index at which its segment begins. A segment is a document, the part of
    /// one in this sequence, or the padding. Attention does not cross segments.
    pub segment_starts: Vec<i32>,
    /// The documents in the sequence, in order.
    pub documents: Vec<SourceLocation>,
    /// The set that packed documents come from.
    pub set: Arc<str>,
    /// The parts of packed documents, in order.
    pub segments: Vec<Segment>,
}

impl PackedSequence {
    /// Reads the tokens of `segments` and pads to `seq_len`.
    pub(crate) fn from_segments(
        cache: &TokenCache,
        set: &Arc<str>,
        seq_len: usize,
        segments: Vec<Segment>,
    ) -> Self {
        let mut sequence = Self { set: Arc::clone(set), ..Self::default() };
        for segment in &segments {
            // Inputs and targets are the same tokens, one place apart; the target after the last
            // input lies outside of the segment's inputs and inside of the document.
            let (from, end) = (segment.from, segment.from + segment.pairs);
            cache.extend(segment.document, from..end, &mut sequence.tokens);
            cache.extend(segment.document, from + 1..end + 1, &mut sequence.targets);
            cache.extend_mask(segment.document, from + 1..end + 1, &mut sequence.loss_mask);
            sequence.end_segment();
            sequence.documents.push(cache.location(segment.document));
        }
        sequence.pad(seq_len);
        sequence.segments = segments;
        sequence
    }

    /// A part of a document as a row of its own, without padding.
    pub fn of_segment(cache: &TokenCache, segment: Segment) -> Self {
        Self::from_segments(cache, &"".into(), segment.pairs, vec![segment])
    }

    /// Reads one document without the `cut` tokens after its first, padded to `length`. Padding
    /// belongs to the only segment.
    pub(crate) fn from_document(
        cache: &TokenCache,
        document: usize,
        cut: usize,
        length: usize,
    ) -> Self {
        let (first, end) = (cut + 1, cache.length(document) as usize);
        let mut sequence = Self::default();
        // The first token (BOS) stays whatever is cut; its target is then the first token after the
        // cut.
        cache.extend(document, 0..1, &mut sequence.tokens);
        cache.extend(document, first..end - 1, &mut sequence.tokens);
        cache.extend(document, first..end, &mut sequence.targets);
        cache.extend_mask(document, first..end, &mut sequence.loss_mask);
        sequence.segment_starts = vec![0; length];
        sequence.documents.push(cache.location(document));
        sequence.pad(length);
        sequence
    }

    /// Tokens of packed documents before the padding.
    pub fn filled(&self) -> usize {
        let is_start = |at: &usize| self.segment_starts[*at] == *at as i32;
        let mut starts = (0..self.tokens.len()).filter(is_start);
        // Padding is the segment after those of the documents.
        starts.nth(self.documents.len()).unwrap_or(self.tokens.len())
    }

    fn pad(&mut self, length: usize) {
        self.tokens.resize(length, PADDING);
        self.targets.resize(length, PADDING);
        self.loss_mask.resize(length, 0.0);
        self.end_segment();
    }

    /// Makes the tokens since the last call one segment.
    fn end_segment(&mut self) {
        let start = self.segment_starts.len() as i32;
        self.segment_starts.resize(self.tokens.len(), start);
    }
}
