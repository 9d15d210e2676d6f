//! A dense matrix in 8 bits with a scale a row: the head, and the embedding when it is tied.
//!
//! At two billion parameters and 128k tokens a 16-bit head costs more time a token than all
//! ternary layers together. Rows are quantised symmetrically, `w ≈ code · scale`, `scale = max
//! |w| / 127`; activations as everywhere, a scale a token. The products are exact integers, so
//! every kernel gives the same bits.
//!
//! Panels of 16 rows: a line holds four columns of each, `u = code + 128`, so that a row is a
//! 32-bit lane and a panel one linear stream. The offset is subtracted with the tokens' sums:
//!
//! ```text
//! line of columns 4c … 4c+3    [ row 0: u u u u | row 1: u u u u | … | row 15: u u u u ]   64 bytes
//! Σ code·q = Σ u·q - 128 · Σ q
//! ```

#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use crate::kernel::HeldTiles;
use crate::layout::{INT8_ROWS, Line, OnLines, RescaleTerms, SimdWork};
use crate::memory::PageBuffer;
use crate::{Activations, Kernel, Pages};

const ROWS: usize = INT8_ROWS;

/// Tokens that meet two panels before the next ones come.
const TOKENS_PER_PASS: usize = 32;

/// A row wider than this could overflow an i32: `255 · 128 · K < 2³¹`.
const LARGEST_COLUMNS: usize = 1 << 16;

/// A dense matrix `[N, K]` in 8 bits.
#[derive(Debug)]
pub struct Int8Matrix {
    columns: usize,
    rows: usize,
    /// Rows that have been pushed.
    filled: usize,
    /// One a row.
    scales: Vec<f32>,
    /// `[panels, K/4]`
    lines: PageBuffer<Line>,
}

impl Int8Matrix {
    /// A matrix whose rows will be pushed.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self::zeros(Pages::Huge, rows, columns)
    }

    fn zeros(pages: Pages, rows: usize, columns: usize) -> Self {
        assert!(columns > 0 && columns <= LARGEST_COLUMNS, "1 to {LARGEST_COLUMNS} columns");
        // 128 is the code 0.
        let count = rows.div_ceil(ROWS) * columns.div_ceil(4);
        let lines = PageBuffer::on_pages(pages, Line([128; 64]), count);
        Self { columns, rows, filled: 0, scales: vec![0.0; rows.next_multiple_of(ROWS)], lines }
    }

    /// The transpose `[N, K]` of codes `[K, N]` at scale one, for a step of training; its panels may be
    /// filled by different threads ([`Int8Matrix::panel_groups`]).
    pub fn for_transpose(rows: usize, columns: usize) -> Self {
        let mut matrix = Self::zeros(Pages::Any, rows, columns);
        matrix.scales.fill(1.0);
        matrix.filled = rows;
        matrix
    }

    /// The rows in groups of `panels` panels.
    pub fn panel_groups(&mut self, panels: usize) -> impl Iterator<Item = PanelGroup<'_>> {
        let (rows, quads) = (self.rows, self.columns.div_ceil(4));
        let groups = self.lines.chunks_mut(panels * quads).enumerate();
        groups.map(move |(group, lines)| PanelGroup {
            first: group * panels * ROWS,
            rows,
            quads,
            lines,
        })
    }

    /// Quantises the next rows `[n, K]`.
    pub fn push_rows(&mut self, values: &[f32]) {
        assert!(values.len().is_multiple_of(self.columns), "whole rows of {}", self.columns);
        for row in values.chunks_exact(self.columns) {
            assert!(self.filled < self.rows, "no more rows than planned");
            self.write_row(self.filled, row);
            self.filled += 1;
        }
    }

    fn write_row(&mut self, row: usize, values: &[f32]) {
        let largest = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let scale = largest / 127.0;
        self.scales[row] = scale;
        if scale == 0.0 {
            return; // zeros, or so small that no 8-bit step is a number
        }
        let at = 4 * (row % ROWS);
        let quads = self.columns.div_ceil(4);
        let lines = &mut self.lines[row / ROWS * quads..][..quads];
        for (line, values) in lines.iter_mut().zip(values.chunks(4)) {
            for (place, value) in line.0[at..at + 4].iter_mut().zip(values) {
                // XOR of the sign bit is `code + 128` in two's complement.
                *place = (round(value / scale).clamp(-127.0, 127.0) as i8 as u8) ^ 0x80;
            }
        }
    }

    /// Number of rows, `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Writes one row `[K]` as f32, for an embedding lookup.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "a row of this matrix");
        let at = 4 * (row % ROWS);
        for (out, line) in out.chunks_mut(4).zip(self.panel(row / ROWS)) {
            for (out, byte) in out.iter_mut().zip(&line.0[at..at + 4]) {
                *out = f32::from((byte ^ 0x80) as i8) * self.scales[row];
            }
        }
    }

    /// `out [T, rows]` = `(Σ code·q) · scale / a`, in this order; the same bits in every kernel.
    ///
    /// `rows` starts at a multiple of 16 and ends at one or at the last row.
    pub fn matmul(&self, kernel: Kernel, x: &Activations, rows: Range<usize>, out: &mut [f32]) {
        self.matmul_tokens(kernel, x, 0..x.tokens(), rows, out);
    }

    /// [`Int8Matrix::matmul`] with some of the tokens.
    pub(crate) fn matmul_tokens(
        &self,
        kernel: Kernel,
        x: &Activations,
        all: Range<usize>,
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        assert_eq!(self.columns, x.columns(), "as many activations as columns");
        assert!(rows.start.is_multiple_of(ROWS) && rows.end <= self.rows, "rows of this matrix");
        assert_eq!(out.len(), all.len() * rows.len(), "one place for each token and row");
        let (stride, quads) = (rows.len(), self.columns.div_ceil(4));
        let (mut held, mut sums) =
            (HeldTiles::default(), OnLines([[0; ROWS]; 2 * TOKENS_PER_PASS]));
        for token in all.clone().step_by(TOKENS_PER_PASS) {
            let tokens = token..all.end.min(token + TOKENS_PER_PASS);
            let codes = x.chunks_of(tokens.clone());
            // Two panels at a time, which kernels with tiles want.
            for first in rows.clone().step_by(2 * ROWS) {
                let here = first..rows.end.min(first + 2 * ROWS);
                let panels = first / ROWS..here.end.div_ceil(ROWS);
                let sums = &mut sums.0[..tokens.len() * panels.len()];
                let lines = &self.lines[panels.start * quads..panels.end * quads];
                kernel.int8_tiles(&mut held, lines, quads, codes, sums);
                for (sums, first) in sums.chunks(tokens.len()).zip(here.clone().step_by(ROWS)) {
                    // `Σ code·q = Σ u·q - 128 · Σ q`: 128 is the offset of `u`.
                    let terms = RescaleTerms {
                        offsets: &x.sums()[tokens.clone()],
                        factor: 128,
                        weights: &self.scales[first..here.end.min(first + ROWS)],
                        scales: &x.scales()[tokens.clone()],
                        stride,
                    };
                    let place = (token - all.start) * stride + first - rows.start;
                    kernel.rescale(sums, terms, &mut out[place..]);
                }
            }
        }
    }

    fn panel(&self, panel: usize) -> &[Line] {
        let quads = self.columns.div_ceil(4);
        &self.lines[panel * quads..][..quads]
    }
}

