//! The tokens that go through the blocks together: chunks of one or several sequences.

use std::ops::Range;

use crate::cache::KvCache;

/// The next tokens of a sequence.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// The context that the tokens follow.
    pub cache: &'a mut KvCache,
    /// At least one.
    pub tokens: &'a [u32],
}

/// Neighbouring tokens of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    /// Its tokens, as a range.
    pub(crate) tokens: Range<usize>,
}

/// The chunks of one pass through the blocks.
pub(crate) struct ForwardBatch<'s, 'a> {
    pub(crate) sequences: &'s mut [Sequence<'a>],
    pub(crate) chunks: &'s [Chunk],
}

impl ForwardBatch<'_, '_> {
    /// Calls `work(rows of this batch, cache of their sequence)` for each chunk.
    pub(crate) fn each(&mut self, mut work: impl FnMut(Range<usize>, &mut KvCache)) {
        let mut first = 0;
        for chunk in self.chunks {
            let rows = first..first + chunk.tokens.len();
            first = rows.end;
            work(rows, self.sequences[chunk.sequence].cache);
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        let ids = |chunk: &Chunk| &self.sequences[chunk.sequence].tokens[chunk.tokens.clone()];
        self.chunks.iter().flat_map(ids).copied()
    }

    /// The positions of each chunk in its sequence, and the length of the sequence with all tokens that
    /// this call adds. Chunks of a sequence come in order.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.chunks.iter().map(|chunk| {
            let Sequence { cache, tokens } = &self.sequences[chunk.sequence];
            let start = cache.len();
            let length = start + tokens.len() - chunk.tokens.start;
            (start..start + chunk.tokens.len(), length)
        })
    }
}
