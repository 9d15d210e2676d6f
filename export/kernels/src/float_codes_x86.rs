//! The sums of `float_codes` on CPUs with AVX2 or AVX-512: one body, compiled for each.
//!
//! A vector holds the same column of several rows. A line's 32-bit lanes are shifted until a column's two bits are the
//! lowest ones, and these choose from a table of floats, whose permutation looks at nothing else:
//!
//! ```text
//! lane     row r: bytes 3 2 1 0     >> 8·j + 2·f     …uu     column 4·f + j
//! table    −1  0  1  2  −1  0  1  2  …               → T     a float, ready for a product with x[4·f + j]
//! ```
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::arch::x86_64::{
    __m256, __m512, _mm256_loadu_si256, _mm256_permutevar8x32_ps, _mm256_set1_epi32,
    _mm256_setr_ps, _mm256_srlv_epi32, _mm512_loadu_si512, _mm512_permutexvar_ps,
    _mm512_set1_epi32, _mm512_setr_ps, _mm512_srlv_epi32,
};

use crate::float_codes::{RowValues, TokenFloats};
use crate::float_tile::FloatLanes;
use crate::layout::{PairChunk, ROWS_PER_PAIR};
use crate::prefetch::Prefetch;
use crate::{avx2, avx512};

/// Floats that two bits of each row's lane stand for.
///
/// # Safety
/// Its function needs the instructions of its implementation.
trait CodeLanes: FloatLanes {
    /// The codes `T` in the bits `shift` and `shift + 1` of the lanes of `bytes`, one a row.
    unsafe fn codes(bytes: &[u8], shift: i32) -> Self;
}

impl CodeLanes for __m256 {
    #[inline(always)]
    unsafe fn codes(bytes: &[u8], shift: i32) -> Self {
        // SAFETY: AVX2, says the caller; 32 bytes.
        unsafe {
            let table = _mm256_setr_ps(-1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0);
            let lanes = _mm256_loadu_si256(bytes[..32].as_ptr().cast());
            _mm256_permutevar8x32_ps(table, _mm256_srlv_epi32(lanes, _mm256_set1_epi32(shift)))
        }
    }
}

impl CodeLanes for __m512 {
    #[inline(always)]
    unsafe fn codes(bytes: &[u8], shift: i32) -> Self {
        // SAFETY: AVX-512, says the caller; 64 bytes.
        unsafe {
            let table = _mm512_setr_ps(
                -1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0, -1.0, 0.0, 1.0, 2.0,
            );
            let lanes = _mm512_loadu_si512(bytes[..64].as_ptr().cast());
            _mm512_permutexvar_ps(_mm512_srlv_epi32(lanes, _mm512_set1_epi32(shift)), table)
        }
    }
}

/// `s` of a block for each token and 32 rows, with AVX2.
pub(crate) fn sums_avx2(block: &[PairChunk], tokens: TokenFloats, sums: &mut [RowValues]) {
    assert!(avx2::is_available(), "this CPU has no AVX2");
    // SAFETY: the instructions are there, asserted above.
    unsafe { with_avx2(block, tokens, sums) }
}

/// Three tokens and two vectors are twelve accumulators of sixteen registers.
#[target_feature(enable = "avx2,fma")]
fn with_avx2(block: &[PairChunk], tokens: TokenFloats, sums: &mut [RowValues]) {
    // SAFETY: this function has the instructions.
    unsafe { all_tokens::<__m256, 3, 2>(block, tokens, sums) }
}

/// `s` of a block for each token and 32 rows, with AVX-512.
pub(crate) fn sums_avx512(block: &[PairChunk], tokens: TokenFloats, sums: &mut [RowValues]) {
    assert!(avx512::is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { with_avx512(block, tokens, sums) }
}

/// Six tokens and two vectors are 24 accumulators of 32 registers.
#[target_feature(enable = "avx512f,avx2,fma")]
fn with_avx512(block: &[PairChunk], tokens: TokenFloats, sums: &mut [RowValues]) {
    // SAFETY: this function has the instructions.
    unsafe { all_tokens::<__m512, 6, 2>(block, tokens, sums) }
}

/// `T` tokens at a time, then one at a time; `V` vectors of rows at a time.
///
/// # Safety
/// The instructions of `F`.
#[inline(always)]
unsafe fn all_tokens<F: CodeLanes, const T: usize, const V: usize>(
    block: &[PairChunk],
    tokens: TokenFloats,
    sums: &mut [RowValues],
) {
    let many = sums.len() / T * T;
    for row in (0..ROWS_PER_PAIR).step_by(V * F::LANES) {
        // SAFETY: the caller has the instructions of `F`.
        unsafe {
            for token in (0..many).step_by(T) {
                part::<F, T, V>(block, tokens, token, row, sums);
            }
            for token in many..sums.len() {
                part::<F, 1, V>(block, tokens, token, row, sums);
            }
        }
    }
}

/// # Safety
/// The instructions of `F`.
#[inline(always)]
unsafe fn part<F: CodeLanes, const T: usize, const V: usize>(
    block: &[PairChunk],
    tokens: TokenFloats,
    token: usize,
    row: usize,
    sums: &mut [RowValues],
) {
    let x: [_; T] = std::array::from_fn(|t| tokens.of(token + t, block.len()));
    // SAFETY: the caller has the instructions of `F`.
    unsafe {
        let low = two_bytes::<F, T, V, 0>(block, x, row);
        let high = two_bytes::<F, T, V, 2>(block, x, row);
        let one = F::broadcast(1f32.to_bits());
        for t in 0..T {
            for v in 0..V {
                // A product with 1 is exact: this is a sum.
                let sum = low[t][v].add_product(high[t][v], one);
                sum.store(&mut sums[token + t][row + v * F::LANES..]);
            }
        }
    }
}

/// `s_BYTE + s_{BYTE + 1}`: two chains of sums for each token and vector hide the time that a sum takes.
///
/// # Safety
/// The instructions of `F`.
#[inline(always)]
unsafe fn two_bytes<F: CodeLanes, const T: usize, const V: usize, const BYTE: usize>(
    block: &[PairChunk],
    x: [&[[f32; 16]]; T],
    row: usize,
) -> [[F; V]; T] {
    // SAFETY: the caller has the instructions of `F`.
    unsafe {
        let (mut totals, prefetch) = ([[[F::broadcast(0); V]; T]; 2], Prefetch::chosen());
        for (index, chunk) in block.iter().enumerate() {
            if T == 1 && BYTE == 0 {
                prefetch.after(chunk);
            }
            let bytes = &chunk.0[4 * row..][..4 * V * F::LANES];
            for field in 0..4 {
                for (byte, totals) in (BYTE..).zip(&mut totals) {
                    let shift = (8 * byte + 2 * field) as i32;
                    let mut codes = [F::broadcast(0); V];
                    for (v, codes) in codes.iter_mut().enumerate() {
                        *codes = F::codes(&bytes[4 * v * F::LANES..], shift);
                    }
                    for (t, totals) in totals.iter_mut().enumerate() {
                        let x = F::broadcast(x[t][index][4 * field + byte].to_bits());
                        for (total, codes) in totals.iter_mut().zip(codes) {
                            *total = total.add_product(codes, x);
                        }
                    }
                }
            }
        }
        let ([mut low, high], one) = (totals, F::broadcast(1f32.to_bits()));
        for (low, high) in low.as_flattened_mut().iter_mut().zip(high.as_flattened()) {
            *low = low.add_product(*high, one);
        }
        low
    }
}
