//! `Q6_K` of llama.cpp (GGUF type 14): 6-bit levels, an 8-bit scale for each 16 values and an f16
//! scale for each 256.
//!
//! A value is `d · s · (u - 32)`: `d` of its block, `s` of its group of 16, `u` its level in
//! 0..64. The lower four bits of the levels are in `ql`, the upper two in `qh`:
//!
//! ```text
//! block of 210 bytes:  | ql: 128 bytes | qh: 64 bytes | s: 16 × i8 | d: f16 |
//!
//! each half of the block, 128 values, has 64 bytes of ql and 32 of qh:
//!   ql[m]         bits 7…4: value 64+m        bits 3…0: value m
//!   ql[32+m]      bits 7…4: value 96+m        bits 3…0: value 32+m
//!   qh[m]         bits 7 6: 96+m    5 4: 64+m    3 2: 32+m    1 0: m
//! ```
//!
//! The writer searches as llama.cpp's reference does and in the same arithmetic, so the bytes are
//! the same. `d` is small, about `max |x| / 4096`: below magnitudes of 0.25 it is a subnormal of
//! f16 and no longer has all of its 11 bits.

use super::{BlockError, absmax, assert_whole, check_blocks, finite_scale};
use half::f16;

/// Values in a block.
pub const BLOCK: usize = 256;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = SCALE_AT + 2;

const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;

const HIGH_AT: usize = BLOCK / 2;
const STEPS_AT: usize = HIGH_AT + BLOCK / 4;
const SCALE_AT: usize = STEPS_AT + GROUPS;

/// The level of the value 0.
const MIDDLE: i8 = 32;

/// Magnitudes and scales below this count as 0, as in llama.cpp.
const TINY: f32 = 1e-15;

/// From here on f16 has no scale: the largest one is 65504, and 4096 of it make a value.
const TOO_LARGE: f32 = 65504.0 * 4096.0;

/// The levels of a group of values, each in 0..64.
type Levels = [u8; GROUP];

/// The bytes of whole blocks of values.
///
/// A block that holds NaN, infinity or a magnitude above about 2.7e8, for which f16 has no scale,
/// gets an infinite one, so that [`dequantise`] refuses it.
///
/// # Panics
/// If the values do not fill blocks.
pub fn quantise(values: &[f32]) -> Vec<u8> {
    assert_whole(values.len(), BLOCK);
    let mut bytes = vec![0; values.len() / BLOCK * BLOCK_BYTES];
    for (values, block) in values.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        if absmax(values) < TOO_LARGE {
            quantise_block(values, block);
        } else {
            block[SCALE_AT..].copy_from_slice(&f16::INFINITY.to_le_bytes());
        }
    }
    bytes
}

/// `elements` values, each `d · s · (u - 32)`.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, or a scale is not finite.
pub fn dequantise(bytes: &[u8], elements: usize) -> Result<Vec<f32>, BlockError> {
    check_blocks(bytes, elements, BLOCK, BLOCK_BYTES)?;
    let mut values = Vec::with_capacity(elements);
    for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        let scale = finite_scale(bytes, index, index * BLOCK_BYTES + SCALE_AT)?.to_f32();
        let levels = levels_of(block);
        for (group, &step) in levels.chunks_exact(GROUP).zip(&block[STEPS_AT..SCALE_AT]) {
            let step = scale * f32::from(step as i8);
            values.extend(group.iter().map(|&level| step * f32::from(level as i8 - MIDDLE)));
        }
    }
    Ok(values)
}

/// Fills a block of zeros; one whose values count as 0 stays as it is.
fn quantise_block(values: &[f32], block: &mut [u8]) {
    let mut fits = [Fit::NONE; GROUPS];
    for (fit, group) in fits.iter_mut().zip(values.chunks_exact(GROUP)) {
        *fit = Fit::of_group(group);
    }
    let largest = first_largest(fits.iter().map(Fit::scale));
    if largest.abs() < TINY {
        return;
    }
    // The group with the largest scale gets -128, the one end that 8 bits have to spare.
    let inverse = -128.0 / largest;
    let scale = f16::from_f32(1.0 / inverse);
    let mut levels = [0; BLOCK];
    for (index, fit) in fits.iter().enumerate() {
        // Scales of groups are themselves 8-bit codes, in units of the block's `d`.
        let step = (inverse * fit.scale()).round_ties_even().min(127.0);
        block[STEPS_AT + index] = step as i8 as u8;
        let at = index * GROUP;
        let group = &values[at..][..GROUP];
        // Values are rounded once more with the scale that a reader will see, after both roundings
        // of it.
        levels[at..][..GROUP].copy_from_slice(&fit.levels_at(group, scale.to_f32() * step));
    }
    write_levels(&levels, block);
    block[SCALE_AT..].copy_from_slice(&scale.to_le_bytes());
}

