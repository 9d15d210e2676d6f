//! How f32 become the 32-bit words of packed operands: one value a word, or two rounded to bf16.
#![expect(unsafe_code, reason = "rounding is compiled for each instruction set")]
#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for each instruction set"
)]

use crate::gemm::{LINE, Operands, WordFormat};

/// One f32 as an operand word.
#[inline(always)]
fn rounded(operands: Operands, x: f32) -> f32 {
    match operands {
        Operands::F32 => x,
        Operands::Bf16 | Operands::Bf16Tiles => f32::from_bits(u32::from(round_bf16(x)) << 16),
    }
}

/// The nearest bf16, half to even, NaN staying NaN; it vectorises, other than a library call.
#[inline(always)]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // Adding just under half of the last kept bit, and 1 more where that bit is odd, carries into
    // it exactly when half-to-even rounds up.
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // The upper half of a NaN may have no fraction bit set, which would be an infinity.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { up }) as u16
}

/// As many lines as a line has words.
pub(crate) type Square = [[u32; LINE]; LINE];

/// How scaled f32 become words of two bf16, sixteen words at a time.
///
/// # Safety
/// Every function needs the instructions of its implementation.
pub(crate) trait RoundToBf16 {
    /// Two values of each word come from two rows, each row with a factor.
    unsafe fn of_rows(rows: [&[f32; LINE]; 2], factors: [f32; 2]) -> [u32; LINE];
    /// Two values of each word are neighbours, each with a factor.
    unsafe fn of_neighbours(values: &[f32; 2 * LINE], factors: &[f32; 2 * LINE]) -> [u32; LINE];
    /// Rows become columns.
    #[inline(always)]
    unsafe fn transposed(square: &Square) -> Square {
        std::array::from_fn(|column| std::array::from_fn(|row| square[row][column]))
    }
}

/// Integer arithmetic, for every CPU.
pub(crate) struct Arithmetic;

impl RoundToBf16 for Arithmetic {
    #[inline(always)]
    unsafe fn of_rows([low, high]: [&[f32; LINE]; 2], factors: [f32; 2]) -> [u32; LINE] {
        std::array::from_fn(|i| pair(low[i] * factors[0], high[i] * factors[1]))
    }

    #[inline(always)]
    unsafe fn of_neighbours(values: &[f32; 2 * LINE], factors: &[f32; 2 * LINE]) -> [u32; LINE] {
        let scaled = |i: usize| values[i] * factors[i];
        std::array::from_fn(|i| pair(scaled(2 * i), scaled(2 * i + 1)))
    }
}

/// Two values of a word, the first in the low half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(round_bf16(low)) | u32::from(round_bf16(high)) << 16
}

/// What a word holds: one value, or two.
#[inline(always)]
pub(crate) fn word(format: WordFormat, low: f32, high: f32) -> u32 {
    if format.pairs() { pair(low, high) } else { rounded(format.operands, low).to_bits() }
}

/// Words whose values come from one row, or two, each with its factor.
#[inline(always)]
pub(crate) unsafe fn of_rows<P: RoundToBf16>(
    format: WordFormat,
    rows: [&[f32; LINE]; 2],
    factors: [f32; 2],
) -> [u32; LINE] {
    if format.pairs() {
        // SAFETY: says the caller.
        return unsafe { P::of_rows(rows, factors) };
    }
    rows[0].map(|x| rounded(format.operands, x * factors[0]).to_bits())
}
