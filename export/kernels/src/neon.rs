//! Kernels for 64-bit ARM with the 8-bit dot product (`sdot`): Apple, Neoverse and Cortex cores
//! since about 2018. The bodies are those of `dot4`; floats are left to the compiler.
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::arch::aarch64::{
    uint8x16_t, vaddq_s32, vandq_u8, vdupq_n_s32, vdupq_n_u8, veorq_u8, vld1q_u8,
    vreinterpretq_s32_u8, vreinterpretq_u8_s32, vshrq_n_s32, vshrq_n_u8, vst1q_s32,
};
use std::arch::{asm, is_aarch64_feature_detected};

use crate::dot4::{self, Lanes};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, each_group};
use crate::layout::{CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};

/// Whether this CPU has the instructions.
pub(crate) fn is_available() -> bool {
    is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")
}

/// `total + Σ` of the four products of signed bytes in each lane. The standard library's function
/// for this instruction is not stable yet.
///
/// # Safety
/// The instruction `sdot`.
#[inline(always)]
unsafe fn sdot(total: uint8x16_t, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    let mut total = total;
    // SAFETY: the caller has the instruction; it reads and writes registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {total:v}.4s, {a:v}.16b, {b:v}.16b",
            total = inout(vreg) total, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    total
}

impl Lanes for uint8x16_t {
    const BYTES: usize = 16;
    /// Sixteen accumulators of four vectors; there are 32 registers.
    const TOKENS: usize = 4;
    const WIDE_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON, says the caller.
        unsafe { vdupq_n_u8(0) }
    }

    #[inline(always)]
    unsafe fn load(bytes: &[u8]) -> Self {
        // SAFETY: NEON, says the caller; 16 bytes.
        unsafe { vld1q_u8(bytes[..16].as_ptr()) }
    }

    #[inline(always)]
    unsafe fn broadcast(codes: [i8; 4]) -> Self {
        let four = i32::from_ne_bytes(codes.map(i8::cast_unsigned));
        // SAFETY: NEON, says the caller.
        unsafe { vreinterpretq_u8_s32(vdupq_n_s32(four)) }
    }

    #[inline(always)]
    unsafe fn and(self, mask: u8) -> Self {
        // SAFETY: NEON, says the caller.
        unsafe { vandq_u8(self, vdupq_n_u8(mask)) }
    }

    #[inline(always)]
    unsafe fn shifted<const F: usize>(self) -> Self {
        // SAFETY: NEON, says the caller.
        unsafe {
            match F {
                0 => self,
                1 => vshrq_n_u8::<2>(self),
                2 => vshrq_n_u8::<4>(self),
                _ => vshrq_n_u8::<6>(self),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products(self, u: Self, q: Self) -> Self {
        // SAFETY: the dot product, says the caller; `u` is below 128, so signed or not.
        unsafe { sdot(self, u, q) }
    }

    #[inline(always)]
    unsafe fn add_wide_products(self, u: Self, q: Self) -> Self {
        // SAFETY: the dot product, says the caller; `u - 128` is signed.
        unsafe { sdot(self, veorq_u8(u, vdupq_n_u8(0x80)), q) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: NEON, says the caller.
        unsafe {
            let sum = vaddq_s32(vreinterpretq_s32_u8(self), vreinterpretq_s32_u8(other));
            vreinterpretq_u8_s32(sum)
        }
    }

    #[inline(always)]
    unsafe fn quarter(self) -> Self {
        // SAFETY: NEON, says the caller.
        unsafe { vreinterpretq_u8_s32(vshrq_n_s32::<2>(vreinterpretq_s32_u8(self))) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [i32]) {
        // SAFETY: NEON, says the caller; four places of four bytes.
        unsafe { vst1q_s32(sums[..4].as_mut_ptr(), vreinterpretq_s32_u8(self)) }
    }
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no 8-bit dot product");
    tokens.check(sums.len(), pair.len());
    // SAFETY: the instructions are there, asserted above.
    unsafe { ternary_products(pair, tokens, sums) }
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn ternary_products(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::tile::<uint8x16_t, 8, 1, 4>(pair, tokens, sums) }
}

/// [`each_group`] of a pair of panels.
pub(crate) fn grouped(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    assert!(is_available(), "this CPU has no 8-bit dot product");
    // SAFETY: the instructions are there, asserted above.
    unsafe { grouped_products(pair, tokens, tile) }
}

#[target_feature(enable = "neon,dotprod")]
fn grouped_products(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    each_group(pair, tokens, tile, |chunks, tokens, sums| {
        // SAFETY: the function around it has the instructions.
        unsafe { dot4::tile::<uint8x16_t, 8, 1, 4>(chunks, tokens, sums) }
    });
}

/// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`.
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    assert!(is_available(), "this CPU has no 8-bit dot product");
    // SAFETY: the instructions are there, asserted above.
    unsafe { int8_products(panel, tokens, sums) }
}

#[target_feature(enable = "neon,dotprod")]
fn int8_products(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::int8_tile::<uint8x16_t, 4, 1>(panel, tokens, sums) }
}
