//! Hugging Face's packed ternary layout: four rows in a byte.
//!
//! The matrix is cut into four quarters of `R = N / 4` rows, and the quarters are laid over each
//! other. Each code is stored as `T + 1` in two bits; the value 3 is never written.
//!
//! ```text
//! byte [r, c]   bits 7 6      5 4      3 2      1 0
//! code of row   r + 3R   r + 2R   r +  R        r       at column c
//! ```
//!
//! This is `pack_weights` of transformers' `integrations/bitnet.py`. The layout depends on no CPU;
//! kernels repack when they load.

use crate::blocks::assert_ternary;
use crate::blocks::fields::{Fields, unused_code};
use crate::quant::{WeightScale, ternary_codes};

/// Why bytes or a shape are not a packed ternary matrix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Four rows share a byte, so their number must be a multiple of four.
    #[error("{rows} rows cannot be packed four to a byte; expected a multiple of 4")]
    UnevenRows {
        /// Rows asked for.
        rows: usize,
    },
    /// The byte count does not fit the shape.
    #[error("{rows} x {columns} ternary values need {expected} bytes, got {found}")]
    WrongLength {
        /// Rows, `N`.
        rows: usize,
        /// Columns, `K`.
        columns: usize,
        /// Bytes the shape needs.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// A two-bit field holds 3.
    #[error("byte {offset} holds the code 3, which no ternary value has")]
    UnusedCode {
        /// Offset of the byte.
        offset: usize,
    },
    /// The shape is larger than any file.
    #[error("the shape {rows} x {columns} overflows")]
    ShapeOverflow {
        /// Rows, `N`.
        rows: usize,
        /// Columns, `K`.
        columns: usize,
    },
}

/// A ternary matrix `[N, K]` in the packed layout.
///
/// Invariant: `N % 4 == 0`, `bytes.len() == N / 4 · K`, no field holds 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTernary {
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
}

impl PackedTernary {
    /// Checks bytes that came from a file.
    pub fn from_bytes(rows: usize, columns: usize, bytes: Vec<u8>) -> Result<Self, PackError> {
        let expected = packed_len(rows, columns)?;
        if bytes.len() != expected {
            return Err(PackError::WrongLength { rows, columns, expected, found: bytes.len() });
        }
        match unused_code(&bytes) {
            Some(offset) => Err(PackError::UnusedCode { offset }),
            None => Ok(Self { rows, columns, bytes }),
        }
    }

    /// Packs codes `[N, K]`, each in {-1, 0, +1}.
    pub fn from_codes(rows: usize, columns: usize, codes: &[i8]) -> Result<Self, PackError> {
        let expected = packed_len(rows, columns)?;
        assert_eq!(codes.len(), rows * columns, "one code for each value");
        assert_ternary(codes);
        let mut bytes = Vec::with_capacity(expected);
        // One group of fields as long as the matrix: its quarters are the four lanes.
        Fields { lane: expected.max(1), shifts: [0, 2, 4, 6] }.pack(codes, &mut bytes);
        Ok(Self { rows, columns, bytes })
    }

    /// Quantises latents `[N, K]` and packs their codes.
    pub fn from_latents(
        rows: usize,
        columns: usize,
        latents: &[f32],
    ) -> Result<(Self, WeightScale), PackError> {
        let scale = WeightScale::of_latents(latents);
        Ok((Self::from_codes(rows, columns, &ternary_codes(latents, scale))?, scale))
    }

    /// Number of rows, `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The packed bytes, `[N/4, K]` row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether every code is 0.
    pub fn is_zero(&self) -> bool {
        // Four times the code 0, which is stored as 1.
        self.bytes.iter().all(|&byte| byte == 0b0101_0101)
    }

