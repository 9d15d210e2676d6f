//! `BitLinear` and the head: products of all tokens with a matrix, split over the threads.

use bitnet_kernels::{
    Activations, DenseMatrix, INT8_ROWS, Int8Matrix, ROWS_PER_PAIR, TernaryPanels, matmul,
};

use crate::compute::Compute;

/// `x [T, K]` → `[T, N]`: activations to 8 bits, the exact integer product, then the scales
/// (`bitnet-b158.md` §2.5). One token is split by rows, several by tokens.
pub(crate) fn ternary(compute: Compute, panels: &TernaryPanels, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (panels.rows(), panels.columns());
    let (kernel, threads) = (compute.kernel, compute.threads);
    let mut out = vec![0.0; x.len() / columns * rows];
    if x.len() == columns {
        let x = Activations::quantise(kernel, x, columns);
        threads.split(&mut out, ROWS_PER_PAIR, ROWS_PER_PAIR * columns, |pair, out| {
            let first = pair * ROWS_PER_PAIR;
            matmul(kernel, panels, &x, first..first + out.len(), out);
        });
    } else {
        threads.split(&mut out, rows, rows * columns, |token, out| {
            let x = &x[token * columns..][..out.len() / rows * columns];
            matmul(kernel, panels, &Activations::quantise(kernel, x, columns), 0..rows, out);
        });
    }
    out
}

/// The embedding table or the head.
#[derive(Debug)]
pub(crate) enum Table {
    /// At the precision of the file.
    File(DenseMatrix),
    /// In 8 bits.
    Int8(Int8Matrix),
}

impl Table {
    /// The embedding of one token `[C]`.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::File(matrix) => matrix.copy_row(row, out),
            Self::Int8(matrix) => matrix.copy_row(row, out),
        }
    }

    /// `x [T, C]` → logits `[T, V]`: the head is no `BitLinear`.
    pub(crate) fn logits(&self, compute: Compute, x: &[f32]) -> Vec<f32> {
        match self {
            Self::File(matrix) => dense(compute, matrix, x),
            Self::Int8(matrix) => int8(compute, matrix, x),
        }
    }
}

fn dense(compute: Compute, matrix: &DenseMatrix, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let (kernel, threads) = (compute.kernel, compute.threads);
    let mut out = vec![0.0; x.len() / columns * rows];
    if x.len() == columns {
        threads.split(&mut out, 1, columns, |row, out| {
            matrix.matmul(kernel, x, row..row + out.len(), out);
        });
    } else {
        threads.split(&mut out, rows, rows * columns, |token, out| {
            let x = &x[token * columns..][..out.len() / rows * columns];
            matrix.matmul(kernel, x, 0..rows, out);
        });
    }
    out
}

fn int8(compute: Compute, matrix: &Int8Matrix, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let (kernel, threads) = (compute.kernel, compute.threads);
    let mut out = vec![0.0; x.len() / columns * rows];
    if x.len() == columns {
        let x = Activations::quantise(kernel, x, columns);
        threads.split(&mut out, INT8_ROWS, INT8_ROWS * columns, |panel, out| {
            let first = panel * INT8_ROWS;
            matrix.matmul(kernel, &x, first..first + out.len(), out);
        });
    } else {
        threads.split(&mut out, rows, rows * columns, |token, out| {
            let x = &x[token * columns..][..out.len() / rows * columns];
            matrix.matmul(kernel, &Activations::quantise(kernel, x, columns), 0..rows, out);
        });
    }
    out
}