/// The first of the values of the largest magnitude; 0 if there is none above that.
fn first_largest(values: impl Iterator<Item = f32>) -> f32 {
    values
        .fold(0.0, |largest: f32, value| if value.abs() > largest.abs() { value } else { largest })
}

/// Levels for one group, and what their best scale follows from.
#[derive(Clone, Copy)]
struct Fit {
    /// Σ x² · x · l, with `l` the level less 32: the squares are weighted with `x²`.
    product: f32,
    /// Σ x² · l².
    square: f32,
    levels: Levels,
}

impl Fit {
    /// A group of zeros. Its levels mean nothing, for its scale is 0.
    const NONE: Self = Self { product: 0.0, square: 0.0, levels: [0; GROUP] };

    /// The best of 19: the value of the largest magnitude becomes 32 levels, or up to 0.9 of a
    /// level more or less, and always a negative one, of which there is one more.
    fn of_group(values: &[f32]) -> Self {
        let extreme = first_largest(values.iter().copied());
        if extreme.abs() < TINY {
            return Self::NONE;
        }
        let mut best = Self::at(values, -32.0 / extreme);
        for tenths in (-9i8..=9).filter(|&tenths| tenths != 0) {
            let other = Self::at(values, -(32.0 + 0.1 * f32::from(tenths)) / extreme);
            if other.product * other.product > best.explained() * other.square {
                best = other;
            }
        }
        best
    }

    /// With the levels `round(x · inverse)`.
    fn at(values: &[f32], inverse: f32) -> Self {
        let mut fit = Self::NONE;
        for (level, &x) in fit.levels.iter_mut().zip(values) {
            *level = level_of(inverse * x);
            let (weight, l) = (x * x, f32::from(*level as i8 - MIDDLE));
            fit.product += weight * x * l;
            fit.square += weight * l * l;
        }
        fit
    }

    /// The scale of the least weighted squares of errors.
    fn scale(&self) -> f32 {
        if self.square > 0.0 { self.product / self.square } else { 0.0 }
    }

    /// By how much that scale lessens the weighted squares.
    fn explained(&self) -> f32 {
        self.scale() * self.product
    }

    /// The levels at the step the group really got, after both scales were rounded.
    fn levels_at(&self, values: &[f32], step: f32) -> Levels {
        if step == 0.0 {
            return self.levels;
        }
        let mut levels = [0; GROUP];
        for (level, x) in levels.iter_mut().zip(values) {
            *level = level_of(x / step);
        }
        levels
    }
}

fn level_of(steps: f32) -> u8 {
    (steps.round_ties_even().clamp(-32.0, 31.0) as i8 + MIDDLE) as u8
}

