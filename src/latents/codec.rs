//! How a latent is kept in fewer bits, and how the optimizer's new value is rounded to them.
//!
//! ```text
//! bf16      16 bits, the upper half of an f32             rounded up with the probability of the rest
//! bf16+8    24 bits: a bf16 and the signed distance to it   the same, eight bits further down
//! block16   code · 2ᵏ, a 16-bit code a value and one k for 256   floor(value / 2ᵏ + random)
//! ```
//!
//! Whatever is kept, the model multiplies with the nearest bf16 ([`LatentChunk::weights`]): that is what
//! a BF16 file holds, so other programs quantise the same numbers. The rest lets small updates add up.
//!
//! With bf16 alone, rounding moves more codes than fine-tuning does: a step there is 0.2 to 0.4 % of
//! absmean at the ternary threshold.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::RandomBits;

/// Values that share an exponent in the block form.
pub(crate) const BLOCK: usize = 256;

/// Elements that are updated together; a multiple of every block. Four arrays of them in f32 fit into a
/// first cache of 32 kB.
pub(crate) const CHUNK: usize = 1024;

/// The exponent of a block whose values are all 0, and the smallest of any.
const SMALLEST: i32 = -126;

/// A chunk of a tensor's latents, in the form they are kept in.
pub(crate) enum LatentChunk<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
    /// The nearest bf16, and the distance to it in 1/256 of a bf16 step.
    Bf16Plus8(&'a mut [u16], &'a mut [i8]),
    /// Codes, and the exponent of each block.
    Block16(&'a mut [i16], &'a mut [i8]),
}

impl LatentChunk<'_> {
    /// The latents, exactly.
    #[inline(always)]
    pub(crate) fn load(&self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(values),
            Self::Bf16(words) => widen(words, out),
            Self::Bf16Plus8(high, low) => {
                for ((out, &high), &low) in out.iter_mut().zip(&**high).zip(&**low) {
                    // `low` is signed and may borrow from `high`: the two are the upper 24 bits.
                    let word = (i32::from(high) << 8) + i32::from(low);
                    *out = f32::from_bits(word.cast_unsigned() << 8);
                }
            }
            Self::Block16(codes, exponents) => load_blocks(codes, exponents, out),
        }
    }

    /// Keeps new values, rounded at random to one of the two neighbours that can be kept.
    #[inline(always)]
    pub(crate) fn store(&mut self, values: &[f32], key: RandomBits) {
        match self {
            Self::F32(kept) => kept.copy_from_slice(values),
            Self::Bf16(words) => {
                for (index, (word, value)) in words.iter_mut().zip(values).enumerate() {
                    // Stochastic rounding in integers: 16 random bits are added to the 16 that are
                    // dropped, and the carry rounds up with exactly the probability that the
                    // dropped part is of a step. It works on the sign and magnitude of a float, so
                    // negative values round alike.
                    *word = (value.to_bits().wrapping_add(key.bits(index)) >> 16) as u16;
                }
            }
            Self::Bf16Plus8(high, low) => {
                let words = high.iter_mut().zip(low.iter_mut()).zip(values);
                for (index, ((high, low), value)) in words.enumerate() {
                    // The same eight bits further down: 24 bits stay, so eight random ones decide.
                    let random = key.bits(index) >> 8;
                    (*high, *low) = split(value.to_bits().wrapping_add(random) >> 8);
                }
            }
            Self::Block16(codes, exponents) => {
                let random = |index: usize| key.bits(index) as f32 / 65536.0;
                store_blocks(codes, exponents, values, random);
            }
        }
    }

    /// Keeps values, each rounded to the nearest that can be kept.
    pub(crate) fn store_nearest(&mut self, values: &[f32]) {
        match self {
            Self::F32(kept) => kept.copy_from_slice(values),
            Self::Bf16(words) => {
                words.iter_mut().zip(values).for_each(|(word, &value)| *word = bf16_bits(value));
            }
            Self::Bf16Plus8(high, low) => {
                for ((high, low), value) in high.iter_mut().zip(low.iter_mut()).zip(values) {
                    // Half a unit of the 24 bits that stay, so that cutting the other eight rounds.
                    (*high, *low) = split((value.to_bits() + 0x80) >> 8);
                }
            }
            // With one half in place of a random share the nearer code wins.
            Self::Block16(codes, exponents) => store_blocks(codes, exponents, values, |_| 0.5),
        }
    }
}

/// 24 bits of an f32 as the nearest bf16 and the distance to it.
#[inline(always)]
fn split(word: u32) -> (u16, i8) {
    // Not cut but rounded: `high` is then the bf16 that the model multiplies with, `low` a signed
    // rest.
    let high = (word + 0x80) >> 8;
    (high as u16, word.wrapping_sub(high << 8) as i8)
}

/// bf16 words as f32.
#[inline(always)]
pub(crate) fn widen(words: &[u16], out: &mut [f32]) {
    for (out, &word) in out.iter_mut().zip(words) {
        *out = f32::from_bits(u32::from(word) << 16);
    }
}

/// The bits of the nearest bf16, half to even; of a finite value.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    // Just under half a unit is added, and one more where the last bit that stays is odd.
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// `2^exponent`, for exponents of normal numbers.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// A whole number below 2²² as an integer: added to 1.5·2²³, an f32's last bit counts ones. (`as` saturates,
/// which no instruction set does sixteen times at once.)
#[inline(always)]
fn whole(value: f32) -> i32 {
    const BEHIND: f32 = 12_582_912.0;
    ((value + BEHIND).to_bits() as i32).wrapping_sub(BEHIND.to_bits() as i32)
}

