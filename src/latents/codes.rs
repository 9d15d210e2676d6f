//! Ternary codes, four in a byte, in the order of their matrix.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

/// Packs codes, each in {-1, 0, +1}; the first lies in the lowest bits.
pub(crate) fn pack(codes: &[i8]) -> Vec<u8> {
    let byte = |codes: &[i8]| {
        let bits = codes.iter().map(|code| (code + 1).cast_unsigned());
        bits.rev().fold(0, |byte, bits| byte << 2 | bits)
    };
    codes.chunks(4).map(byte).collect()
}

/// The codes from `first` on, in order.
#[inline(always)]
pub(crate) fn unpack(packed: &[u8], first: usize, out: &mut [i8]) {
    // Rows of most widths begin with a byte; the others go through their codes one by one.
    if first.is_multiple_of(4) {
        let (bytes, (whole, rest)) = (&packed[first / 4..], out.as_chunks_mut::<4>());
        for (out, byte) in whole.iter_mut().zip(bytes) {
            *out = [0, 2, 4, 6].map(|shift| ((byte >> shift) & 3).cast_signed() - 1);
        }
        let behind = first + 4 * whole.len();
        return one_by_one(packed, behind, rest);
    }
    one_by_one(packed, first, out);
}

#[inline(always)]
fn one_by_one(packed: &[u8], first: usize, out: &mut [i8]) {
    for (at, out) in (first..).zip(out) {
        *out = ((packed[at / 4] >> (2 * (at % 4))) & 3).cast_signed() - 1;
    }
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
                for end in first..=codes.len() {
                    let mut found = vec![9; end - first];
                    unpack(&packed, first, &mut found);
                    assert_eq!(found, codes[first..end]);
                }
            }
        }
    }
}
