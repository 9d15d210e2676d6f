//! The orthogonal matrix nearest to a momentum, nearly: what Muon steps along (Jordan et al. 2024,
//! kellerjordan.github.io/posts/muon; scaled as in arXiv 2502.16982).
//!
//! ```text
//! X = U / ‖U‖_F, transposed where it is taller than wide
//! A = X·Xᵀ        X ← a·X + (b·A + c·A²)·X        (a, b, c) = (3.4445, −4.775, 2.0315), some times
//! ```
//!
//! Each iteration (Newton–Schulz) pushes every singular value towards 1; five leave them between about
//! 0.7 and 1.2. Three products an iteration, of `m²·n`, `m³` and `m²·n` multiply-adds for `m × n`.

use bitnet_kernels::{MatrixA, MatrixB, OperandLayout, Scale, Size, float_product};
use rayon::prelude::*;

use crate::ops::OpBackend;

/// Coefficients of the quintic.
const QUINTIC: [f32; 3] = [3.4445, -4.775, 2.0315];
/// Values whose squares are summed together; a constant, so that threads change no bit.
const CHUNK: usize = 4096;
/// Rows of a strip, as the float products pack them.
const STRIP: usize = 8;
/// The least norm, as in torch.
const TINY: f64 = 1e-7;

/// Replaces `u [rows, columns]`, row-major, by what `iterations` make of it; uses all threads.
pub(crate) fn orthogonalise(
    u: Vec<f32>,
    [rows, columns]: [usize; 2],
    iterations: usize,
    backend: OpBackend,
) -> Vec<f32> {
    // On the shorter side: X·Xᵀ is then the smaller of the two Gram matrices.
    let is_tall = rows > columns;
    let mut x = if is_tall { transposed(&u, [rows, columns]) } else { u };
    // No singular value exceeds the Frobenius norm, so all lie in 0…1 now. Zeros stay zeros.
    let inverse = (1.0 / norm(&x).max(TINY)) as f32;
    x.par_iter_mut().for_each(|value| *value *= inverse);
    let (small, large) = (rows.min(columns), rows.max(columns));
    for _ in 0..iterations {
        x = iterate(&x, [small, large], backend);
    }
    if is_tall { transposed(&x, [columns, rows]) } else { x }
}

/// `a·X + (b·A + c·A²)·X` of `x [m, n]`.
fn iterate(x: &[f32], [m, n]: [usize; 2], backend: OpBackend) -> Vec<f32> {
    let [a, b, c] = QUINTIC;
    let mut gram = vec![0.0; m * m];
    let size = Size { rows: m, depth: n, columns: m };
    product(backend, size, x, MatrixB::Floats(x, OperandLayout::KInner), &mut gram);
    let mut square = vec![0.0; m * m];
    let size = Size { rows: m, depth: m, columns: m };
    product(backend, size, &gram, MatrixB::Floats(&gram, OperandLayout::KOuter), &mut square);
    // `b·A + c·A²` first, in place of A: then one product with X is enough.
    let pairs = gram.par_iter_mut().zip(&square);
    pairs.for_each(|(gram, square)| *gram = b * *gram + c * square);
    // The product below adds to this: a·X + (…)·X.
    let mut next: Vec<f32> = x.par_iter().map(|value| a * value).collect();
    let size = Size { rows: m, depth: m, columns: n };
    product(backend, size, &gram, MatrixB::Floats(x, OperandLayout::KOuter), &mut next);
    next
}

/// Adds `a [rows, depth]` times `b` to `out [rows, columns]`, whose rows are shared among all
/// threads.
fn product(backend: OpBackend, size: Size, a: &[f32], b: MatrixB, out: &mut [f32]) {
    // Whole strips for each thread. A row is summed alone, so shares change no bit.
    let share = size.rows.div_ceil(rayon::current_num_threads()).next_multiple_of(STRIP);
    let shares = out.par_chunks_mut(share * size.columns).zip(a.par_chunks(share * size.depth));
    shares.for_each(|(out, values)| {
        let size = Size { rows: out.len() / size.columns, ..size };
        let (layout, scale) = (OperandLayout::KInner, Scale::All(1.0));
        let a = MatrixA { values, layout, stride: size.depth, first: 0, scale };
        float_product(backend.kernel, backend.operands, size, a, b, true, out);
    });
}

