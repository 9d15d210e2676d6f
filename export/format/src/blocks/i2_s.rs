//! `I2_S`, the format of bitnet.cpp (GGUF type 36): two bits a value, one scale a tensor.
//!
//! ```text
//! tensor:   | codes of [N, K], row-major, 128 in 32 bytes | scale: f32 | 28 bytes of filler |
//!
//! byte p of a block     bits 7 6    5 4    3 2    1 0
//! code                         p   32+p   64+p   96+p      each as T + 1
//! ```
//!
//! The scale multiplies. The filler is written as zeros and ignored by the reader. A kernel finds
//! row `r` at byte `r · K / 4`, so `K` should be a multiple of the block; only the number of all
//! values is checked here.

use super::fields::{Fields, unused_code};
use super::{BlockError, assert_ternary, assert_whole, check_length, check_whole};
use crate::quant::WeightScale;

/// Values in a block of the canonical layout.
pub const BLOCK: usize = 128;

/// Bytes after the codes: the scale and the filler.
const TAIL: usize = 32;

/// Which of the two orders of values the bytes have.
///
/// Both have the same type number and the same size, and nothing in a file tells them apart: read
/// in the wrong one, every matrix is valid and its values are shuffled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum I2sLayout {
    /// Values `p`, `32+p`, `64+p`, `96+p` of 128 share byte `p`. The canonical layout: that of
    /// bitnet.cpp on x86, of its converter and of the published files. Writers use this one.
    #[default]
    Blocks128,
    /// Values `p`, `16+p`, `32+p`, `48+p` of 64 share byte `p`: what bitnet.cpp built for ARM
    /// reads and writes since November 2025.
    Blocks64,
}

impl I2sLayout {
    /// Values in a block.
    pub fn block(self) -> usize {
        match self {
            Self::Blocks128 => BLOCK,
            Self::Blocks64 => 64,
        }
    }

    /// The first value of a byte is in its highest two bits.
    fn fields(self) -> Fields {
        // The other way round than TQ2_0 and Hugging Face, where it is in the lowest.
        Fields { lane: self.block() / 4, shifts: [6, 4, 2, 0] }
    }
}

/// Bytes of a tensor of `elements` values: their codes and the tail.
pub fn packed_len(elements: usize) -> usize {
    elements / 4 + TAIL
}

/// The bytes of a whole tensor.
///
/// # Panics
/// If the codes do not fill blocks of the layout or are not ternary.
pub fn pack(codes: &[i8], scale: WeightScale, layout: I2sLayout) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packed_len(codes.len()));
    pack_codes(codes, layout, &mut bytes);
    bytes.extend(tail(scale));
    bytes
}

/// Appends the codes of a range of rows, a quarter of their number in bytes. The [`tail`] follows
/// the last range.
///
/// # Panics
/// If the codes do not fill blocks of the layout or are not ternary.
pub fn pack_codes(codes: &[i8], layout: I2sLayout, out: &mut Vec<u8>) {
    assert_whole(codes.len(), layout.block());
    assert_ternary(codes);
    layout.fields().pack(codes, out);
}

/// What follows the codes of a tensor: the scale and 28 zeros.
pub fn tail(scale: WeightScale) -> [u8; TAIL] {
    let mut tail = [0; TAIL];
    tail[..4].copy_from_slice(&scale.multiplier().to_le_bytes());
    tail
}

