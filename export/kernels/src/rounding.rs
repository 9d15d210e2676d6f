//! Random bits for stochastic rounding: a pure function of two random words and a place, so neither
//! threads nor resuming change a bit. The caller derives the words from what identifies the
//! place.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

/// The bits of one stretch of elements. A 32-bit mixer (two multiplications, which vectorise) turns the
/// place of an element into its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomBits {
    before: u32,
    after: u32,
}

impl RandomBits {
    /// The bits that two random words name.
    pub fn new(before: u32, after: u32) -> Self {
        Self { before, after }
    }

    /// 16 random bits for an element.
    #[inline(always)]
    pub fn bits(self, index: usize) -> u32 {
        let mut x = (index as u32).wrapping_mul(0x9e37_79b9) ^ self.before;
        x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad) ^ self.after;
        x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
        x >> 16
    }
}

/// How a value between two codes becomes one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The nearer one, half to even.
    Nearest,
    /// The upper one as often as the value is near to it: right on average.
    Stochastic(RandomBits),
}