/// `‖x‖_F`
fn norm(x: &[f32]) -> f64 {
    let square = |chunk: &[f32]| chunk.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(square).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// `[rows, columns]` → `[columns, rows]`
fn transposed(x: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(rows).enumerate().for_each(|(column, out)| {
        let values = x[column..].iter().step_by(columns);
        out.iter_mut().zip(values).for_each(|(out, value)| *out = *value);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cases, draw};
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    /// The definition in f64.
    fn reference(u: &[f32], [rows, columns]: [usize; 2], iterations: usize) -> Vec<f64> {
        let u: Vec<f64> = u.iter().map(|&value| f64::from(value)).collect();
        let norm = u.iter().map(|value| value * value).sum::<f64>().sqrt();
        let is_tall = rows > columns;
        let (m, n) = (rows.min(columns), rows.max(columns));
        let at = |i: usize, j: usize| if is_tall { u[j * columns + i] } else { u[i * columns + j] };
        let mut x: Vec<f64> = (0..m * n).map(|place| at(place / n, place % n) / norm).collect();
        let multiply = |a: &[f64], b: &[f64], [rows, depth, columns]: [usize; 3]| -> Vec<f64> {
            let one = |i: usize, j: usize| -> f64 {
                (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum()
            };
            (0..rows * columns).map(|place| one(place / columns, place % columns)).collect()
        };
        let [a, b, c] = QUINTIC.map(f64::from);
        for _ in 0..iterations {
            let xt: Vec<f64> = (0..m * n).map(|place| x[place % m * n + place / m]).collect();
            let gram = multiply(&x, &xt, [m, n, m]);
            let square = multiply(&gram, &gram, [m, m, m]);
            let factor: Vec<f64> =
                gram.iter().zip(&square).map(|(one, two)| b * one + c * two).collect();
            let added = multiply(&factor, &x, [m, m, n]);
            x = x.iter().zip(&added).map(|(x, added)| a * x + added).collect();
        }
        let back = |place: usize| {
            if is_tall { x[place % columns * n + place / columns] } else { x[place] }
        };
        (0..m * n).map(back).collect()
    }

    fn error(found: &[f32], expected: &[f64]) -> f64 {
        let square = |(a, b): (&f32, &f64)| (f64::from(*a) - b).powi(2);
        let sum: f64 = found.iter().zip(expected).map(square).sum();
        (sum / expected.iter().map(|value| value * value).sum::<f64>()).sqrt()
    }

    proptest! {
        #![proptest_config(cases(16))]

        #[test]
        fn it_is_the_definition_on_any_shape(
            rows in 1usize..60, columns in 1usize..60, iterations in 1usize..6, seed: u64,
        ) {
            let u = draw(seed, "u", rows * columns);
            // Small singular values grow 3.4-fold in each iteration, and so does what bf16 rounds away.
            let few = iterations.min(2);
            let precisions = [(Operands::F32, 1e-4, iterations), (Operands::Bf16, 0.05, few)];
            for (operands, within, iterations) in precisions {
                let expected = reference(&u, [rows, columns], iterations);
                let backend = OpBackend::native(operands);
                let found = orthogonalise(u.clone(), [rows, columns], iterations, backend);
                let error = error(&found, &expected);
                prop_assert!(error < within, "{operands:?}: {error:e}");
            }
        }
    }

    #[test]
    fn the_rows_of_a_wide_matrix_become_nearly_orthonormal() {
        let (rows, columns) = (24, 96);
        let u = draw(3, "u", rows * columns);
        let x = orthogonalise(u, [rows, columns], 5, OpBackend::native(Operands::F32));
        for i in 0..rows {
            let row = |i: usize| &x[i * columns..(i + 1) * columns];
            let length: f32 = row(i).iter().map(|value| value * value).sum();
            assert!((0.4..1.5).contains(&length), "{length}");
        }
    }

    #[test]
    fn threads_and_kernels_change_no_bit_and_zero_stays_zero() {
        let shape = [50, 33];
        let u = draw(5, "u", shape[0] * shape[1]);
        let mut backend = OpBackend::native(Operands::F32);
        let expected = orthogonalise(u.clone(), shape, 5, backend);
        for kernel in bitnet_kernels::Kernel::available() {
            backend.kernel = kernel;
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| orthogonalise(u.clone(), shape, 5, backend));
                assert!(found == expected, "{kernel:?}, {threads} threads");
            }
        }
        assert!(orthogonalise(vec![0.0; 12], [3, 4], 5, backend).iter().all(|&x| x == 0.0));
    }
}
