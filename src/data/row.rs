//! One row: what the model reads, what it must say next, and where documents begin in it.
//!
//! Which documents share a row is decided in `packing`.

use std::fmt;
use std::sync::Arc;

use super::cache::TokenCache;
use super::packing::Segment;

/// The id that fills the rest of a row; such tokens are never trained on.
const PADDING: i32 = 0;

/// Where a document comes from, for messages: `corpus/a.jsonl:17`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named, or the name of a generator.
    pub source: Arc<str>,
    /// Line in the file or number of the generated document, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.source, self.line)
    }
}

/// A row of `seq_len` tokens; all vectors have that length, except `documents`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Inputs.
    pub tokens: Vec<i32>,
    /// For each input the token that follows it in its document.
    pub targets: Vec<i32>,
    /// 1 where the target is trained on, 0 where it is not and in the padding.
    pub loss_mask: Vec<f32>,
    /// For each token the index in this row where its segment begins. A segment is a document, or
    /// the part of one that lies in this row, or the padding.
    pub starts: Vec<i32>,
    /// The documents in the row, in order.
    pub documents: Vec<Place>,
}

impl Row {
    /// Reads the tokens of `segments` and pads to `seq_len`.
    pub(crate) fn read(cache: &TokenCache, seq_len: usize, segments: &[Segment]) -> Self {
        let mut row = Self::default();
        for segment in segments {
            let (from, end) = (segment.from, segment.from + segment.pairs);
            cache.extend(segment.document, from..end, &mut row.tokens);
            cache.extend(segment.document, from + 1..end + 1, &mut row.targets);
            cache.extend_mask(segment.document, from + 1..end + 1, &mut row.loss_mask);
            row.close();
            row.documents.push(cache.place(segment.document));
        }
        row.tokens.resize(seq_len, PADDING);
        row.targets.resize(seq_len, PADDING);
        row.loss_mask.resize(seq_len, 0.0);
        row.close();
        row
    }

    /// One document from its first token, without the `cut` tokens behind that, padded to
    /// `length`.
    pub(crate) fn whole(cache: &TokenCache, document: usize, cut: usize, length: usize) -> Self {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        let all = 0..cache.length(document) as usize;
        cache.extend(document, all.clone(), &mut ids);
        cache.extend_mask(document, all, &mut mask);
        ids.drain(1..=cut);
        mask.drain(1..=cut);
        let mut row = Self {
            tokens: ids[..ids.len() - 1].to_vec(),
            targets: ids[1..].to_vec(),
            loss_mask: mask[1..].to_vec(),
            starts: vec![0; length],
            documents: vec![cache.place(document)],
        };
        row.tokens.resize(length, PADDING);
        row.targets.resize(length, PADDING);
        row.loss_mask.resize(length, 0.0);
        row
    }

    /// Makes the tokens since the last call one segment.
    fn close(&mut self) {
        let start = self.starts.len() as i32;
        self.starts.resize(self.tokens.len(), start);
    }
}
