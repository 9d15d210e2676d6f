//! Ternary codes, four in a byte, in the order of their matrix.

use std::ops::Range;

/// Packs codes, each in {-1, 0, +1}; the first lies in the lowest bits.
pub(crate) fn pack(codes: &[i8]) -> Vec<u8> {
    let byte = |codes: &[i8]| {
        let bits = codes.iter().map(|code| (code + 1).cast_unsigned());
        bits.rev().fold(0, |byte, bits| byte << 2 | bits)
    };
    codes.chunks(4).map(byte).collect()
}

/// Some of the codes, in order.
pub(crate) fn unpack(packed: &[u8], range: Range<usize>) -> impl Iterator<Item = i8> + '_ {
    range.map(|at| (packed[at / 4] >> (2 * (at % 4)) & 3).cast_signed() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_codes_come_back() {
        for count in 0..9 {
            let codes: Vec<i8> = (0..count).map(|index| (index * 5 % 3) as i8 - 1).collect();
            let packed = pack(&codes);
            for first in 0..codes.len() {
                let found: Vec<i8> = unpack(&packed, first..codes.len()).collect();
                assert_eq!(found, codes[first..]);
            }
        }
    }
}
