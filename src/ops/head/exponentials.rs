//! The softmax of a chunk's logits in two passes over the head.
//!
//! ```text
//! pass 1, down the blocks: the largest logit and Σ exp of each column, the sum rescaled when a larger
//!                          logit comes (arXiv 1805.02867)
//! pass 2, down the blocks: exponentials → gradients of the logits → those of hidden states and head
//! ```
//!
//! Between the passes the exponentials are kept where they are few. With a large vocabulary the
//! logits are computed again, which is faster than reading them back from memory.
//!
//! Layout of sums: exponentials of 64 words in f32, these sums in f64 from the first word to the last.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::{ColumnExp, ColumnMax, ColumnScale};
use super::{ChunkGradients, HeadChunk, KEPT, TOKENS, WORDS};
use crate::ops::native::in_rows;

/// Words whose exponentials are summed in f32 before they join the f64 sum.
const SUMMED_WORDS: usize = 64;

/// Logits in memory at the same time, for estimates of a run's memory.
pub(crate) fn logits_at_once(words: usize, tokens: usize) -> usize {
    let tokens = tokens.min(TOKENS);
    if words * tokens <= KEPT { words * tokens } else { words.min(WORDS) * tokens }
}

/// Memory that the chunks use one after the other.
#[derive(Default)]
pub(in crate::ops) struct Scratch {
    /// Exponentials of the first pass: `[V, tokens]` where they are kept, otherwise of one block.
    exponentials: Vec<f32>,
    /// What was subtracted from the logits of each block, `[blocks, tokens]`.
    shifts: Vec<f32>,
}

/// What the first pass finds out about each token's logits.
pub(in crate::ops) struct LogitColumns {
    /// The largest.
    pub(in crate::ops) largest: Vec<f32>,
    /// `Σ exp(logit - largest)`
    pub(in crate::ops) sums: Vec<f64>,
}

impl LogitColumns {
    /// `ln Σ exp(logit)` of each token.
    pub(in crate::ops) fn log_sums(&self) -> impl Iterator<Item = f64> + '_ {
        let columns = self.sums.iter().zip(&self.largest);
        columns.map(|(sum, largest)| sum.ln() + f64::from(*largest))
    }
}

/// Both passes over one chunk.
pub(in crate::ops) struct Exponentials<'a> {
    chunk: &'a HeadChunk<'a>,
    scratch: &'a mut Scratch,
    /// Whether the second pass finds the exponentials of the first in memory.
    keeps: bool,
}

impl<'a> Exponentials<'a> {
    /// `gradients` where a second pass follows.
    pub(in crate::ops) fn new(
        chunk: &'a HeadChunk<'a>,
        scratch: &'a mut Scratch,
        gradients: bool,
    ) -> Self {
        let keeps = gradients && chunk.vocab() * chunk.count <= KEPT;
        Self { chunk, scratch, keeps }
    }

    /// Where the scratch memory holds the values of a block.
    fn place(&self, words: &Range<usize>) -> Range<usize> {
        let first = if self.keeps { words.start * self.chunk.count } else { 0 };
        first..first + words.len() * self.chunk.count
    }

    /// `see` gets the logits of each block, `[words, tokens]`, and may change them.
    pub(in crate::ops) fn first_pass(
        &mut self,
        mut see: impl FnMut(&Range<usize>, &mut [f32]),
    ) -> LogitColumns {
        let (chunk, count) = (self.chunk, self.chunk.count);
        let words = if self.keeps { chunk.vocab() } else { WORDS.min(chunk.vocab()) };
        let kept = &mut self.scratch.exponentials;
        // It never shrinks: the next chunk finds the memory.
        kept.resize(kept.len().max(words * count), 0.0);
        self.scratch.shifts.clear();
        let mut largest = vec![f32::NEG_INFINITY; count];
        let mut sums = vec![0.0f64; count];
        for words in chunk.blocks() {
            let place = self.place(&words);
            let values = &mut self.scratch.exponentials[place];
            chunk.logits(&words, values);
            see(&words, values);
            // When a block brings a larger maximum, the sum so far is rescaled: `Σ exp(x - m₁)`
            // becomes `Σ exp(x - m₁) · exp(m₁ - m₂)`.
            let before = largest.clone();
            chunk.backend.kernel.dispatch(ColumnMax { values, largest: &mut largest });
            for (sum, (before, largest)) in sums.iter_mut().zip(before.iter().zip(&largest)) {
                // Only where the maximum rose: an infinity minus itself would be NaN.
                if before < largest {
                    *sum *= f64::from(before - largest).exp();
                }
            }
            for block_sums in exponentials(chunk, values, &largest) {
                sums.iter_mut().zip(block_sums).for_each(|(sum, more)| *sum += f64::from(more));
            }
            self.scratch.shifts.extend_from_slice(&largest);
        }
        LogitColumns { largest, sums }
    }

    /// `see` is that of the first pass; `factors` turn an exponential, from which a shift was subtracted,
    /// into the gradient of its logit, and `patch` may then change single gradients.
    pub(in crate::ops) fn second_pass(
        &mut self,
        columns: &LogitColumns,
        mut see: impl FnMut(&Range<usize>, &mut [f32]),
        factors: impl Fn(&[f32]) -> Vec<f32>,
        patch: impl Fn(&Range<usize>, &mut [f32]),
        to: &mut ChunkGradients,
    ) {
        let (chunk, count) = (self.chunk, self.chunk.count);
        for (block, words) in chunk.blocks().enumerate() {
            let place = self.place(&words);
            let grads = &mut self.scratch.exponentials[place];
            // Kept exponentials had the maximum so far subtracted, which differs from block to
            // block; `factors` makes up for the difference to the final one.
            let mut shift = &self.scratch.shifts[block * count..][..count];
            if !self.keeps {
                shift = &columns.largest;
                chunk.logits(&words, grads);
                see(&words, grads);
                exponentials(chunk, grads, shift);
            }
            let factors = factors(shift);
            in_rows(grads, count, |_, values| {
                chunk.backend.kernel.dispatch(ColumnScale { values, factors: &factors });
            });
            patch(&words, grads);
            chunk.back(&words, grads, to);
        }
    }
}

/// Logits become `exp(logit - shift)`. Returns the column sums of some words at a time, in order.
fn exponentials(chunk: &HeadChunk, values: &mut [f32], shift: &[f32]) -> Vec<Vec<f32>> {
    let kernel = chunk.backend.kernel;
    let chunks = values.par_chunks_mut(SUMMED_WORDS * chunk.count);
    chunks.map(|values| kernel.dispatch(ColumnExp { values, shift })).collect()
}
