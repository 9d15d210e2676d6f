//! `TQ1_0` of llama.cpp (GGUF type 34): five ternary values to a byte, an f16 scale for each 256.
//!
//! ```text
//! block of 54 bytes:  | 32 bytes: 160 codes | 16 bytes: 80 codes | 4 bytes: 16 codes | d: f16 |
//! codes in a byte:    |          5          |         5          |         4         |
//! ```
//!
//! In a part of `W` bytes, byte `m` holds the part's codes `m`, `W+m`, `2W+m` and so on.
//!
//! The digits `T + 1` of a byte, the first one the most significant, make a number `v` below
//! 3⁵ = 243; where a byte has four codes, the fifth digit is 0. The byte is
//! `ceil(v · 256 / 243)`, that is `v / 243` as a fraction of 256. A reader then needs no division:
//! it multiplies by 3, the carry above 8 bits is the next digit, and the low 8 bits go on.
//!
//! ```text
//! 2 1 0 1 2 → v = 194 → byte 205:   205·3 = 2·256 + 103,  103·3 = 1·256 + 53,  53·3 = 0·256 + …
//! ```

use half::f16;

use super::{BlockError, pack_ternary, unpack_ternary};

/// The parts of a block: how many bytes, and how many values in each of them.
pub(super) type Parts = [(usize, usize); 3];

/// Values in a block.
pub const BLOCK: usize = 256;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = CODE_BYTES + 2;

const CODE_BYTES: usize = 32 + 16 + 4;

const PARTS: Parts = [(32, 5), (16, 5), (4, 4)];

/// The bytes of whole blocks of codes that share a scale, those llama.cpp makes of the
/// dequantised values: `d` is `scale`, but 0 in a block whose codes are all 0.
///
/// # Panics
/// If the codes do not fill blocks or are not ternary.
pub fn pack(codes: &[i8], scale: f16) -> Vec<u8> {
    pack_ternary(codes, |_| scale, |block, bytes| pack_parts(PARTS, block, bytes))
}

/// The same with a scale for each block.
///
/// # Panics
/// As there, and if there is not one scale for each block.
pub fn pack_groups(codes: &[i8], scales: &[f16]) -> Vec<u8> {
    assert_eq!(scales.len(), codes.len() / BLOCK, "one scale for each block");
    pack_ternary(codes, |block| scales[block], |block, bytes| pack_parts(PARTS, block, bytes))
}

/// The codes of `elements` values and the scale of each block, finite but of either sign or 0.
///
/// # Errors
/// If the values do not fill blocks, the length does not fit, a byte is not one that five values
/// (or four, where there are four) make, or a scale is not finite.
pub fn unpack(bytes: &[u8], elements: usize) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    let unpack = |bytes: &[u8], codes: &mut [i8]| unpack_parts(PARTS, bytes, codes);
    unpack_ternary(bytes, elements, BLOCK, CODE_BYTES, unpack)
}

pub(super) fn pack_parts(parts: Parts, mut codes: &[i8], out: &mut Vec<u8>) {
    for (width, count) in parts {
        let (part, rest) = codes.split_at(width * count);
        // Byte m takes one code from each run of `width`: a vector of bytes then unpacks whole runs
        // at once.
        for m in 0..width {
            let mut digits = [0; 5];
            for (digit, code) in digits.iter_mut().zip(part[m..].iter().step_by(width)) {
                *digit = (code + 1) as u8;
            }
            out.push(encode(digits));
        }
        codes = rest;
    }
}

/// Fails with the position of a byte that no values make.
pub(super) fn unpack_parts(parts: Parts, bytes: &[u8], mut codes: &mut [i8]) -> Result<(), usize> {
    let mut at = 0;
    for (width, count) in parts {
        let (part, rest) = codes.split_at_mut(width * count);
        for m in 0..width {
            let digits = decode(bytes[at], count).ok_or(at)?;
            for (code, digit) in part[m..].iter_mut().step_by(width).zip(digits) {
                *code = digit as i8 - 1;
            }
            at += 1;
        }
        codes = rest;
    }
    Ok(())
}

