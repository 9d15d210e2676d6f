//! `TQ2_0` of llama.cpp (GGUF type 35): two bits a value and an f16 scale for each 256.
//!
//! ```text
//! block of 66 bytes:    | 32 bytes: codes 0..128 | 32 bytes: codes 128..256 | d: f16 |
//!
//! byte m of a half      bits 7 6    5 4    3 2    1 0
//! code                      96+m   64+m   32+m      m      each as T + 1
//! ```

use half::f16;

use super::fields::{Fields, unused_code};
use super::{BlockError, pack_ternary, unpack_ternary};

/// Values in a block.
pub const BLOCK: usize = 256;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = CODE_BYTES + 2;

const CODE_BYTES: usize = BLOCK / 4;

const FIELDS: Fields = Fields { lane: 32, shifts: [0, 2, 4, 6] };

/// The bytes of whole blocks of codes that share a scale, those llama.cpp makes of the
/// dequantised values: `d` is `scale`, but 0 in a block whose codes are all 0.
///
/// # Panics
/// If the codes do not fill blocks or are not ternary.
pub fn pack(codes: &[i8], scale: f16) -> Vec<u8> {
    pack_ternary(codes, |_| scale, |block, bytes| FIELDS.pack(block, bytes))
}

/// The same with a scale for each block.
///
/// # Panics
/// As there, and if there is not one scale for each block.
pub fn pack_groups(codes: &[i8], scales: &[f16]) -> Vec<u8> {
    assert_eq!(scales.len(), codes.len() / BLOCK, "one scale for each block");
    pack_ternary(codes, |block| scales[block], |block, bytes| FIELDS.pack(block, bytes))
}

/// The codes of `elements` values and the scale of each block, finite but of either sign or 0.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, a field holds 3, or a scale is not
/// finite.
pub fn unpack(bytes: &[u8], elements: usize) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    unpack_ternary(bytes, elements, BLOCK, CODE_BYTES, |packed, codes| {
        unused_code(packed).map_or(Ok(()), Err)?;
        FIELDS.unpack(packed, codes);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::random_codes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_value_of_a_byte_is_in_its_low_bits() {
        let mut codes = vec![0; 256];
        codes[1] = 1;
        codes[128 + 32] = -1;
        let bytes = pack(&codes, f16::ONE);
        assert_eq!(bytes[..2], [0b01_01_01_01, 0b01_01_01_10]);
        assert_eq!(bytes[32..34], [0b01_01_00_01, 0b01_01_01_01]);
        assert_eq!(bytes[64..], [0x00, 0x3c]);
    }

    #[test]
    fn a_block_of_zeros_has_the_scale_0() {
        let codes = [[0; 256], [1; 256]].concat();
        let (back, scales) = unpack(&pack(&codes, f16::ONE), 512).unwrap();
        assert_eq!((back, scales), (codes, vec![f16::ZERO, f16::ONE]));
    }

    #[test]
    fn the_unused_code_is_found_in_every_field() {
        for field in 0..4 {
            let mut bytes = pack(&[1; 512], f16::ONE);
            bytes[66 + 63] = 3 << (2 * field);
            let expected = BlockError::UnusedCode { offset: 129, byte: 3 << (2 * field) };
            assert_eq!(unpack(&bytes, 512), Err(expected));
        }
        let error = BlockError::UnusedCode { offset: 129, byte: 3 };
        assert_eq!(error.to_string(), "byte 129 is 0x03, a code that no ternary value has");
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused() {
        for scale in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let mut bytes = pack(&[1; 512], f16::ONE);
            bytes[130..].copy_from_slice(&scale.to_le_bytes());
            let error = unpack(&bytes, 512).unwrap_err();
            assert_eq!(error, BlockError::ScaleNotFinite { block: 1, offset: 130 });
            let message = "the scale of block 1 (byte 130) is not a finite number";
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let expected = BlockError::WrongLength { elements: 256, expected: 66, found: 65 };
        assert_eq!(unpack(&[0; 65], 256), Err(expected));
        let expected = BlockError::UnevenElements { elements: 128, block: 256 };
        assert_eq!(unpack(&[0; 33], 128), Err(expected));
        assert_eq!(unpack(&[], 0), Ok((vec![], vec![])));
    }

    proptest! {
        #[test]
        fn pack_then_unpack_is_identity(blocks in 0usize..6, seed: u64) {
            let codes = random_codes(blocks * BLOCK, seed);
            let bytes = pack(&codes, f16::from_f32(0.375));
            let ranges = codes.chunks(BLOCK).flat_map(|block| pack(block, f16::from_f32(0.375)));
            prop_assert_eq!(&bytes, &ranges.collect::<Vec<_>>());
            let scales = vec![f16::from_f32(0.375); blocks];
            prop_assert_eq!(unpack(&bytes, codes.len()), Ok((codes, scales)));
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            elements in prop_oneof![0usize..700, any::<usize>()],
        ) {
            let _ = unpack(&bytes, elements);
        }

        #[test]
        fn what_the_reader_takes_is_what_a_writer_makes(
            bytes in prop::collection::vec(prop_oneof![9 => Just(0x55u8), 1 => any::<u8>()], 66),
        ) {
            if let Ok((codes, _)) = unpack(&bytes, 256) {
                prop_assert_eq!(&pack(&codes, f16::ONE)[..64], &bytes[..64]);
            }
        }
    }
}
