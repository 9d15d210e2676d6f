//! Ternary matrices as the kernels read them: repacked at load, never written to a file.
//!
//! Two panels of 16 rows lie side by side. A chunk covers 16 columns: its byte (row `r`, `j`)
//! holds the codes `u = T + 1` of columns `4f + j` in bits `2f`, `f = 0..3`. So one 64-byte line is
//! 16 rows × 16 columns and every 32-bit lane belongs to one row.
#![expect(clippy::inline_always, reason = "quantising is compiled for each instruction set")]

use bitnet_format::packed::PackedTernary;
use bitnet_format::quant::WeightScale;

use crate::layout::{CHUNK, PairChunk, ROWS_PER_PAIR, SimdWork};
use crate::memory::PageBuffer;
use crate::{Kernel, Pages};

/// Wider matrices could overflow an i32 accumulator: a kernel sums fields that are scaled by 4,
/// `4 · 2 · 128 · K < 2³¹`.
const LARGEST_COLUMNS: usize = 1 << 20;

/// Every field `u = 1`, which is the code 0.
const ZEROS: PairChunk = PairChunk([0x55; 4 * ROWS_PER_PAIR]);

/// Ternary matrices `[N, K]`, one below the other, each row with the scale of its matrix.
///
/// Invariant: no field holds 3; columns beyond `K` and rows beyond `N` hold the code 0.
#[derive(Debug)]
pub struct TernaryPanels {
    columns: usize,
    chunks: usize,
    /// One a row: rows of q, k and v, or of gate and up, lie in one matrix.
    scales: Vec<f32>,
    /// `[pairs, chunks]`
    data: PageBuffer<PairChunk>,
}

impl TernaryPanels {
    /// Stacks matrices with the same number of columns, in the order given.
    pub fn stack(matrices: &[(PackedTernary, WeightScale)]) -> Self {
        let columns = matrices.first().map_or(0, |(matrix, _)| matrix.columns());
        let same = |matrix: &PackedTernary| matrix.columns() == columns;
        assert!(matrices.iter().all(|(matrix, _)| same(matrix)), "matrices of the same width");
        let scale_of = |(matrix, scale): &(PackedTernary, _)| vec![*scale; matrix.rows()];
        let mut panels =
            Self::zeros(Pages::Huge, columns, matrices.iter().flat_map(scale_of).collect());
        let mut codes = vec![0; columns];
        let rows =
            matrices.iter().flat_map(|(matrix, _)| (0..matrix.rows()).map(move |r| (matrix, r)));
        for (row, (matrix, source)) in rows.enumerate() {
            matrix.row_codes(source, &mut codes);
            panels.write_row(row, &codes);
        }
        panels
    }

    /// One matrix from codes `[N, K]`, each in {-1, 0, +1}; any number of rows.
    pub fn from_codes(columns: usize, codes: &[i8], scale: WeightScale) -> Self {
        assert!(columns > 0 && codes.len().is_multiple_of(columns), "whole rows of codes");
        assert!(codes.iter().all(|code| (-1..=1).contains(code)), "ternary codes");
        let mut panels = Self::zeros(Pages::Huge, columns, vec![scale; codes.len() / columns]);
        for (row, codes) in codes.chunks_exact(columns).enumerate() {
            panels.write_row(row, codes);
        }
        panels
    }

    /// Quantises latents `[N, K]` each with a scale of its own, one below the other, for a step of
    /// training; their codes `[N, K]` come with them.
    pub fn of_latents(kernel: Kernel, matrices: &[&[f32]], columns: usize) -> (Self, Vec<i8>) {
        assert!(columns > 0 && matrices.iter().all(|matrix| matrix.len().is_multiple_of(columns)));
        let scales: Vec<WeightScale> =
            matrices.iter().map(|matrix| WeightScale::of_latents(matrix)).collect();
        let of_rows = matrices.iter().zip(&scales);
        let of_rows = of_rows.flat_map(|(matrix, scale)| vec![*scale; matrix.len() / columns]);
        let mut panels = Self::zeros(Pages::Any, columns, of_rows.collect());
        let mut codes = vec![0; panels.rows() * columns];
        let (mut first, mut rest) = (0, &mut codes[..]);
        for (latents, scale) in matrices.iter().zip(scales) {
            let (codes, after) = rest.split_at_mut(latents.len());
            let panels = &mut panels;
            kernel.dispatch(Quantise { panels, first, latents, inverse: scale.inverse(), codes });
            (first, rest) = (first + latents.len() / columns, after);
        }
        (panels, codes)
    }

    fn zeros(pages: Pages, columns: usize, scales: Vec<WeightScale>) -> Self {
        assert!(columns <= LARGEST_COLUMNS, "at most {LARGEST_COLUMNS} columns, got {columns}");
        let chunks = columns.div_ceil(CHUNK);
        let data =
            PageBuffer::on_pages(pages, ZEROS, scales.len().div_ceil(ROWS_PER_PAIR) * chunks);
        let scales = scales.into_iter().map(WeightScale::multiplier).collect();
        Self { columns, chunks, scales, data }
    }