/// Panels of a matrix that one thread fills.
#[derive(Debug)]
pub struct PanelGroup<'a> {
    /// The first row.
    first: usize,
    /// Rows of the whole matrix.
    rows: usize,
    quads: usize,
    lines: &'a mut [Line],
}

impl PanelGroup<'_> {
    /// Fills these rows from the columns of `codes [K, N]`.
    pub fn transpose(self, kernel: Kernel, codes: &[i8]) {
        assert_eq!(codes.len().div_ceil(self.rows).div_ceil(4), self.quads, "codes of this matrix");
        kernel.dispatch(Transpose { group: self, codes });
    }
}

/// Codes on their way into panels.
struct Transpose<'a> {
    group: PanelGroup<'a>,
    codes: &'a [i8],
}

impl SimdWork for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let PanelGroup { first, rows, quads, lines } = self.group;
        for (quad, codes) in self.codes.chunks(4 * rows).enumerate() {
            for (panel, lines) in lines.chunks_exact_mut(quads).enumerate() {
                let first = first + panel * ROWS;
                let columns = first..rows.min(first + ROWS);
                // Padding is u = 128, the code 0; XOR with a code turns it into that code + 128.
                let mut words = [0x8080_8080u32; ROWS];
                for (at, codes) in codes.chunks_exact(rows).enumerate() {
                    for (word, code) in words.iter_mut().zip(&codes[columns.clone()]) {
                        *word ^= u32::from(code.cast_unsigned()) << (8 * at);
                    }
                }
                for (bytes, word) in lines[quad].0.as_chunks_mut().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
            }
        }
    }
}

/// To the nearest integer, half to even, for magnitudes far below 2²²; without an instruction or a
/// separate call: the sum has no room for fractions.
fn round(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0; // 1.5 · 2²³
    x + NO_FRACTIONS - NO_FRACTIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_within_half_a_step() {
        let values: Vec<f32> = (0..3 * 7).map(|i| ((i * 37 % 19) as f32 - 9.0) / 7.0).collect();
        let mut matrix = Int8Matrix::new(3, 7);
        matrix.push_rows(&values[..7]);
        matrix.push_rows(&values[7..]);
        for (row, values) in values.chunks(7).enumerate() {
            let mut out = [0.0; 7];
            matrix.copy_row(row, &mut out);
            let step = values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
            for (a, b) in values.iter().zip(out) {
                assert!((a - b).abs() <= step * 0.5001, "{a} became {b}");
            }
        }
    }

    #[test]
    fn halves_are_rounded_to_even() {
        for i in -1000..1000 {
            let x = i as f32 / 8.0;
            assert_eq!(round(x), x.round_ties_even(), "{x}");
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let mut matrix = Int8Matrix::new(1, 5);
        matrix.push_rows(&[0.0; 5]);
        let mut out = [1.0; 5];
        matrix.copy_row(0, &mut out);
        assert_eq!(out, [0.0; 5]);
    }
}
