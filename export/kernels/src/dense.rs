//! Dense matrices in the type of their file: the embedding table and the head.
//!
//! BF16, F16 and f32 rows against f32 vectors; the order of each sum is that of [`Kernel::dot`].

use std::ops::Range;

use bitnet_format::DType;
use bitnet_format::blocks::{BlockError, dequantise, q6_k, q8_0};
use half::{bf16, f16};

use crate::Kernel;

/// A dense matrix `[N, K]`, row-major.
pub struct DenseMatrix {
    columns: usize,
    values: Values,
}

enum Values {
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    F32(Vec<f32>),
    Blocks { bytes: Vec<u8>, row_bytes: usize, unpack: Unpack },
}

/// Blocks of a file → their values.
type Unpack = fn(&[u8], usize) -> Result<Vec<f32>, BlockError>;

/// How blocks of ternary codes become floats.
fn unpack_codes(dtype: DType) -> Option<Unpack> {
    Some(match dtype {
        DType::Tq1_0 => |bytes, count| dequantise(DType::Tq1_0, bytes, count),
        DType::Tq2_0 => |bytes, count| dequantise(DType::Tq2_0, bytes, count),
        DType::Q2_0 => |bytes, count| dequantise(DType::Q2_0, bytes, count),
        DType::Pq2_0 | DType::Q2_0Of128 => |bytes, count| dequantise(DType::Pq2_0, bytes, count),
        DType::Ptq1_0 => |bytes, count| dequantise(DType::Ptq1_0, bytes, count),
        _ => return None,
    })
}

impl Values {
    fn blocks(columns: usize, block: usize, block_bytes: usize, unpack: Unpack) -> Self {
        assert!(columns.is_multiple_of(block), "a row fills whole blocks of {block}");
        Self::Blocks { bytes: Vec::new(), row_bytes: columns / block * block_bytes, unpack }
    }
}

impl DenseMatrix {
    /// A matrix without rows. Values are rounded to `dtype`; Q8_0, Q6_K and ternary codes stay in their blocks,
    /// a row of which is unpacked when it is used.
    ///
    /// # Panics
    /// If `dtype` is not a float type, or a row does not fill whole blocks.
    pub fn empty(columns: usize, dtype: DType) -> Self {
        assert!(columns > 0, "a matrix has columns");
        let values = match dtype {
            DType::Bf16 => Values::Bf16(Vec::new()),
            DType::F16 => Values::F16(Vec::new()),
            DType::F32 => Values::F32(Vec::new()),
            DType::Q8_0 => {
                Values::blocks(columns, q8_0::BLOCK, q8_0::BLOCK_BYTES, q8_0::dequantise)
            }
            DType::Q6K => Values::blocks(columns, q6_k::BLOCK, q6_k::BLOCK_BYTES, q6_k::dequantise),
            other => {
                let unpack = unpack_codes(other);
                let unpack = unpack.unwrap_or_else(|| panic!("{} is no float type", other.name()));
                let block = other.block();
                let bytes = other.bytes_of(block, block).expect("a block is one");
                Values::blocks(columns, block as usize, bytes as usize, unpack)
            }
        };
        Self { columns, values }
    }

    /// Makes room for rows that will be appended, exactly.
    pub fn reserve(&mut self, rows: usize) {
        let more = rows * self.columns;
        match &mut self.values {
            Values::Bf16(values) => values.reserve_exact(more),
            Values::F16(values) => values.reserve_exact(more),
            Values::F32(values) => values.reserve_exact(more),
            Values::Blocks { bytes, row_bytes, .. } => bytes.reserve_exact(rows * *row_bytes),
        }
    }

    /// Appends rows as the blocks they are stored in.
    ///
    /// # Errors
    /// When the bytes are not valid blocks.
    ///
    /// # Panics
    /// If this matrix holds no blocks.
    pub fn push_blocks(&mut self, rows: &[u8]) -> Result<(), BlockError> {
        let columns = self.columns;
        let Values::Blocks { bytes, row_bytes, unpack } = &mut self.values else {
            panic!("a matrix of blocks");
        };
        unpack(rows, rows.len() / *row_bytes * columns)?;
        bytes.extend_from_slice(rows);
        Ok(())
    }

