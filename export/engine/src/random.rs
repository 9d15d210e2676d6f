//! A model of any shape with random weights, for measuring: speed depends on the shape alone.

use std::ops::Range;

use bitnet_format::grouped::GroupedTernary;
use bitnet_format::quant::WeightScale;
use bitnet_format::{
    DType, FormatError, ModelSpec, TensorEntry, TensorRole, TensorSource, TensorView,
};
use half::bf16;

use crate::{HeadPrecision, Model};

impl Model {
    /// A model whose ternary values are drawn evenly and whose embedding is small noise, in BF16
    /// where `precision` is that of a file.
    ///
    /// # Panics
    /// If a matrix of this shape has rows that cannot be packed.
    pub fn random(spec: &ModelSpec, precision: HeadPrecision) -> Self {
        let model = Self::assemble(&Drawn(spec), precision);
        model.expect("drawing reads nothing that could be broken")
    }
}

struct Drawn<'a>(&'a ModelSpec);

fn draws(seed: &str, first: usize) -> impl Iterator<Item = u64> {
    let start = seed.bytes().fold(first as u64, |x, byte| x.wrapping_mul(31) + u64::from(byte));
    std::iter::successors(Some(start | 1), |x| {
        Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    })
}

impl TensorSource for Drawn<'_> {
    fn spec(&self) -> &ModelSpec {
        self.0
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        if entry.is_ternary(self.0) && !matches!(entry.role, TensorRole::Linear(_)) {
            let codes = drawn_codes(entry, 0, entry.elements()).collect();
            return Ok(TensorView::codes(codes, scale()));
        }
        Ok(match entry.role {
            TensorRole::Norm => TensorView::floats(vec![1.0; rows.len()]),
            TensorRole::Bias => TensorView::floats(vec![0.0; rows.len()]),
            TensorRole::Linear(_) if self.0.quantise => TensorView::packed(codes(entry), scale()),
            TensorRole::Linear(_) | TensorRole::Embedding | TensorRole::Head => noise(entry, rows),
        })
    }

    fn grouped(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<GroupedTernary, FormatError> {
        let columns = entry.shape[1];
        let width = entry.group_width(self.0).expect("a model with a scale a group");
        let codes = rows.clone().flat_map(|row| drawn_codes(entry, row, columns)).collect();
        // Exact in f16, and not all the same.
        let scale = |group: usize| (16 + group % 5) as f32 / 1024.0;
        let scales = (0..rows.len() * columns / width).map(scale).collect();
        Ok(GroupedTernary::new(columns, width, codes, scales))
    }
}

/// Evenly drawn ternary codes of a row, one in a byte.
fn drawn_codes(entry: &TensorEntry, row: usize, count: usize) -> impl Iterator<Item = i8> {
    draws(&entry.name, row).skip(1).take(count).map(|x| ((x >> 40) % 3) as i8 - 1)
}

fn scale() -> WeightScale {
    WeightScale::from_stored(0.02).expect("a positive number")
}

/// Evenly drawn ternary codes, four in a byte.
fn codes(entry: &TensorEntry) -> Vec<u8> {
    let bytes = draws(&entry.name, 0).skip(1).take(entry.elements() / 4).map(|x| {
        let byte = (x >> 56) as u8;
        byte & !((byte >> 1) & 0x55) // no field holds 3
    });
    bytes.collect()
}

/// Small BF16 values, each row a stream of its own.
fn noise(entry: &TensorEntry, rows: Range<usize>) -> TensorView {
    let value = |x: u64| bf16::from_f32((x >> 40) as f32 / (1u64 << 24) as f32 - 0.5);
    let row = |row| draws(&entry.name, row).skip(1).take(entry.row_length()).map(value);
    TensorView::stored(DType::Bf16, rows.flat_map(row).flat_map(bf16::to_le_bytes).collect())
}
