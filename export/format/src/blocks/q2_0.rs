//! `Q2_0` of llama.cpp (GGUF type 42): an f16 scale, then two bits a value, for each 64 values. Its
//! relatives hold 128 values: `Q2_0` of a fork under the same type id, and `PQ2_0` (type 142).
//!
//! ```text
//! block of 18 (34) bytes:   | d: f16 | 16 (32) bytes: codes, four to a byte |
//!
//! byte m                    bits 7 6   5 4   3 2   1 0
//! code                        4m+3   4m+2  4m+1   4m     each as T + 1; 3 is +2
//! ```

use half::f16;

use super::fields::Fields;
use super::{BlockError, assert_whole, check_blocks, finite_scale};

/// Four neighbours share a byte.
const FIELDS: Fields = Fields { lane: 1, shifts: [0, 2, 4, 6] };

/// Bytes of a block of `block` values.
pub const fn block_bytes(block: usize) -> usize {
    2 + block / 4
}

/// The bytes of whole blocks of `block` codes, each in {-1, 0, +1, +2}, with a scale for each
/// block.
///
/// # Panics
/// If the codes do not fill blocks, there is not one scale for each, or a code is out of range.
pub fn pack(codes: &[i8], scales: &[f16], block: usize) -> Vec<u8> {
    assert_whole(codes.len(), block);
    assert_eq!(scales.len(), codes.len() / block, "one scale for each block");
    assert!(codes.iter().all(|code| (-1..=2).contains(code)), "codes of two bits");
    let mut bytes = Vec::with_capacity(scales.len() * block_bytes(block));
    for (codes, scale) in codes.chunks_exact(block).zip(scales) {
        bytes.extend(scale.to_le_bytes());
        FIELDS.pack(codes, &mut bytes);
    }
    bytes
}

/// The codes of `elements` values in blocks of `block`, each in {-1, 0, +1, +2}, and the scale of
/// each block, finite but of either sign or 0.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, or a scale is not finite.
pub fn unpack(
    bytes: &[u8],
    elements: usize,
    block: usize,
) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    check_blocks(bytes, elements, block, block_bytes(block))?;
    let mut codes = vec![0; elements];
    let mut scales = Vec::with_capacity(elements / block);
    let blocks = bytes.chunks_exact(block_bytes(block)).zip(codes.chunks_exact_mut(block));
    for (index, (packed, codes)) in blocks.enumerate() {
        scales.push(finite_scale(bytes, index, index * block_bytes(block))?);
        FIELDS.unpack(&packed[2..], codes);
    }
    Ok((codes, scales))
}

#[cfg(test)]
mod tests {
    use super::super::tests::random_codes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scale_comes_first_and_four_neighbours_share_a_byte() {
        let mut codes = vec![0; 64];
        codes[..8].copy_from_slice(&[-1, 0, 1, 2, 1, -1, -1, 0]);
        let bytes = pack(&codes, &[f16::ONE], 64);
        assert_eq!(bytes[..4], [0x00, 0x3c, 0b11_10_01_00, 0b01_00_00_10]);
        assert_eq!(bytes.len(), 18);
        assert_eq!(unpack(&bytes, 64, 64), Ok((codes, vec![f16::ONE])));
    }

    #[test]
    fn what_cannot_be_blocks_is_refused() {
        let mut bytes = pack(&[1; 256], &[f16::ONE; 2], 128);
        let expected = BlockError::WrongLength { elements: 256, expected: 72, found: 68 };
        assert_eq!(unpack(&bytes, 256, 64), Err(expected));
        let expected = BlockError::UnevenElements { elements: 192, block: 128 };
        assert_eq!(unpack(&bytes, 192, 128), Err(expected));
        bytes[34..36].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let expected = BlockError::ScaleNotFinite { block: 1, offset: 34 };
        assert_eq!(unpack(&bytes, 256, 128), Err(expected));
    }

    proptest! {
        #[test]
        fn pack_then_unpack_is_identity(blocks in 0usize..6, wide: bool, seed: u64) {
            let block = if wide { 128 } else { 64 };
            let mut codes = random_codes(blocks * block, seed);
            codes.iter_mut().step_by(97).for_each(|code| *code = 2);
            let scales: Vec<f16> = (0..blocks).map(|i| f16::from_f32(0.3 - i as f32)).collect();
            let bytes = pack(&codes, &scales, block);
            prop_assert_eq!(unpack(&bytes, codes.len(), block), Ok((codes, scales)));
        }

        #[test]
        fn no_bytes_panic_the_reader(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            elements in prop_oneof![0usize..700, any::<usize>()],
        ) {
            let _ = unpack(&bytes, elements, 64);
            let _ = unpack(&bytes, elements, 128);
        }
    }
}
