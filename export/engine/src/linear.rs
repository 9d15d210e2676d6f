//! `BitLinear` and the head: products of all tokens with a matrix, split over the pool.

use bitnet_kernels::{Activations, DenseMatrix, Kernel, ROWS_PER_PAIR, TernaryPanels, matmul};

use crate::split::split;

/// `x [T, K]` → `[T, N]`: activations to 8 bits, the exact integer product, then the scales
/// (`bitnet-b158.md` §2.5). One token is split by rows, several by tokens.
pub(crate) fn ternary(kernel: Kernel, panels: &TernaryPanels, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (panels.rows(), panels.columns());
    let tokens = x.len() / columns;
    let mut out = vec![0.0; tokens * rows];
    if tokens == 1 {
        let x = Activations::quantise(kernel, x, columns);
        split(&mut out, ROWS_PER_PAIR, ROWS_PER_PAIR * columns, |pair, out| {
            let first = pair * ROWS_PER_PAIR;
            matmul(kernel, panels, &x, first..first + out.len(), out);
        });
    } else {
        split(&mut out, rows, rows * columns, |token, out| {
            let x = &x[token * columns..][..out.len() / rows * columns];
            matmul(kernel, panels, &Activations::quantise(kernel, x, columns), 0..rows, out);
        });
    }
    out
}

/// `x [T, C]` → logits `[T, V]` in full precision: the head is no `BitLinear`.
pub(crate) fn dense(kernel: Kernel, matrix: &DenseMatrix, x: &[f32]) -> Vec<f32> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let tokens = x.len() / columns;
    let mut out = vec![0.0; tokens * rows];
    if tokens == 1 {
        split(&mut out, 1, columns, |row, out| {
            matrix.matmul(kernel, x, row..row + out.len(), out);
        });
    } else {
        split(&mut out, rows, rows * columns, |token, out| {
            let x = &x[token * columns..][..out.len() / rows * columns];
            matrix.matmul(kernel, x, 0..rows, out);
        });
    }
    out
}
