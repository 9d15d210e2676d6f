//! Ternary matrices with groups as the kernels read them: repacked at load, never written to a file.
//!
//! 32 rows lie together, one group after the other, so that a decoder reads one linear stream:
//!
//! ```text
//! group of 128 columns, 1088 bytes:   | 32 f16 scales, 64 bytes | 8 chunks of 128 bytes |
//! ```
//!
//! A chunk is that of [`crate::layout`]: 16 columns of 32 rows, codes `u = T + 1` of two bits, here
//! up to 3. So a weight takes 2.25, 2.125 or 2.0625 bits in groups of 64, 128 or 256.

use std::ops::Range;

use bitnet_format::grouped::GroupedTernary;

use crate::Pages;
use crate::groups::{GroupedPair, widen};
use crate::layout::{CHUNK, Line, ROWS_PER_PAIR};
use crate::memory::PageBuffer;

/// Every field `u = 1`, which is the code 0.
const ZEROS: Line = Line([0x55; 64]);

/// Rows whose codes and scales share a line.
const LINE_ROWS: usize = 16;

/// A ternary matrix `[N, K]` with an f16 scale for each group of 64, 128 or 256 columns of a row.
///
/// Invariant: rows beyond `N` hold the code 0 and the scale 0.
#[derive(Debug)]
pub struct GroupPanels {
    rows: usize,
    columns: usize,
    width: usize,
    /// `[pairs, groups, lines of a group]`
    data: PageBuffer<Line>,
}

impl GroupPanels {
    /// A matrix of zeros, to be filled by [`GroupPanels::write`].
    ///
    /// # Panics
    /// If groups are not a whole number of blocks of 64 columns, or do not fill a row.
    pub fn zeros(rows: usize, columns: usize, width: usize) -> Self {
        assert!([64, 128, 256].contains(&width), "groups of 64, 128 or 256 columns");
        assert!(columns.is_multiple_of(width), "a row is made of whole groups");
        let groups = rows.div_ceil(ROWS_PER_PAIR) * (columns / width);
        let lines = GroupedPair::lines_of(width / CHUNK);
        let mut data = PageBuffer::on_pages(Pages::Huge, ZEROS, groups * lines);
        for group in data.chunks_exact_mut(lines) {
            // The fill value is right for codes only: a line of scales begins as zeros.
            group[0] = Line([0; 64]);
        }
        Self { rows, columns, width, data }
    }

    /// Fills rows from `first` on.
    ///
    /// # Panics
    /// If the shapes do not fit, or a scale is not an f16.
    pub fn write(&mut self, first: usize, matrix: &GroupedTernary) {
        assert_eq!(
            (matrix.columns(), matrix.width()),
            (self.columns, self.width),
            "the same groups"
        );
        assert!(first + matrix.rows() <= self.rows, "rows of this matrix");
        let scales = matrix.half_scales().expect("scales of groups are f16");
        let per_row = self.columns / self.width;
        for row in 0..matrix.rows() {
            let codes = &matrix.codes()[row * self.columns..][..self.columns];
            let scales = &scales[row * per_row..][..per_row];
            let place = (first + row) % ROWS_PER_PAIR;
            let groups = self.groups_of((first + row) / ROWS_PER_PAIR);
            let lines = self.lines_of_group();
            let groups = self.data[groups].chunks_exact_mut(lines);
            for ((group, codes), scale) in groups.zip(codes.chunks_exact(self.width)).zip(scales) {
                group[0].0[2 * place..][..2].copy_from_slice(&scale.to_le_bytes());
                for (chunk, codes) in group[1..].chunks_exact_mut(2).zip(codes.as_chunks().0) {
                    // A chunk of 32 rows is two lines: rows 0 to 15 in the first, 16 to 31 in the
                    // second.
                    let bytes = &mut chunk[place / LINE_ROWS].0[4 * (place % LINE_ROWS)..][..4];
                    bytes.copy_from_slice(&chunk_bytes(codes));
                }
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

    /// Columns that share a scale.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes the weights of one row `[K]`, codes times scales.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "a row of this matrix");
        let place = row % ROWS_PER_PAIR;
        let groups =
            self.data[self.groups_of(row / ROWS_PER_PAIR)].chunks_exact(self.lines_of_group());
        for (group, out) in groups.zip(out.chunks_exact_mut(self.width)) {
            let half = &group[0].0[2 * place..][..2];
            let scale = widen(u16::from_le_bytes([half[0], half[1]]));
            for (chunk, out) in group[1..].chunks_exact(2).zip(out.chunks_exact_mut(CHUNK)) {
                let bytes = &chunk[place / LINE_ROWS].0[4 * (place % LINE_ROWS)..][..4];
                for (column, out) in out.iter_mut().enumerate() {
                    let code = (bytes[column % 4] >> (2 * (column / 4))) & 3;
                    *out = (f32::from(code) - 1.0) * scale;
                }
            }
        }
    }

    /// The groups of rows `32 · pair ..`.
    pub(crate) fn pair(&self, pair: usize) -> GroupedPair<'_> {
        GroupedPair { lines: &self.data[self.groups_of(pair)], chunks: self.width / CHUNK }
    }

    pub(crate) fn check(&self, columns: usize, tokens: usize, rows: &Range<usize>, places: usize) {
        assert_eq!(self.columns, columns, "as many activations as columns");
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows of this matrix");
        let whole = |row: usize| row.is_multiple_of(ROWS_PER_PAIR);
        assert!(whole(rows.start), "a row range starts at a multiple of {ROWS_PER_PAIR}");
        assert!(whole(rows.end) || rows.end == self.rows, "a row range ends with a pair of panels");
        assert_eq!(places, tokens * rows.len(), "one place for each token and row");
    }

    fn lines_of_group(&self) -> usize {
        GroupedPair::lines_of(self.width / CHUNK)
    }

    fn groups_of(&self, pair: usize) -> Range<usize> {
        let lines = self.columns / self.width * self.lines_of_group();
        pair * lines..(pair + 1) * lines
    }
}

/// The four bytes of one row in one chunk.
fn chunk_bytes(codes: &[i8; CHUNK]) -> [u8; 4] {
    let mut bytes = [0; 4];
    for (column, code) in codes.iter().enumerate() {
        bytes[column % 4] |= (code + 1).cast_unsigned() << (2 * (column / 4));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_frozen() {
        // Row 17 has the code +2 in column 5 and the scale 1 in its second group.
        let mut codes = vec![0; 18 * 128];
        codes[17 * 128 + 5] = 2;
        let mut scales = vec![0.0; 36];
        (scales[34], scales[35]) = (0.5, 1.0);
        let mut panels = GroupPanels::zeros(18, 128, 64);
        panels.write(0, &GroupedTernary::new(128, 64, codes, scales));
        let pair = panels.pair(0);
        assert_eq!((pair.lines.len(), pair.chunks), (18, 4));
        assert_eq!(pair.lines[0].0[34..36], [0x00, 0x38], "0.5");
        assert_eq!(pair.lines[9].0[34..36], [0x00, 0x3c], "1");
        assert_eq!(pair.lines[2].0[4..8], [0x55, 0b01_01_11_01, 0x55, 0x55]);
        assert_eq!(pair.lines[1].0, [0x55; 64], "the first sixteen rows");
        let mut row = vec![9.0; 128];
        panels.copy_row(17, &mut row);
        assert_eq!((row[5], row.iter().sum::<f32>()), (1.0, 1.0));
    }
}
