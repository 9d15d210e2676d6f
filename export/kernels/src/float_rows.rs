//! Ternary matrices with a scale for each row: from float scales, and a row back as floats.

use bitnet_format::grouped::GroupedTernary;
use bitnet_format::quant::WeightScale;

use crate::layout::{CHUNK, ROWS_PER_PAIR};
use crate::{Pages, TernaryPanels};

impl TernaryPanels {
    /// A matrix with a scale for each row, from some of its rows after the other.
    ///
    /// # Panics
    /// If a scale is not positive, or a code is not in {-1, 0, +1}.
    pub fn of_rows(parts: &[GroupedTernary]) -> Self {
        let columns = parts.first().map_or(0, GroupedTernary::columns);
        let scales = parts.iter().flat_map(GroupedTernary::scales);
        let scale = |&scale: &f32| WeightScale::from_stored(scale).expect("a scale above 0");
        let mut panels = Self::zeros(Pages::Huge, columns, scales.map(scale).collect());
        let rows = parts.iter().flat_map(|part| part.codes().chunks_exact(columns));
        for (row, codes) in rows.enumerate() {
            assert!(codes.iter().all(|code| (-1..=1).contains(code)), "ternary codes");
            panels.write_row(row, codes);
        }
        panels
    }

    /// Writes the weights of one row `[K]`, codes times scale.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns(), "a place for each column");
        let (place, scale) = (4 * (row % ROWS_PER_PAIR), self.scales()[row]);
        for (chunk, out) in self.pair(row / ROWS_PER_PAIR).iter().zip(out.chunks_mut(CHUNK)) {
            let bytes = &chunk.0[place..place + 4];
            for (column, out) in out.iter_mut().enumerate() {
                let code = (bytes[column % 4] >> (2 * (column / 4))) & 3;
                *out = (f32::from(code) - 1.0) * scale;
            }
        }
    }
}
