//! Dense matrices at the precision of their file: the embedding table and the head.
//!
//! BF16 and f32 rows against f32 vectors; the order of each sum is that of [`Kernel::dot`].

use std::ops::Range;

use half::bf16;

use crate::Kernel;

/// A dense matrix `[N, K]`, row-major, held in BF16 when that loses nothing.
#[derive(Debug)]
pub struct DenseMatrix {
    columns: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl DenseMatrix {
    /// Takes values `[N, K]`; if each of them is a BF16 number, only those halves are kept.
    pub fn new(columns: usize, values: Vec<f32>) -> Self {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "whole rows of {columns}");
        let is_bf16 = |value: &f32| value.to_bits().trailing_zeros() >= 16;
        let values = if values.iter().all(is_bf16) {
            Values::Bf16(values.into_iter().map(bf16::from_f32).collect())
        } else {
            Values::F32(values)
        };
        Self { columns, values }
    }

    /// Number of rows, `N`.
    pub fn rows(&self) -> usize {
        match &self.values {
            Values::Bf16(values) => values.len() / self.columns,
            Values::F32(values) => values.len() / self.columns,
        }
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Writes one row `[K]` as f32.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.columns, "a place for each column");
        let range = row * self.columns..(row + 1) * self.columns;
        match &self.values {
            Values::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            Values::F32(values) => out.copy_from_slice(&values[range]),
        }
    }

    /// `out [T, rows]` = the dot products of `rows` with `x [T, K]`.
    pub fn matmul(&self, kernel: Kernel, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows of this matrix");
        match &self.values {
            Values::Bf16(w) => self.each_dot(w, x, rows, out, |w, x| kernel.dot_bf16(w, x)),
            Values::F32(w) => self.each_dot(w, x, rows, out, |w, x| kernel.dot(w, x)),
        }
    }

    fn each_dot<W>(
        &self,
        values: &[W],
        x: &[f32],
        rows: Range<usize>,
        out: &mut [f32],
        dot: impl Fn(&[W], &[f32]) -> f32,
    ) {
        assert!(x.len().is_multiple_of(self.columns), "whole tokens of {}", self.columns);
        let (tokens, width) = (x.len() / self.columns, rows.len());
        assert_eq!(out.len(), tokens * width, "one place for each token and row");
        let values = &values[rows.start * self.columns..rows.end * self.columns];
        for (row, w) in values.chunks_exact(self.columns).enumerate() {
            for (token, x) in x.chunks_exact(self.columns).enumerate() {
                out[token * width + row] = dot(w, x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_bf16_are_kept_as_bf16() {
        let exact = DenseMatrix::new(2, vec![1.0, -2.5, 0.5, 3.0]);
        assert!(matches!(exact.values, Values::Bf16(_)));
        let fine = DenseMatrix::new(2, vec![1.0, 0.1]);
        assert!(matches!(fine.values, Values::F32(_)));
        for (matrix, row, expected) in [(exact, 1, [0.5, 3.0]), (fine, 0, [1.0, 0.1])] {
            let mut out = [0.0; 2];
            matrix.copy_row(row, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_range_of_rows_is_a_part_of_the_whole_product() {
        let matrix = DenseMatrix::new(2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut out = [0.0; 4];
        matrix.matmul(Kernel::Scalar, &[1.0, 1.0, 0.0, 2.0], 1..3, &mut out);
        assert_eq!(out, [7.0, 11.0, 8.0, 12.0]);
    }
}
