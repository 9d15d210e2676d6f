//! `Q8_0` of llama.cpp (GGUF type 8): 32 values as 8-bit integers under an f16 scale.
//!
//! ```text
//! block of 34 bytes:  | d: f16 | q[0] … q[31]: i8 |        value = d · q
//! ```
//!
//! With `d = max |x| / 127`
//! it is `q = round(x · (1 / d))`, half away from zero, in f32 and before `d` is rounded to f16:
//! the order of llama.cpp's reference, which gives the same bytes.

use super::{BlockError, absmax, assert_whole, check_blocks, finite_scale};
use half::f16;

/// Values in a block.
pub const BLOCK: usize = 32;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = SCALE_BYTES + BLOCK;

const SCALE_BYTES: usize = 2;

/// The bytes of whole blocks of values.
///
/// A block that holds NaN, infinity or a magnitude above 8.3e6, for which f16 has no scale, gets a
/// scale that is not finite, so that [`dequantise`] refuses it.
///
/// # Panics
/// If the values do not fill blocks.
pub fn quantise(values: &[f32]) -> Vec<u8> {
    assert_whole(values.len(), BLOCK);
    let mut bytes = Vec::with_capacity(values.len() / BLOCK * BLOCK_BYTES);
    for block in values.chunks_exact(BLOCK) {
        let scale = absmax(block) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        bytes.extend(f16::from_f32(scale).to_le_bytes());
        // A NaN becomes 0 here; the scale, which is then NaN too, tells the reader.
        bytes.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    }
    bytes
}

/// `elements` values, each `d · q`.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, or a scale is not finite.
pub fn dequantise(bytes: &[u8], elements: usize) -> Result<Vec<f32>, BlockError> {
    check_blocks(bytes, elements, BLOCK, BLOCK_BYTES)?;
    let mut values = Vec::with_capacity(elements);
    for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        let scale = finite_scale(bytes, index, index * BLOCK_BYTES)?.to_f32();
        values.extend(block[SCALE_BYTES..].iter().map(|&q| f32::from(q as i8) * scale));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gaussian, relative_rms};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_round_away_from_zero() {
        let mut values = [0.0; 32];
        values[..5].copy_from_slice(&[127.0, 0.5, -0.5, -2.5, 2.49]);
        let bytes = quantise(&values);
        assert_eq!(bytes[..2], [0x00, 0x3c]);
        assert_eq!(bytes[2..7], [127, 1, 0xff, 0xfd, 2]);
        assert_eq!(bytes[7..], [0; 27]);
    }

    #[test]
    fn a_block_of_zeros_is_zeros() {
        assert_eq!(quantise(&[0.0; 32]), [0; 34]);
        assert_eq!(dequantise(&[0; 34], 32), Ok(vec![0.0; 32]));
    }

    #[test]
    fn values_without_a_scale_in_f16_are_refused_when_read() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -8.4e6] {
            let mut values = [1.0; 64];
            values[40] = value;
            let expected = BlockError::ScaleNotFinite { block: 1, offset: 34 };
            assert_eq!(dequantise(&quantise(&values), 64), Err(expected), "{value}");
        }
        assert!(dequantise(&quantise(&[8.3e6; 32]), 32).is_ok());
        assert!(dequantise(&quantise(&[f32::from_bits(1); 32]), 32).is_ok());
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let expected = BlockError::WrongLength { elements: 64, expected: 68, found: 34 };
        assert_eq!(dequantise(&[0; 34], 64), Err(expected));
        let expected = BlockError::UnevenElements { elements: 31, block: 32 };
        assert_eq!(dequantise(&[0; 34], 31), Err(expected));
        // The number of bytes overflows.
        assert!(dequantise(&[], usize::MAX - 31).is_err());
    }

    #[test]
    fn gaussian_rows_lose_half_a_percent() {
        let values = gaussian(64 * 1024, 1);
        let error = relative_rms(&values, &dequantise(&quantise(&values), values.len()).unwrap());
        // The largest of 32 Gaussian magnitudes has a mean square of 5.70 and becomes 127 steps:
        // sqrt(5.70) / 127 / sqrt(12) = 0.54 %.
        assert!((0.005..0.006).contains(&error), "{error}");
    }

    proptest! {
        #[test]
        fn no_value_is_off_by_more_than_half_a_step(
            seed: u64,
            blocks in 1usize..5,
            exponent in -9i32..20,
        ) {
            let unit = 2f32.powi(exponent);
            let values: Vec<f32> = gaussian(32 * blocks, seed).iter().map(|x| x * unit).collect();
            let back = dequantise(&quantise(&values), values.len()).unwrap();
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                // Half a step, and 127 steps times half an ulp of a subnormal or normal f16.
                let step = absmax(block) / 127.0;
                let half_ulp = (step * 2f32.powi(-11)).max(2f32.powi(-25));
                let bound = step / 2.0 * 1.001 + 127.0 * half_ulp;
                for (x, y) in block.iter().zip(back) {
                    prop_assert!((x - y).abs() <= bound, "{} became {}", x, y);
                }
            }
        }

        #[test]
        fn no_bits_panic_the_writer(bits in prop::collection::vec(any::<u32>(), 64)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let _ = dequantise(&quantise(&values), 64);
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..140),
            elements in prop_oneof![0usize..160, any::<usize>()],
        ) {
            let _ = dequantise(&bytes, elements);
            let whole = bytes.len() / BLOCK_BYTES;
            if let Ok(values) = dequantise(&bytes[..whole * BLOCK_BYTES], whole * BLOCK) {
                prop_assert_eq!(values.len(), whole * BLOCK);
            }
        }
    }
}