    /// Appends whole rows `[n, K]`.
    ///
    /// # Panics
    /// If this matrix holds blocks.
    pub fn push_rows(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.columns), "whole rows of {}", self.columns);
        match &mut self.values {
            Values::Bf16(values) => values.extend(rows.iter().map(|&x| bf16::from_f32(x))),
            Values::F16(values) => values.extend(rows.iter().map(|&x| f16::from_f32(x))),
            Values::F32(values) => values.extend_from_slice(rows),
            Values::Blocks { .. } => panic!("blocks are appended as they are stored"),
        }
    }

    /// Number of rows, `N`.
    pub fn rows(&self) -> usize {
        match &self.values {
            Values::Bf16(values) => values.len() / self.columns,
            Values::F16(values) => values.len() / self.columns,
            Values::F32(values) => values.len() / self.columns,
            Values::Blocks { bytes, row_bytes, .. } => bytes.len() / row_bytes,
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
            Values::F16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::Blocks { .. } => out.copy_from_slice(&self.unpacked(row)),
        }
    }

    /// `out [T, rows]` = the dot products of `rows` with `x [T, K]`.
    pub fn matmul(&self, kernel: Kernel, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows of this matrix");
        match &self.values {
            Values::Bf16(w) => self.each_dot(w, x, rows, out, |w, x| kernel.dot_bf16(w, x)),
            Values::F16(w) => self.each_dot(w, x, rows, out, |w, x| kernel.dot_f16(w, x)),
            Values::F32(w) => self.each_dot(w, x, rows, out, |w, x| kernel.dot(w, x)),
            Values::Blocks { .. } => {
                let width = rows.len();
                for (at, row) in rows.enumerate() {
                    let w = self.unpacked(row);
                    for (token, x) in x.chunks_exact(self.columns).enumerate() {
                        out[token * width + at] = kernel.dot(&w, x);
                    }
                }
            }
        }
    }

    fn unpacked(&self, row: usize) -> Vec<f32> {
        let Values::Blocks { bytes, row_bytes, unpack } = &self.values else {
            unreachable!("only blocks are unpacked");
        };
        let row = &bytes[row * row_bytes..][..*row_bytes];
        unpack(row, self.columns).expect("blocks are checked when they are appended")
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
        // Rows outside: a weight is read from memory once and meets all tokens.
        for (row, w) in values.chunks_exact(self.columns).enumerate() {
            for (token, x) in x.chunks_exact(self.columns).enumerate() {
                out[token * width + row] = dot(w, x);
            }
        }
    }
}

impl std::fmt::Debug for DenseMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DenseMatrix [{}, {}]", self.rows(), self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(dtype: DType, columns: usize, values: &[f32]) -> DenseMatrix {
        let mut matrix = DenseMatrix::empty(columns, dtype);
        matrix.reserve(values.len() / columns);
        values.chunks(columns).for_each(|row| matrix.push_rows(row));
        matrix
    }

    #[test]
    fn values_come_back_as_their_type_holds_them() {
        let rows = [1.0, 0.1, -3.0, 1024.5];
        for (dtype, tenth, large) in [
            (DType::F32, 0.1, 1024.5),
            (DType::F16, 0.099_975_586, 1024.0),
            (DType::Bf16, 0.100_097_656, 1024.0),
        ] {
            let matrix = matrix(dtype, 2, &rows);
            let mut out = [0.0; 2];
            matrix.copy_row(0, &mut out);
            assert_eq!(out, [1.0, tenth], "{dtype:?}");
            matrix.copy_row(1, &mut out);
            assert_eq!(out, [-3.0, large], "{dtype:?}");
        }
    }

    #[test]
    fn a_range_of_rows_is_a_part_of_the_whole_product() {
        let matrix = matrix(DType::F32, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut out = [0.0; 4];
        matrix.matmul(Kernel::Scalar, &[1.0, 1.0, 0.0, 2.0], 1..3, &mut out);
        assert_eq!(out, [7.0, 11.0, 8.0, 12.0]);
    }
}