/// The codes of a tensor of `elements` values and its scale as it is stored: any f32, for the
/// caller to check with [`WeightScale::from_stored`].
///
/// # Errors
/// If the values do not fill blocks of the layout, if the length is another than [`packed_len`],
/// or if a field holds 3.
pub fn unpack(
    bytes: &[u8],
    elements: usize,
    layout: I2sLayout,
) -> Result<(Vec<i8>, f32), BlockError> {
    check_whole(elements, layout.block())?;
    check_length(bytes, elements, packed_len(elements))?;
    let (packed, tail) = bytes.split_at(elements / 4);
    // Two bits hold four codes and three are used: the fourth means damage, or another format.
    if let Some(offset) = unused_code(packed) {
        return Err(BlockError::UnusedCode { offset, byte: packed[offset] });
    }
    let mut codes = vec![0; elements];
    layout.fields().unpack(packed, &mut codes);
    Ok((codes, f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{golden_codes, random_codes};
    use super::*;
    use proptest::prelude::*;

    const LAYOUTS: [I2sLayout; 2] = [I2sLayout::Blocks128, I2sLayout::Blocks64];

    fn scale(value: f32) -> WeightScale {
        WeightScale::from_stored(value).unwrap()
    }

    #[test]
    fn the_first_value_of_a_byte_is_in_its_high_bits() {
        for (layout, lane) in LAYOUTS.into_iter().zip([32, 16]) {
            let mut codes = vec![0; 4 * lane];
            codes[1] = 1;
            codes[1 + lane] = -1;
            let bytes = pack(&codes, scale(1.0), layout);
            assert_eq!(bytes[..3], [0b01_01_01_01, 0b10_00_01_01, 0b01_01_01_01]);
        }
    }

    #[test]
    fn the_tail_is_the_scale_and_28_zeros() {
        let tail = tail(scale(0.375));
        assert_eq!(tail[..4], [0x00, 0x00, 0xc0, 0x3e]);
        assert_eq!(tail[4..], [0; 28]);
    }

    #[test]
    fn the_filler_is_not_looked_at() {
        let mut bytes = pack(&golden_codes(), scale(0.375), I2sLayout::Blocks128);
        let length = bytes.len();
        bytes[length - 28..].fill(0xff);
        let (codes, found) = unpack(&bytes, 2048, I2sLayout::Blocks128).unwrap();
        assert_eq!((codes, found), (golden_codes(), 0.375));
    }

    #[test]
    fn a_scale_comes_back_as_it_is_stored() {
        for stored in [0.0, -1.0, f32::INFINITY] {
            let mut bytes = pack(&[1; 128], scale(1.0), I2sLayout::Blocks128);
            bytes[32..36].copy_from_slice(&f32::to_le_bytes(stored));
            assert_eq!(unpack(&bytes, 128, I2sLayout::Blocks128).unwrap().1, stored);
        }
    }

    #[test]
    fn the_wrong_layout_is_valid_and_shuffled() {
        let bytes = pack(&golden_codes(), scale(0.375), I2sLayout::Blocks128);
        let (codes, _) = unpack(&bytes, 2048, I2sLayout::Blocks64).unwrap();
        assert_ne!(codes, golden_codes());
    }

    #[test]
    fn a_tensor_of_half_blocks_fits_only_the_64_layout() {
        let bytes = pack(&[0; 192], scale(1.0), I2sLayout::Blocks64);
        assert!(unpack(&bytes, 192, I2sLayout::Blocks64).is_ok());
        let error = unpack(&bytes, 192, I2sLayout::Blocks128).unwrap_err();
        assert_eq!(error, BlockError::UnevenElements { elements: 192, block: 128 });
        assert_eq!(error.to_string(), "192 values do not fill blocks; expected a multiple of 128");
    }

    #[test]
    fn the_unused_code_is_found_in_every_field() {
        for field in 0..4 {
            let mut bytes = pack(&[-1; 256], scale(1.0), I2sLayout::Blocks128);
            bytes[37] = 3 << (2 * field);
            let expected = BlockError::UnusedCode { offset: 37, byte: 3 << (2 * field) };
            assert_eq!(unpack(&bytes, 256, I2sLayout::Blocks128), Err(expected));
        }
    }

    #[test]
    fn a_wrong_length_names_both_lengths() {
        let error = unpack(&[0; 63], 128, I2sLayout::Blocks128).unwrap_err();
        assert_eq!(error.to_string(), "128 values need 64 bytes, got 63");
        assert!(unpack(&[0; 64], usize::MAX - 127, I2sLayout::Blocks128).is_err());
    }

    #[test]
    fn no_values_are_a_tail_alone() {
        let bytes = pack(&[], scale(2.0), I2sLayout::Blocks128);
        assert_eq!(bytes.len(), packed_len(0));
        assert_eq!(unpack(&bytes, 0, I2sLayout::Blocks128), Ok((vec![], 2.0)));
    }

    #[test]
    #[should_panic(expected = "whole blocks of 128 values, got 64")]
    fn a_part_of_a_block_is_not_written() {
        pack(&[0; 64], scale(1.0), I2sLayout::Blocks128);
    }

    #[test]
    #[should_panic(expected = "ternary codes")]
    fn a_code_that_is_not_ternary_is_not_written() {
        pack(&[2; 128], scale(1.0), I2sLayout::Blocks128);
    }

    proptest! {
        #[test]
        fn pack_then_unpack_is_identity(
            blocks in 0usize..9,
            multiplier in 1e-30f32..1e30,
            seed: u64,
        ) {
            for layout in LAYOUTS {
                let codes = random_codes(blocks * layout.block(), seed);
                let bytes = pack(&codes, scale(multiplier), layout);
                prop_assert_eq!(bytes.len(), packed_len(codes.len()));
                let unpacked = unpack(&bytes, codes.len(), layout);
                prop_assert_eq!(unpacked, Ok((codes, multiplier)));
            }
        }

        #[test]
        fn ranges_of_rows_make_the_whole(before in 0usize..5, after in 0usize..5, seed: u64) {
            for layout in LAYOUTS {
                let codes = random_codes((before + after) * layout.block(), seed);
                let (first, second) = codes.split_at(before * layout.block());
                let mut bytes = Vec::new();
                pack_codes(first, layout, &mut bytes);
                pack_codes(second, layout, &mut bytes);
                bytes.extend(tail(scale(0.5)));
                prop_assert_eq!(bytes, pack(&codes, scale(0.5), layout));
            }
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            elements in prop_oneof![0usize..700, any::<usize>()],
        ) {
            for layout in LAYOUTS {
                for elements in [elements, bytes.len().saturating_sub(TAIL) * 4] {
                    if let Ok((codes, stored)) = unpack(&bytes, elements, layout) {
                        let mut again = Vec::new();
                        pack_codes(&codes, layout, &mut again);
                        prop_assert_eq!(&again, &bytes[..elements / 4]);
                        prop_assert_eq!(&stored.to_le_bytes(), &bytes[elements / 4..][..4]);
                    }
                }
            }
        }
    }
}