    /// Writes the codes of one row `[K]`.
    pub fn row_codes(&self, row: usize, codes: &mut [i8]) {
        assert!(row < self.rows && codes.len() == self.columns, "a row of this matrix");
        // Rows of a quarter share a field of every byte: row r is in field r / R of byte row r % R.
        let (quarter, byte_row) = (row / (self.rows / 4), row % (self.rows / 4));
        let bytes = &self.bytes[byte_row * self.columns..][..self.columns];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = ((byte >> (2 * quarter)) & 3) as i8 - 1;
        }
    }

    /// All codes `[N, K]`, row-major.
    pub fn codes(&self) -> Vec<i8> {
        let mut codes = vec![0; self.rows * self.columns];
        for (row, codes) in codes.chunks_exact_mut(self.columns).enumerate() {
            self.row_codes(row, codes);
        }
        codes
    }
}

/// Packed bytes of codes `[N, K]` with groups, each in -1..=2: the layout of [`PackedTernary`], in
/// which the field 3 is the code +2.
///
/// # Panics
/// If the rows do not fill bytes.
pub(crate) fn packed_grouped(rows: usize, columns: usize, codes: &[i8]) -> Vec<u8> {
    assert!(rows.is_multiple_of(4) && codes.len() == rows * columns, "rows that fill bytes");
    let mut bytes = Vec::with_capacity(codes.len() / 4);
    Fields { lane: (codes.len() / 4).max(1), shifts: [0, 2, 4, 6] }.pack(codes, &mut bytes);
    bytes
}

fn packed_len(rows: usize, columns: usize) -> Result<usize, PackError> {
    if !rows.is_multiple_of(4) {
        return Err(PackError::UnevenRows { rows });
    }
    // The unpacked matrix must be addressable too.
    match rows.checked_mul(columns) {
        Some(elements) => Ok(elements / 4),
        None => Err(PackError::ShapeOverflow { rows, columns }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The linear congruential generator of the golden vectors.
    fn golden_codes() -> Vec<i8> {
        let mut x = 1u32;
        let mut draw = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((x >> 16) % 3) as i8 - 1
        };
        (0..8 * 256).map(|_| draw()).collect()
    }

    #[test]
    fn layout_is_frozen() {
        let packed = PackedTernary::from_codes(8, 256, &golden_codes()).unwrap();
        let head: String = packed.bytes()[..32].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(head, "61a2910998041284a46918469200209211aa5aaa6815204002280544505aa519");
        assert_eq!(packed.bytes().len(), 512);
    }

    #[test]
    fn rows_that_do_not_fill_a_byte_are_refused() {
        assert_eq!(
            PackedTernary::from_codes(6, 2, &[0; 12]),
            Err(PackError::UnevenRows { rows: 6 })
        );
    }

    #[test]
    fn the_unused_code_is_found_in_every_field() {
        for field in 0..4 {
            let bytes = vec![0x55, 3 << (2 * field)];
            assert_eq!(
                PackedTernary::from_bytes(4, 2, bytes),
                Err(PackError::UnusedCode { offset: 1 })
            );
        }
    }

    #[test]
    fn a_wrong_length_names_both_lengths() {
        let error = PackedTernary::from_bytes(4, 3, vec![0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "4 x 3 ternary values need 3 bytes, got 2");
        assert!(PackedTernary::from_bytes(usize::MAX - 3, 8, vec![]).is_err());
    }

    proptest! {
        #[test]
        fn pack_then_unpack_is_identity(quarters in 1usize..6, columns in 1usize..40, seed: u64) {
            let mut x = seed | 1;
            let codes: Vec<i8> = (0..4 * quarters * columns).map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((x >> 33) % 3) as i8 - 1
            }).collect();
            let packed = PackedTernary::from_codes(4 * quarters, columns, &codes).unwrap();
            prop_assert_eq!(packed.codes(), codes);
            let bytes = packed.bytes().to_vec();
            prop_assert_eq!(PackedTernary::from_bytes(4 * quarters, columns, bytes), Ok(packed));
        }
    }
}
