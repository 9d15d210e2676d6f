//! Products of ternary codes with tokens that stay floats: the definition, and the reference of a block.
//!
//! For a token `x` and a row, over each block of columns (a group of the matrix, or 256 columns of a
//! row that has one scale):
//!
//! ```text
//! s_j = Σ T·x over the block's columns 4·i + j, ascending, from 0      j = 0, 1, 2, 3
//! s   = (s_0 + s_1) + (s_2 + s_3)
//! acc ← acc + d · s     blocks in ascending order, from acc = 0        a scale d for each group
//! acc ← acc + s,  and  acc · d  at the end                             one scale d a row
//! ```
//!
//! in f32, each sum and each product with a scale rounded once. `T·x` is exact, since `T` is one of −1, 0, +1 and +2; so a
//! fused product and sum has the same bits as both apart, and every kernel may use what it has.
//!
//! An instruction set supplies `s` for 32 rows; column `4·i + j` is that of byte `j` ([`crate::layout`]).
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::layout::{CHUNK, PairChunk, ROWS_PER_PAIR};

/// Values of 32 rows for each of some tokens.
pub(crate) type RowValues = [f32; ROWS_PER_PAIR];

/// Float tokens `[t, …]`, a token every `stride` chunks of 16 columns.
#[derive(Clone, Copy)]
pub(crate) struct TokenFloats<'a> {
    pub(crate) chunks: &'a [[f32; CHUNK]],
    pub(crate) stride: usize,
}

impl<'a> TokenFloats<'a> {
    /// The first `width` chunks of a token.
    #[inline(always)]
    pub(crate) fn of(self, token: usize, width: usize) -> &'a [[f32; CHUNK]] {
        &self.chunks[token * self.stride..][..width]
    }

    /// Without the first chunks of each token.
    #[inline(always)]
    pub(crate) fn behind(self, chunks: usize) -> Self {
        Self { chunks: &self.chunks[chunks..], ..self }
    }
}

/// `s` of a block for each token and row, as it is defined above: the reference of the other kernels.
pub(crate) fn reference(block: &[PairChunk], tokens: TokenFloats, sums: &mut [RowValues]) {
    for (token, sums) in sums.iter_mut().enumerate() {
        let mut parts = [[0.0; ROWS_PER_PAIR]; 4];
        for (chunk, x) in block.iter().zip(tokens.of(token, block.len())) {
            for (column, x) in x.iter().enumerate() {
                let (byte, field) = (column % 4, column / 4);
                for (sum, bytes) in parts[byte].iter_mut().zip(chunk.0.as_chunks::<4>().0) {
                    let code = (bytes[byte] >> (2 * field)) & 3;
                    *sum += (f32::from(code) - 1.0) * x;
                }
            }
        }
        let [a, b, c, d] = &parts;
        *sums = std::array::from_fn(|row| (a[row] + b[row]) + (c[row] + d[row]));
    }
}