/// The bits of the largest magnitude. Those of magnitudes order as these do, and integers have a maximum that
/// is taken of sixteen at once: of floats it is one after the other, for the sake of NaN.
#[inline(always)]
pub(crate) fn largest_magnitude(values: &[f32]) -> u32 {
    values.iter().fold(0, |most: u32, value| most.max(value.abs().to_bits()))
}

/// The smallest `k` with `max|value| ≤ 2^(k + 15)`.
#[inline(always)]
fn exponent_of(values: &[f32]) -> i32 {
    let largest = largest_magnitude(values);
    // A power of two itself needs one exponent less than what lies above it.
    let above = i32::from(largest & 0x007f_ffff != 0);
    ((largest >> 23) as i32 - 127 + above - 15).max(SMALLEST)
}

#[inline(always)]
pub(crate) fn load_blocks(codes: &[i16], exponents: &[i8], out: &mut [f32]) {
    for ((out, codes), &exponent) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(exponents) {
        let unit = power_of_two(i32::from(exponent));
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = f32::from(code) * unit;
        }
    }
}

/// `random(index)` lies in [0, 1): where a value falls between two codes, the share that rounds down.
#[inline(always)]
fn store_blocks(
    codes: &mut [i16],
    exponents: &mut [i8],
    values: &[f32],
    random: impl Fn(usize) -> f32,
) {
    let blocks = codes.chunks_mut(BLOCK).zip(exponents).zip(values.chunks(BLOCK));
    for (block, ((codes, exponent), values)) in blocks.enumerate() {
        let k = exponent_of(values);
        *exponent = k as i8;
        let inverse = power_of_two(-k);
        for (index, (code, value)) in codes.iter_mut().zip(values).enumerate() {
            let scaled = value * inverse;
            let below = scaled.floor();
            // Both terms are exact, and so is their sum.
            let up = (scaled - below) + random(block * BLOCK + index) >= 1.0;
            // A largest value of just 2^(k + 15), or one rounded up to it, has no code.
            *code = (whole(below) + i32::from(up)).clamp(-32768, 32767) as i16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rounding::RoundingKey;
    use super::*;
    use proptest::prelude::*;

    /// Calls `work` with the name and a zeroed chunk of each form.
    fn each(count: usize, mut work: impl FnMut(&str, &mut LatentChunk)) {
        let blocks = count.div_ceil(BLOCK);
        work("f32", &mut LatentChunk::F32(&mut vec![0.0; count]));
        work("bf16", &mut LatentChunk::Bf16(&mut vec![0; count]));
        work("bf16+8", &mut LatentChunk::Bf16Plus8(&mut vec![0; count], &mut vec![0; count]));
        work("block16", &mut LatentChunk::Block16(&mut vec![0; count], &mut vec![0; blocks]));
    }

    fn step_of(form: &str, value: f32, largest: f32) -> f32 {
        match form {
            "f32" => 0.0,
            "bf16" => value.abs() / 128.0,
            "bf16+8" => value.abs() / 32768.0,
            _ => largest / 16384.0,
        }
    }

    proptest! {
        #[test]
        fn a_kept_value_is_a_neighbour_and_keeping_it_again_changes_nothing(
            values in prop::collection::vec(-4.0f32..4.0, 1..700), seed: u64,
        ) {
            let key = RoundingKey::new(seed, 1, 0).chunk(0);
            let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            each(values.len(), |form, chunk| {
                let mut kept = vec![0.0; values.len()];
                chunk.store(&values, key);
                chunk.load(&mut kept);
                for (kept, value) in kept.iter().zip(&values) {
                    let step = step_of(form, *value, largest);
                    assert!((kept - value).abs() <= step, "{form}: {value} became {kept}");
                }
                let mut again = vec![0.0; values.len()];
                chunk.store(&kept, RoundingKey::new(seed, 2, 0).chunk(0));
                chunk.load(&mut again);
                // A block whose largest value lost its last bit may have a finer unit: no loss either.
                assert_eq!(again, kept, "{form}");
                chunk.store_nearest(&kept);
                chunk.load(&mut again);
                assert_eq!(again, kept, "{form}");
            });
        }
    }

    #[test]
    fn rounding_is_right_on_average() {
        let value = 1.0 + 1.0 / 1024.0 + 1.0 / 100_000.0;
        each(1, |form, chunk| {
            let draws = 20_000;
            let mut sum = 0.0f64;
            for update in 0..draws {
                let mut kept = [0.0];
                chunk.store(&[value], RoundingKey::new(7, update, 0).chunk(0));
                chunk.load(&mut kept);
                sum += f64::from(kept[0]);
            }
            let step = f64::from(step_of(form, value, value));
            let error = (sum / draws as f64 - f64::from(value)).abs();
            assert!(error <= 4.0 * 0.5 * step / (draws as f64).sqrt(), "{form}: {error:e}");
        });
    }

    #[test]
    fn zeros_and_the_largest_values_are_kept() {
        each(300, |form, chunk| {
            let mut values = vec![0.0; 300];
            values[7] = 2.0;
            values[299] = -2.0f32.powi(-20);
            let mut kept = vec![1.0; 300];
            chunk.store_nearest(&values);
            chunk.load(&mut kept);
            // A code has no 2¹⁵: the largest positive power of two of a block is kept less one unit.
            let close = |(kept, value): (&f32, &f32)| (kept - value).abs() <= 2.0 / 32768.0;
            assert!(kept.iter().zip(&values).all(close), "{form}");
            assert!(
                kept.iter().zip(&values).all(|(kept, value)| (*kept == 0.0) == (*value == 0.0))
            );
        });
    }
}
