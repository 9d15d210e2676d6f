//! Ternary matrices as the kernels read them: repacked at load, never written to a file.
//!
//! Two panels of 16 rows lie side by side. A chunk covers 16 columns: its byte (row `r`, `j`)
//! holds the codes `u = T + 1` of columns `4f + j` in bits `2f`, `f = 0..3`. So one 64-byte line is
//! 16 rows × 16 columns and every 32-bit lane belongs to one row.
#![expect(clippy::inline_always, reason = "quantising is compiled for each instruction set")]

use std::ops::Range;

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
        let mut panels = Self::for_rows(columns, of_rows.collect());
        let mut codes = vec![0; panels.rows() * columns];
        let (mut rest, mut matrices) = (&mut codes[..], matrices.iter().copied());
        // A pair of panels may begin in one matrix and end in the next: each loop fills what both
        // have left.
        let mut matrix: &[f32] = &[];
        for mut group in panels.groups() {
            let Range { mut start, end } = group.rows();
            while start < end {
                if matrix.is_empty() {
                    matrix = matrices.next().expect("a matrix for each scale");
                }
                let rows = (end - start).min(matrix.len() / columns);
                let (latents, below) = matrix.split_at(rows * columns);
                let (codes, after) = rest.split_at_mut(rows * columns);
                group.quantise(kernel, start, latents, codes);
                (start, matrix, rest) = (start + rows, below, after);
            }
        }
        (panels, codes)
    }

    /// Room for latents that are quantised group by group ([`TernaryPanels::groups`]); `scales` has
    /// that of each row's matrix.
    pub fn for_rows(columns: usize, scales: Vec<WeightScale>) -> Self {
        Self::zeros(Pages::Any, columns, scales)
    }

    /// The rows in groups that different threads may fill.
    pub fn groups(&mut self) -> impl Iterator<Item = RowGroup<'_>> {
        let (columns, chunks) = (self.columns, self.chunks);
        let groups = self.data.chunks_exact_mut(chunks).zip(self.scales.chunks(ROWS_PER_PAIR));
        groups.enumerate().map(move |(index, (data, scales))| RowGroup {
            first: index * ROWS_PER_PAIR,
            columns,
            scales,
            data,
        })
    }

    pub(crate) fn zeros(pages: Pages, columns: usize, scales: Vec<WeightScale>) -> Self {
        assert!(columns <= LARGEST_COLUMNS, "at most {LARGEST_COLUMNS} columns, got {columns}");
        let chunks = columns.div_ceil(CHUNK);
        let data =
            PageBuffer::on_pages(pages, ZEROS, scales.len().div_ceil(ROWS_PER_PAIR) * chunks);
        let scales = scales.into_iter().map(WeightScale::multiplier).collect();
        Self { columns, chunks, scales, data }
    }

    pub(crate) fn write_row(&mut self, row: usize, codes: &[i8]) {
        let pair = row / ROWS_PER_PAIR;
        write_codes(
            &mut self.data[pair * self.chunks..][..self.chunks],
            row % ROWS_PER_PAIR,
            codes,
        );
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

/// Rows that lie in the same pair of panels.
#[derive(Debug)]
pub struct RowGroup<'a> {
    first: usize,
    columns: usize,
    scales: &'a [f32],
    data: &'a mut [PairChunk],
}

impl RowGroup<'_> {
    /// Which rows of the stacked matrices they are.
    pub fn rows(&self) -> Range<usize> {
        self.first..self.first + self.scales.len()
    }

    /// Fills rows `first ..` of the stacked matrices, which are of this group, from their latents
    /// `[n, K]`; writes their codes `[n, K]` too.
    pub fn quantise(&mut self, kernel: Kernel, first: usize, latents: &[f32], codes: &mut [i8]) {
        let first = first - self.first;
        let scales = &self.scales[first..first + latents.len() / self.columns];
        let (columns, data) = (self.columns, &mut *self.data);
        kernel.dispatch(Quantise { data, first, columns, latents, scales, codes });
    }

    /// Fills a row of the stacked matrices, which is of this group, with codes `[K]` that exist, each in
    /// {-1, 0, +1}.
    pub fn write(&mut self, row: usize, codes: &[i8]) {
        debug_assert!(codes.iter().all(|code| (-1..=1).contains(code)), "ternary codes");
        assert_eq!(codes.len(), self.columns, "a whole row");
        write_codes(self.data, row - self.first, codes);
    }
}