fn write_levels(levels: &[u8; BLOCK], block: &mut [u8]) {
    let (low, high) = block.split_at_mut(HIGH_AT);
    for (half, levels) in levels.chunks_exact(128).enumerate() {
        for m in 0..32 {
            let [a, b, c, d] = [0, 32, 64, 96].map(|quarter| levels[quarter + m]);
            low[64 * half + m] = (a & 15) | (c & 15) << 4;
            low[64 * half + 32 + m] = (b & 15) | (d & 15) << 4;
            high[32 * half + m] = (a >> 4) | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
}

fn levels_of(block: &[u8]) -> [u8; BLOCK] {
    let (low, high) = block.split_at(HIGH_AT);
    let mut levels = [0; BLOCK];
    for (half, levels) in levels.chunks_exact_mut(128).enumerate() {
        for m in 0..32 {
            let (first, second) = (low[64 * half + m], low[64 * half + 32 + m]);
            let upper = high[32 * half + m];
            levels[m] = (first & 15) | (upper & 3) << 4;
            levels[32 + m] = (second & 15) | (upper >> 2 & 3) << 4;
            levels[64 + m] = (first >> 4) | (upper >> 4 & 3) << 4;
            levels[96 + m] = (second >> 4) | (upper >> 6) << 4;
        }
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gaussian, relative_rms};
    use super::*;
    use proptest::prelude::*;

    fn round_trip(values: &[f32]) -> Vec<f32> {
        dequantise(&quantise(values), values.len()).unwrap()
    }

    /// A block with every scale 1.
    fn block_of(levels: &[u8; 256]) -> Vec<u8> {
        let mut block = vec![1; BLOCK_BYTES];
        write_levels(levels, &mut block[..STEPS_AT]);
        block[SCALE_AT..].copy_from_slice(&f16::ONE.to_le_bytes());
        block
    }

    #[test]
    fn the_places_of_a_level_are_frozen() {
        let mut levels = [0; 256];
        for quarter in 0..4 {
            levels[128 + 32 * quarter + 5] = 0x11 * (quarter as u8 % 3 + 1);
        }
        let block = block_of(&levels);
        // Levels 0x11, 0x22, 0x33, 0x11 of the second half.
        assert_eq!((block[64 + 5], block[96 + 5]), (0x31, 0x12));
        assert_eq!(block[128 + 32 + 5], 0b01_11_10_01);
        let values = dequantise(&block, 256).unwrap();
        assert_eq!([5, 37, 69, 101].map(|at| values[128 + at]), [-15.0, 2.0, 19.0, -15.0]);
        assert_eq!(values[0], -32.0);
    }

    #[test]
    fn a_group_has_its_own_scale_of_either_sign() {
        let mut block = block_of(&[33; 256]);
        block[STEPS_AT + 3] = -128i8 as u8;
        let values = dequantise(&block, 256).unwrap();
        assert_eq!((values[47], values[48], values[63], values[64]), (1.0, -128.0, -128.0, 1.0));
    }

    #[test]
    fn a_block_of_zeros_is_zeros() {
        assert_eq!(quantise(&[0.0; 256]), [0; 210]);
        assert_eq!(quantise(&[-1e-16; 256]), [0; 210]);
        assert_eq!(round_trip(&[0.0; 256]), [0.0; 256]);
    }

    #[test]
    fn groups_of_zeros_stay_zeros_beside_others() {
        let mut values = vec![0.0; 512];
        values[300] = 1.0;
        let back = round_trip(&values);
        assert!((back[300] - 1.0).abs() < 1e-3, "{}", back[300]);
        values[300] = 0.0;
        let others: Vec<f32> = back.iter().copied().filter(|x| x.abs() < 0.5).collect();
        assert_eq!(others, values[..511]);
    }

    #[test]
    fn a_spike_keeps_its_value() {
        for spike in [1e-3, -0.02, 1.0, -77.0, 1e6, -2.6e8] {
            for at in [0, 100, 255] {
                let mut values = [0.0; 256];
                values[at] = spike;
                let error = (round_trip(&values)[at] / spike - 1.0).abs();
                // Half a step of f16's subnormals, 2^-25, against d = spike / 4096.
                let bound = (2f32.powi(-25) * 4096.0 / spike.abs()).max(2f32.powi(-11)) * 1.001;
                assert!(error <= bound, "{spike} at {at}: {error}");
            }
        }
    }

    #[test]
    fn values_without_a_scale_in_f16_are_refused_when_read() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -2.8e8] {
            let mut values = [1.0; 512];
            values[400] = value;
            let expected = BlockError::ScaleNotFinite { block: 1, offset: 418 };
            assert_eq!(dequantise(&quantise(&values), 512), Err(expected), "{value}");
        }
        assert!(dequantise(&quantise(&[2.6e8; 256]), 256).is_ok());
        assert!(dequantise(&quantise(&[f32::from_bits(1); 256]), 256).is_ok());
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let expected = BlockError::WrongLength { elements: 256, expected: 210, found: 209 };
        assert_eq!(dequantise(&[0; 209], 256), Err(expected));
        let expected = BlockError::UnevenElements { elements: 32, block: 256 };
        assert_eq!(dequantise(&[0; 210], 32), Err(expected));
    }

    fn gaussian_error(deviation: f32) -> f64 {
        let values: Vec<f32> = gaussian(64 * 1024, 1).iter().map(|x| x * deviation).collect();
        relative_rms(&values, &round_trip(&values))
    }

    #[test]
    fn gaussian_rows_lose_less_than_two_percent() {
        // The largest of 16 Gaussian magnitudes has a mean square of 4.56 and becomes 32 levels:
        // sqrt(4.56) / 32 / sqrt(12) = 1.9 %, of which the search saves a part.
        for deviation in [0.02, 1.0, 1e4] {
            let error = gaussian_error(deviation);
            assert!((0.0170..0.0185).contains(&error), "{deviation}: {error}");
        }
    }

    #[test]
    fn small_values_lose_more_by_the_subnormal_scale() {
        assert!((0.0200..0.0215).contains(&gaussian_error(1e-3)));
    }

    proptest! {
        #[test]
        fn ranges_of_rows_make_the_whole(blocks in 0usize..4, seed: u64) {
            let values = gaussian(256 * blocks, seed);
            let ranges = values.chunks(256).flat_map(quantise);
            prop_assert_eq!(quantise(&values), ranges.collect::<Vec<_>>());
        }

        #[test]
        fn levels_written_are_levels_read(bytes in prop::collection::vec(any::<u8>(), 192)) {
            let mut again = vec![0; 192];
            write_levels(&levels_of(&bytes), &mut again);
            prop_assert_eq!(again, bytes);
        }

        #[test]
        fn no_bits_panic_the_writer(bits in prop::collection::vec(any::<u32>(), 256)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let _ = dequantise(&quantise(&values), 256);
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..640),
            elements in prop_oneof![0usize..700, any::<usize>()],
        ) {
            let _ = dequantise(&bytes, elements);
            let whole = bytes.len() / BLOCK_BYTES;
            if let Ok(values) = dequantise(&bytes[..whole * BLOCK_BYTES], whole * BLOCK) {
                prop_assert_eq!(values.len(), whole * BLOCK);
            }
        }
    }
}