fn encode(digits: [u8; 5]) -> u8 {
    let number = digits.iter().fold(0, |number, &digit| number * 3 + u16::from(digit));
    // Rounded up, so that multiplying by 3 and dropping bits below never falls short of a digit.
    (number * 256).div_ceil(243) as u8
}

/// The first `count` digits of a byte; `None` if these digits make another byte.
fn decode(byte: u8, count: usize) -> Option<[u8; 5]> {
    let mut digits = [0; 5];
    let mut fraction = byte;
    for digit in &mut digits[..count] {
        let tripled = u16::from(fraction) * 3;
        (*digit, fraction) = ((tripled >> 8) as u8, tripled as u8);
    }
    // 256 bytes, 243 numbers: thirteen bytes are no code, and one of them means a broken file.
    (encode(digits) == byte).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::super::tests::random_codes;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_value_of_a_byte_is_its_most_significant_digit() {
        let mut codes = vec![-1; 256];
        codes[1] = 1;
        codes[160 + 4 * 16] = 0;
        codes[240 + 3 * 4] = 0;
        let bytes = pack(&codes, f16::ONE);
        // 2 · 81, 1 and 1 · 3, each times 256 / 243 and rounded up.
        assert_eq!(bytes[..2], [0, 171]);
        assert_eq!(bytes[32..34], [2, 0]);
        assert_eq!(bytes[48..50], [4, 0]);
        assert_eq!(bytes[52..], [0x00, 0x3c]);
    }

    #[test]
    fn every_number_of_five_digits_has_its_own_byte() {
        let taken = |count| (0..=255).filter(|&byte| decode(byte, count).is_some()).count();
        assert_eq!((taken(5), taken(4)), (243, 81));
        for number in 0..243u8 {
            let digits = [81, 27, 9, 3, 1].map(|place| number / place % 3);
            assert_eq!(decode(encode(digits), 5), Some(digits));
            let four = decode(encode(digits), 4);
            assert_eq!(four, (digits[4] == 0).then_some(digits));
        }
    }

    #[test]
    fn a_byte_that_no_values_make_is_refused() {
        // 1 and 237 are made by no values, 2 and 254 only by five.
        for (at, byte) in [(0, 1), (31, 237), (47, 1), (51, 254), (48, 2)] {
            let mut bytes = pack(&[0; 512], f16::ONE);
            bytes[54 + at] = byte;
            let expected = BlockError::UnusedCode { offset: 54 + at, byte };
            assert_eq!(unpack(&bytes, 512), Err(expected));
        }
    }

    #[test]
    fn a_block_of_zeros_has_the_scale_0() {
        let codes = [[1; 256], [0; 256]].concat();
        let (back, scales) = unpack(&pack(&codes, f16::ONE), 512).unwrap();
        assert_eq!((back, scales), (codes, vec![f16::ONE, f16::ZERO]));
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused() {
        let mut bytes = pack(&[1; 512], f16::ONE);
        bytes[106..].copy_from_slice(&f16::NAN.to_le_bytes());
        let expected = BlockError::ScaleNotFinite { block: 1, offset: 106 };
        assert_eq!(unpack(&bytes, 512), Err(expected));
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let expected = BlockError::WrongLength { elements: 256, expected: 54, found: 55 };
        assert_eq!(unpack(&[0; 55], 256), Err(expected));
        let expected = BlockError::UnevenElements { elements: 255, block: 256 };
        assert_eq!(unpack(&[0; 54], 255), Err(expected));
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
            bytes in prop::collection::vec(prop_oneof![9 => Just(127u8), 1 => any::<u8>()], 54),
        ) {
            if let Ok((codes, _)) = unpack(&bytes, 256) {
                prop_assert_eq!(&pack(&codes, f16::ONE)[..52], &bytes[..52]);
            }
        }
    }
}
