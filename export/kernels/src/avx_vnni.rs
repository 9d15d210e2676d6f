//! Kernels for CPUs with the 8-bit dot product in 256 bits (AVX-VNNI): Intel since Alder Lake, AMD
//! since Zen 5. The bodies are those of `dot4`, everything else is that of `avx2`.
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srai_epi32,
    _mm256_srli_epi16, _mm256_storeu_si256,
};

use crate::dot4::{self, Lanes};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, each_group};
use crate::layout::{CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};

/// Whether this CPU has the instructions.
pub(crate) fn is_available() -> bool {
    crate::avx2::is_available() && is_x86_feature_detected!("avxvnni")
}

impl Lanes for __m256i {
    const BYTES: usize = 32;
    /// Eight accumulators; there are sixteen registers.
    const TOKENS: usize = 4;
    const WIDE_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX, says the caller.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(bytes: &[u8]) -> Self {
        // SAFETY: AVX, says the caller; 32 bytes.
        unsafe { _mm256_loadu_si256(bytes[..32].as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(codes: [i8; 4]) -> Self {
        // SAFETY: AVX, says the caller.
        unsafe { _mm256_set1_epi32(i32::from_ne_bytes(codes.map(i8::cast_unsigned))) }
    }

    #[inline(always)]
    unsafe fn and(self, mask: u8) -> Self {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_and_si256(self, _mm256_set1_epi8(mask.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn shifted<const F: usize>(self) -> Self {
        // SAFETY: AVX2, says the caller.
        unsafe {
            match F {
                0 => self,
                1 => _mm256_srli_epi16::<2>(self),
                2 => _mm256_srli_epi16::<4>(self),
                _ => _mm256_srli_epi16::<6>(self),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products(self, u: Self, q: Self) -> Self {
        // SAFETY: AVX-VNNI, says the caller.
        unsafe { _mm256_dpbusd_avx_epi32(self, u, q) }
    }

    #[inline(always)]
    unsafe fn add_wide_products(self, u: Self, q: Self) -> Self {
        // SAFETY: AVX-VNNI, says the caller.
        unsafe { _mm256_dpbusd_avx_epi32(self, u, q) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_add_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn quarter(self) -> Self {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_srai_epi32::<2>(self) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [i32]) {
        // SAFETY: AVX, says the caller; eight places of four bytes.
        unsafe { _mm256_storeu_si256(sums[..8].as_mut_ptr().cast(), self) }
    }
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no AVX-VNNI");
    tokens.check(sums.len(), pair.len());
    // SAFETY: the instructions are there, asserted above.
    unsafe { ternary_products(pair, tokens, sums) }
}

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn ternary_products(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::tile::<__m256i, 4, 1, 2>(pair, tokens, sums) }
}

/// [`each_group`] of a pair of panels.
pub(crate) fn grouped(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    assert!(is_available(), "this CPU has no AVX-VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { grouped_products(pair, tokens, tile) }
}

#[target_feature(enable = "avx2,avxvnni")]
fn grouped_products(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    each_group(pair, tokens, tile, |chunks, tokens, sums| {
        // SAFETY: the function around it has the instructions.
        unsafe { dot4::tile::<__m256i, 4, 1, 2>(chunks, tokens, sums) }
    });
}

/// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`.
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    assert!(is_available(), "this CPU has no AVX-VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { int8_products(panel, tokens, sums) }
}

#[target_feature(enable = "avx2,avxvnni")]
fn int8_products(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::int8_tile::<__m256i, 2, 2>(panel, tokens, sums) }
}
