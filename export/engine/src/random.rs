//! A model of any shape with random weights, for measuring: speed depends on the shape alone.

use std::ops::Range;

use bitnet_format::packed::PackedTernary;
use bitnet_format::quant::WeightScale;
use bitnet_format::{FormatError, ModelSpec, Role, TensorEntry};
use bitnet_kernels::{DenseMatrix, Precision};

use crate::load::Weights;
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

impl Weights for Drawn<'_> {
    fn spec(&self) -> &ModelSpec {
        self.0
    }

    fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        let count = rows.len() * entry.elements() / entry.shape[0];
        if entry.role == Role::Norm {
            return Ok(vec![1.0; count]);
        }
        let value = |x: u64| (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        Ok(draws(&entry.name, rows.start).skip(1).take(count).map(value).collect())
    }

    fn ternary(&self, entry: &TensorEntry) -> Result<(PackedTernary, WeightScale), FormatError> {
        let scale = WeightScale::from_stored(0.02).expect("a positive number");
        let bytes = draws(&entry.name, 0).skip(1).take(entry.elements() / 4).map(|x| {
            let byte = (x >> 56) as u8;
            byte & !((byte >> 1) & 0x55) // no field holds 3
        });
        let packed = PackedTernary::from_bytes(entry.shape[0], entry.shape[1], bytes.collect());
        Ok((packed.expect("rows that can be packed"), scale))
    }

    fn dense(&self, entry: &TensorEntry) -> Result<DenseMatrix, FormatError> {
        let mut matrix = DenseMatrix::empty(entry.shape[1], Precision::Bf16);
        matrix.reserve(entry.shape[0]);
        for row in 0..entry.shape[0] {
            matrix.push_rows(&self.rows(entry, row..row + 1)?);
        }
        Ok(matrix)
    }
}
