//! `PTQ1_0` of a fork of llama.cpp (GGUF type 143), read only: [`super::tq1_0`] for 128 values.
//!
//! ```text
//! block of 28 bytes:  | 16 bytes: 80 codes | 8 bytes: 40 codes | 2 bytes: 8 codes | d: f16 |
//! codes in a byte:    |         5          |         5         |        4         |
//! ```
//!
//! Three independent readers of this layout agree; no file that the fork itself wrote was read
//! here.

use half::f16;

use super::BlockError;
use super::tq1_0::{self, Parts};

/// Values in a block.
pub const BLOCK: usize = 128;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = CODE_BYTES + 2;

const CODE_BYTES: usize = 16 + 8 + 2;

const PARTS: Parts = [(16, 5), (8, 5), (2, 4)];

/// The codes of `elements` values and the scale of each block, finite but of either sign or 0.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, a byte is not one that five values
/// (or four, where there are four) make, or a scale is not finite.
pub fn unpack(bytes: &[u8], elements: usize) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    let unpack = |bytes: &[u8], codes: &mut [i8]| tq1_0::unpack_parts(PARTS, bytes, codes);
    super::unpack_ternary(bytes, elements, BLOCK, CODE_BYTES, unpack)
}

/// Blocks that share a scale, for tests: we had no program that reads them.
#[cfg(test)]
pub(super) fn pack(codes: &[i8], scale: f16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in codes.chunks_exact(BLOCK) {
        tq1_0::pack_parts(PARTS, block, &mut bytes);
        bytes.extend(scale.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests::random_codes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_drawing() {
        // Byte 0: codes 0, 16, 32, 48, 64, the first the most significant; ceil(v · 256 / 243).
        let mut bytes = pack(&[-1; 128], f16::ONE);
        assert_eq!(bytes, [&[0; 26][..], &[0x00, 0x3c]].concat());
        (bytes[0], bytes[16], bytes[24]) = (171, 86, 29);
        let (codes, scales) = unpack(&bytes, 128).unwrap();
        let place = |value| codes.iter().position(|&code| code == value);
        assert_eq!((codes[0], codes[80], codes[122], scales), (1, 0, 0, vec![f16::ONE]));
        assert_eq!((place(1), place(0)), (Some(0), Some(80)));
    }

    #[test]
    fn a_byte_that_no_values_make_is_refused() {
        for (at, byte) in [(0, 1), (23, 237), (25, 254)] {
            let mut bytes = pack(&[0; 256], f16::ONE);
            bytes[28 + at] = byte;
            let expected = BlockError::UnusedCode { offset: 28 + at, byte };
            assert_eq!(unpack(&bytes, 256), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn packing_and_unpacking_gives_the_same_codes(blocks in 0usize..6, seed: u64) {
            let codes = random_codes(blocks * BLOCK, seed);
            let bytes = pack(&codes, f16::from_f32(0.375));
            prop_assert_eq!(bytes.len(), blocks * BLOCK_BYTES);
            let scales = vec![f16::from_f32(0.375); blocks];
            prop_assert_eq!(unpack(&bytes, codes.len()), Ok((codes, scales)));
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            elements in prop_oneof![0usize..700, any::<usize>()],
        ) {
            let _ = unpack(&bytes, elements);
        }
    }
}