/// Puts the codes `[K]` of row `at` of a pair of panels into its chunks.
fn write_codes(chunks: &mut [PairChunk], at: usize, codes: &[i8]) {
    let at = 4 * at;
    for (chunk, codes) in chunks.iter_mut().zip(codes.chunks(CHUNK)) {
        chunk.0[at..at + 4].copy_from_slice(&row_bytes(codes));
    }
}

impl RowGroup<'_> {
    /// Fills these rows of a matrix `[N, K]` from the columns of codes `[K, N]`, each in {-1, 0, +1}.
    pub fn transpose(&mut self, kernel: Kernel, codes: &[i8]) {
        assert!(codes.len().is_multiple_of(self.columns), "codes of this matrix");
        let (rows, columns, data) = (self.rows(), self.columns, &mut *self.data);
        kernel.dispatch(Transpose { data, rows, stride: codes.len() / columns, codes });
    }
}

/// The columns `rows` of codes `[K, stride]` on their way into a pair of panels.
struct Transpose<'a> {
    data: &'a mut [PairChunk],
    rows: Range<usize>,
    stride: usize,
    codes: &'a [i8],
}

impl SimdWork for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (chunk, codes) in self.data.iter_mut().zip(self.codes.chunks(CHUNK * self.stride)) {
            let mut words = [0x5555_5555u32; ROWS_PER_PAIR];
            for (column, codes) in codes.chunks_exact(self.stride).enumerate() {
                // A row's four bytes as one word: column c is field c / 4 of byte c % 4.
                let shift = 8 * (column % 4) + 2 * (column / 4);
                for (word, code) in words.iter_mut().zip(&codes[self.rows.clone()]) {
                    // All fields begin as 1 (the code 0); XOR with `u ^ 1` turns a 1 into `u`
                    // without clearing it.
                    *word ^= u32::from((code + 1).cast_unsigned() ^ 1) << shift;
                }
            }
            for (bytes, word) in chunk.0.as_chunks_mut().0.iter_mut().zip(words) {
                *bytes = word.to_le_bytes();
            }
        }
    }
}

/// Latents on their way into rows `first ..` of a pair of panels.
struct Quantise<'a> {
    data: &'a mut [PairChunk],
    first: usize,
    columns: usize,
    latents: &'a [f32],
    scales: &'a [f32],
    codes: &'a mut [i8],
}

impl SimdWork for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { data, first, columns, latents, scales, codes } = self;
        let rows = latents.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)).zip(scales);
        for (row, ((latents, codes), scale)) in (first..).zip(rows) {
            // The definition (`quant`) divides by m through its inverse; a true division rounds
            // otherwise.
            let inverse = 1.0 / scale;
            for (code, latent) in codes.iter_mut().zip(latents) {
                // Half to even: a half becomes 0, and so does NaN.
                let level = latent * inverse;
                *code = i8::from(level > 0.5) - i8::from(level < -0.5);
            }
            let at = 4 * row;
            let (whole, rest) = codes.as_chunks::<CHUNK>();
            for (chunk, codes) in data.iter_mut().zip(whole) {
                let mut bytes = [0; 4];
                for (field, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    for (byte, code) in bytes.iter_mut().zip(codes) {
                        *byte |= (code + 1).cast_unsigned() << (2 * field);
                    }
                }
                chunk.0[at..at + 4].copy_from_slice(&bytes);
            }
            if !rest.is_empty() {
                data[whole.len()].0[at..at + 4].copy_from_slice(&row_bytes(rest));
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
