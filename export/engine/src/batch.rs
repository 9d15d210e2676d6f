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

/// Neighbouring chunks that attention takes together: one of several tokens, or some of one token each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRun {
    /// Rows of the batch.
    pub(crate) rows: Range<usize>,
    /// Indices of the chunks.
    pub(crate) chunks: Range<usize>,
}

/// The chunks of one pass through the blocks.
pub(crate) struct ForwardBatch<'s, 'a> {
    pub(crate) sequences: &'s mut [Sequence<'a>],
    pub(crate) chunks: &'s [Chunk],
}

impl ForwardBatch<'_, '_> {
    /// The rows of each chunk in this batch, with the cache of their sequence. Chunks are of ascending
    /// sequences, one of each at most.
    pub(crate) fn rows(&mut self) -> impl Iterator<Item = (Range<usize>, &mut KvCache)> {
        let mut first = 0;
        let mut sequences = self.sequences.iter_mut().enumerate();
        self.chunks.iter().map(move |chunk| {
            let rows = first..first + chunk.tokens.len();
            first = rows.end;
            let its = sequences.find(|(index, _)| *index == chunk.sequence);
            let (_, sequence) = its.expect("ascending sequences");
            (rows, &mut *sequence.cache)
        })
    }

    /// The neighbouring chunks of one token each and those of several, as rows of this batch.
    pub(crate) fn runs(&self) -> impl Iterator<Item = ChunkRun> {
        let mut first = 0;
        let alike = |a: &Chunk, b: &Chunk| a.tokens.len() == 1 && b.tokens.len() == 1;
        let mut chunk = 0;
        self.chunks.chunk_by(alike).map(move |chunks| {
            let tokens: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
            let run = ChunkRun { rows: first..first + tokens, chunks: chunk..chunk + chunks.len() };
            (first, chunk) = (run.rows.end, run.chunks.end);
            run
        })
    }

    /// The cache that a chunk continues.
    pub(crate) fn cache(&self, chunk: usize) -> &KvCache {
        self.sequences[self.chunks[chunk].sequence].cache
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