    fn write_row(&mut self, row: usize, codes: &[i8]) {
        let (pair, at) = (row / ROWS_PER_PAIR, 4 * (row % ROWS_PER_PAIR));
        let line = &mut self.data[pair * self.chunks..][..self.chunks];
        for (chunk, codes) in line.iter_mut().zip(codes.chunks(CHUNK)) {
            chunk.0[at..at + 4].copy_from_slice(&row_bytes(codes));
        }
    }

    /// Number of rows of all matrices, `N`.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The scale of each row `[N]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The chunks of rows `32 · pair ..`.
    pub(crate) fn pair(&self, pair: usize) -> &[PairChunk] {
        &self.data[pair * self.chunks..][..self.chunks]
    }
}

/// Latents on their way into rows `first ..` of the panels.
struct Quantise<'a> {
    panels: &'a mut TernaryPanels,
    first: usize,
    latents: &'a [f32],
    inverse: f32,
    codes: &'a mut [i8],
}

impl SimdWork for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { panels, first, latents, inverse, codes } = self;
        let columns = panels.columns;
        let rows = latents.chunks_exact(columns).zip(codes.chunks_exact_mut(columns));
        for (row, (latents, codes)) in (first..).zip(rows) {
            for (code, latent) in codes.iter_mut().zip(latents) {
                // Half to even: a half becomes 0, and so does NaN.
                let level = latent * inverse;
                *code = i8::from(level > 0.5) - i8::from(level < -0.5);
            }
            let (pair, at) = (row / ROWS_PER_PAIR, 4 * (row % ROWS_PER_PAIR));
            let chunks = &mut panels.data[pair * panels.chunks..][..panels.chunks];
            let (whole, rest) = codes.as_chunks::<CHUNK>();
            for (chunk, codes) in chunks.iter_mut().zip(whole) {
                let mut bytes = [0; 4];
                for (field, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    for (byte, code) in bytes.iter_mut().zip(codes) {
                        *byte |= (code + 1).cast_unsigned() << (2 * field);
                    }
                }
                chunk.0[at..at + 4].copy_from_slice(&bytes);
            }
            if !rest.is_empty() {
                chunks[whole.len()].0[at..at + 4].copy_from_slice(&row_bytes(rest));
            }
        }
    }
}

/// The four bytes of one row in one chunk; missing codes count as 0.
fn row_bytes(codes: &[i8]) -> [u8; 4] {
    let mut bytes = [0x55; 4];
    for (column, &code) in codes.iter().enumerate() {
        let shift = 2 * (column / 4);
        bytes[column % 4] ^= (0b01 ^ (code + 1) as u8) << shift;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(value: f32) -> WeightScale {
        WeightScale::from_stored(value).unwrap()
    }

    #[test]
    fn layout_is_frozen() {
        // Row 0 is all +1 (field 2), row 17 all -1 (field 0), column 5 of row 1 is +1.
        let mut codes = vec![0; 18 * 16];
        codes[..16].fill(1);
        codes[16 + 5] = 1;
        codes[17 * 16..].fill(-1);
        let panels = TernaryPanels::from_codes(16, &codes, scale(1.0));
        let bytes = panels.pair(0)[0].0;
        assert_eq!(bytes[..4], [0b1010_1010; 4]);
        assert_eq!(bytes[4..8], [0x55, 0b0101_1001, 0x55, 0x55]);
        assert_eq!(bytes[64 + 4..][..4], [0; 4], "row 17 is row 1 of the second panel");
        assert_eq!(bytes[72..], [0x55; 56], "rows that are not there hold the code 0");
    }

    #[test]
    fn missing_columns_hold_the_code_zero() {
        let panels = TernaryPanels::from_codes(17, &[-1; 17], scale(1.0));
        assert_eq!(panels.pair(0).len(), 2);
        assert_eq!(panels.pair(0)[1].0[..4], [0x54, 0x55, 0x55, 0x55]);
    }

    #[test]
    fn stacked_matrices_keep_their_order_and_scales() {
        let one = PackedTernary::from_codes(4, 2, &[1; 8]).unwrap();
        let two = PackedTernary::from_codes(8, 2, &[-1; 16]).unwrap();
        let panels = TernaryPanels::stack(&[(one, scale(0.5)), (two, scale(2.0))]);
        assert_eq!((panels.rows(), panels.columns()), (12, 2));
        assert_eq!(panels.scales()[3..5], [0.5, 2.0]);
        let bytes = panels.pair(0)[0].0;
        assert_eq!(bytes[12..20], [0x56, 0x56, 0x55, 0x55, 0x54, 0x54, 0x55, 0x55]);
    }
}
