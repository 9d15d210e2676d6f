//! How operands lie in memory, and what kernels share: the types that packing, products and the files
//! of the instruction sets all use. No instruction set is named here.
//!
//! A pair of ternary panels covers 32 rows. One chunk of it, 128 bytes, holds 16 columns:
//!
//! ```text
//!            row 0                row 1        …      row 31
//! byte   0    1    2    3     4    5    6    7      124 … 127
//! bits 1:0  columns 0, 1, 2, 3 of the chunk           u = T + 1, two bits each
//! bits 3:2  columns 4, 5, 6, 7
//! bits 5:4  columns 8 … 11
//! bits 7:6  columns 12 … 15
//! ```
//!
//! So one 32-bit lane belongs to one row, and masking a field of every byte gives four columns of each
//! row, ready for a dot product of bytes.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bitnet_format::quant::ActivationScale;
use bytemuck::Pod;

/// Rows that lie side by side; a row range given to a kernel starts at a multiple of it.
pub const ROWS_PER_PAIR: usize = 32;

/// Columns of a chunk.
pub(crate) const CHUNK: usize = 16;

/// Chunks of the smallest group, 64 columns.
pub(crate) const BLOCK_CHUNKS: usize = 4;

/// 16 columns of two panels: the byte of (row, `j`) is `4 · row + j`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct PairChunk(pub(crate) [u8; 4 * ROWS_PER_PAIR]);

/// 64 bytes that are read together.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// A value that begins at a line: where it does not, each vector that is read or written of it touches two.
#[repr(C, align(64))]
pub(crate) struct OnLines<T>(pub(crate) T);

/// Values that begin at a line.
#[derive(Clone, Debug)]
pub(crate) struct LineBuffer<T> {
    lines: Vec<Line>,
    count: usize,
    values: PhantomData<T>,
}

impl<T: Pod> LineBuffer<T> {
    /// Of zeros.
    pub(crate) fn zeros(count: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(count);
        buffer
    }

    /// Makes room for as many. What they hold is of before, or zeros.
    pub(crate) fn resize(&mut self, count: usize) {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        self.lines.resize(lines, Line([0; 64]));
        self.count = count;
    }
}

impl<T> Default for LineBuffer<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), count: 0, values: PhantomData }
    }
}

impl<T: Pod> Deref for LineBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.count]
    }
}

impl<T: Pod> DerefMut for LineBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.count]
    }
}

/// Codes of tokens `[t, …]`, a token every `stride` chunks.
#[derive(Clone, Copy)]
pub(crate) struct TokenCodes<'a> {
    pub(crate) chunks: &'a [[i8; CHUNK]],
    pub(crate) stride: usize,
}

impl<'a> TokenCodes<'a> {
    /// Tokens in `chunks`, one every `stride`.
    pub(crate) fn dense(chunks: &'a [[i8; CHUNK]], stride: usize) -> Self {
        Self { chunks, stride }
    }

    /// The first `width` chunks of a token.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the caller's instruction set must reach it")]
    pub(crate) fn of(self, token: usize, width: usize) -> &'a [[i8; CHUNK]] {
        &self.chunks[token * self.stride..][..width]
    }

    /// Without the first tokens and the first chunks of the others.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the caller's instruction set must reach it")]
    pub(crate) fn behind(self, tokens: usize, chunks: usize) -> Self {
        Self { chunks: &self.chunks[tokens * self.stride + chunks..], ..self }
    }

    /// Panics unless there are `tokens` of `width` chunks.
    pub(crate) fn check(self, tokens: usize, width: usize) {
        let needed = tokens.checked_sub(1).map_or(0, |before| before * self.stride + width);
        assert!(
            width <= self.stride && self.chunks.len() >= needed,
            "each token as wide as the panels"
        );
    }
}

/// Rows of a panel; a row range given to `Int8Matrix::matmul` starts at a multiple of it.
pub const INT8_ROWS: usize = 16;

/// The terms that turn integer sums into outputs: `(sum - factor · offset) · weight / scale`.
#[derive(Clone, Copy)]
pub(crate) struct RescaleTerms<'a> {
    /// One a token; `factor` times as much is taken off its sums.
    pub(crate) offsets: &'a [i32],
    pub(crate) factor: i32,
    /// One a row.
    pub(crate) weights: &'a [f32],
    /// One a token.
    pub(crate) scales: &'a [ActivationScale],
    /// Places from one token's outputs to the next.
    pub(crate) stride: usize,
}

impl RescaleTerms<'_> {
    /// Calls `compute(sums, offset, weights, scale, out)` for each token.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the caller's instruction set must reach it")]
    pub(crate) fn each_token<const R: usize>(
        self,
        sums: &[[i32; R]],
        out: &mut [f32],
        compute: impl Fn(&[i32], i32, &[f32], f32, &mut [f32]),
    ) {
        let rows = self.weights.len();
        for (token, sums) in sums.iter().enumerate() {
            let (offset, scale) = (self.factor * self.offsets[token], self.scales[token]);
            let places = &mut out[token * self.stride..][..rows];
            compute(&sums[..rows], offset, self.weights, scale.multiplier(), places);
        }
    }
}

/// Plain loops that are compiled once for each instruction set, see [`crate::Kernel::dispatch`].
pub trait SimdWork {
    /// The result.
    type Output;

    /// Runs the loops. It and all that it calls must be `#[inline(always)]`: only inlined code is
    /// compiled with the caller's instructions.
    fn run(self) -> Self::Output;
}
