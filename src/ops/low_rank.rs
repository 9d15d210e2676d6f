//! The straight-through gradient of latents `W = W0 + s·(B·A)` to `A [r, in]` and `B [out, r]`:
//!
//! ```text
//! dW = dYᵀ·X̂            X̂ [M, in]: the activations as they were quantised
//! dB = s·dW·Aᵀ = s·dYᵀ·(X̂·Aᵀ)        dA = s·Bᵀ·dW = s·(dY·B)ᵀ·X̂
//! ```
//!
//! Only products of width `r` are made, never `dW [out, in]`. The forward pass hands `Y` through as it
//! is: the merged matrix has made it ([`merged`]).
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;
use std::sync::Arc;

use bitnet_format::adapter::merge::merge_rows;
use bitnet_kernels::{Activations, Kernel, MatrixA, MatrixB, OperandLayout, Scale, SimdWork, Size};
use burn::backend::{Dispatch, TensorMetadata};
use burn::tensor::{Shape, Tensor};
use burn_flex::FlexTensor;

use crate::latents::Latents;
use crate::ops::OpBackend;
use crate::ops::native::{NativeDispatch, NativeOp, floats, in_rows, product, tensor};

/// `A [r, in]` and `B [out, r]`, row-major, and the scale of their product.
#[derive(Clone, Debug)]
pub struct FactorValues {
    /// `[r, in]`
    pub a: Vec<f32>,
    /// `[out, r]`
    pub b: Vec<f32>,
    /// `s`
    pub scale: f32,
}

/// The merged latents `[out, in]`, by the definition that an export follows.
pub(crate) fn merged(latents: &Latents, factors: &FactorValues, kernel: Kernel) -> Vec<f32> {
    let view = latents.read();
    let [height, width] = view.shape();
    let rank = factors.a.len() / width;
    let mut merged = vec![0.0; height * width];
    in_rows(&mut merged, width, |first, rows| {
        let end = first + rows.len() / width;
        view.rows(first..end, rows);
        let b_rows = &factors.b[first * rank..end * rank];
        kernel.dispatch(Merge { rows, b_rows, factors, rank });
    });
    merged
}

struct Merge<'a> {
    rows: &'a mut [f32],
    b_rows: &'a [f32],
    factors: &'a FactorValues,
    rank: usize,
}

impl SimdWork for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let FactorValues { a, scale, .. } = self.factors;
        merge_rows(self.rows, self.b_rows, a, self.rank, *scale);
    }
}

/// `y [B, T, N]`, of which the columns `own` are the product of `x [B, T, in]` with merged latents, so
/// that its gradient reaches their `a [r, in]` and `b [out, r]`. That of `x` goes through the product.
pub fn low_rank_gradient(
    y: Tensor<3>,
    x: &Tensor<3>,
    [a, b]: [Tensor<2>; 2],
    (own, scale): (Range<usize>, f32),
    backend: OpBackend,
) -> Tensor<3> {
    let op = FactorGradients { backend, own, scale };
    let x = x.clone().detach();
    Tensor::from_dispatch(Dispatch::run4(
        y.into_dispatch(),
        x.into_dispatch(),
        a.into_dispatch(),
        b.into_dispatch(),
        op,
    ))
}

#[derive(Clone, Debug)]
struct FactorGradients {
    backend: OpBackend,
    /// Columns of the output.
    own: Range<usize>,
    scale: f32,
}

#[derive(Clone, Debug)]
struct SavedFactors {
    op: FactorGradients,
    /// Activation codes `[M, in]`, and `1 / a` of each token.
    codes: Arc<Vec<i8>>,
    inverse_scales: Arc<Vec<f32>>,
    a: FlexTensor,
    b: FlexTensor,
}

/// The inputs are `y`, `x`, `a` and `b`.
impl NativeOp<4> for FactorGradients {
    type Saved = SavedFactors;

    fn forward(self, [y, x, a, b]: [FlexTensor; 4]) -> (FlexTensor, SavedFactors) {
        let (x, a, b) = (x.to_contiguous(), a.to_contiguous(), b.to_contiguous());
        let width = a.shape()[1];
        let x = Activations::quantise(self.backend.kernel, floats(&x), width);
        let tokens = y.shape().num_elements() / y.shape()[2];
        let mut codes = Vec::with_capacity(tokens * width);
        (0..tokens).for_each(|token| codes.extend_from_slice(x.codes(token)));
        let inverse_scales = (0..tokens).map(|token| 1.0 / x.scale(token).multiplier()).collect();
        let (codes, inverse_scales) = (Arc::new(codes), Arc::new(inverse_scales));
        (y, SavedFactors { op: self, codes, inverse_scales, a, b })
    }

    fn value(self, [y, ..]: [FlexTensor; 4]) -> FlexTensor {
        y
    }

    fn backward(saved: SavedFactors, dy: FlexTensor) -> [FlexTensor; 4] {
        let contiguous = dy.to_contiguous();
        let (da, db) = saved.gradients(floats(&contiguous));
        let nothing = tensor(Vec::new(), Shape::from([0, 0, 0]));
        [dy, nothing, tensor(da, saved.a.shape()), tensor(db, saved.b.shape())]
    }
}

impl SavedFactors {
    /// Those of `A` and `B`, from that of all columns.
    fn gradients(&self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let FactorGradients { backend, own, scale } = &self.op;
        let (rank, width) = (self.a.shape()[0], self.a.shape()[1]);
        let (tokens, height) = (self.inverse_scales.len(), own.len());
        let stride = dy.len() / tokens;
        // U = s·X̂·Aᵀ and V = s·dY·B, both [M, r].
        let x = self.activations(width);
        let left = rows_of(&x, width, *scale);
        let right = MatrixB::Floats(floats(&self.a), OperandLayout::KInner);
        let size = Size { rows: tokens, depth: width, columns: rank };
        let u = product_of(*backend, size, left, right);
        let left = rows_of(&dy[own.start..], stride, *scale);
        let right = MatrixB::Floats(floats(&self.b), OperandLayout::KOuter);
        let size = Size { rows: tokens, depth: height, columns: rank };
        let v = product_of(*backend, size, left, right);
        // dA = Vᵀ·X̂ and dB = dYᵀ·U.
        let left = columns_of(&v, (rank, 0), Scale::Each(&self.inverse_scales));
        let size = Size { rows: rank, depth: tokens, columns: width };
        let da = product_of(*backend, size, left, MatrixB::Codes(&self.codes));
        let left = columns_of(dy, (stride, own.start), Scale::All(1.0));
        let right = MatrixB::Floats(&u, OperandLayout::KOuter);
        let size = Size { rows: height, depth: tokens, columns: rank };
        (da, product_of(*backend, size, left, right))
    }

    /// The activations as the product sees them, `[M, in]`.
    fn activations(&self, width: usize) -> Vec<f32> {
        let tokens = self.codes.chunks_exact(width).zip(&*self.inverse_scales);
        tokens.flat_map(|(codes, inverse)| codes.iter().map(|&q| f32::from(q) * *inverse)).collect()
    }
}

/// A left operand `[M, stride]`, its first columns.
fn rows_of(values: &[f32], stride: usize, scale: f32) -> MatrixA<'_> {
    let scale = Scale::All(scale);
    MatrixA { values, layout: OperandLayout::KInner, stride, first: 0, scale }
}

/// The transpose of a left operand, from column `first` on.
fn columns_of<'a>(
    values: &'a [f32],
    (stride, first): (usize, usize),
    scale: Scale<'a>,
) -> MatrixA<'a> {
    MatrixA { values, layout: OperandLayout::KOuter, stride, first, scale }
}

fn product_of(backend: OpBackend, size: Size, left: MatrixA, right: MatrixB) -> Vec<f32> {
    let mut out = vec![0.0; size.rows * size.columns];
    product(backend, size, left, right, false, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latents::LatentFormat;
    use crate::ops::testing::{assert_within, cases, draw, gradient, leaf, with_gradients};
    use crate::ops::{bit_linear, bit_linear_outside};
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    /// `left [m, k] · right [k, n]` in f64, times `scale`.
    fn dense(left: &[f64], right: &[f64], [m, k, n]: [usize; 3], scale: f64) -> Vec<f64> {
        let at = |i: usize, j: usize| {
            let terms = (0..k).map(|l| left[i * k + l] * right[l * n + j]);
            scale * terms.sum::<f64>()
        };
        (0..m * n).map(|place| at(place / n, place % n)).collect()
    }

    fn transposed(values: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
        let at = |place: usize| values[place % rows * columns + place / rows];
        (0..rows * columns).map(at).collect()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(value)).collect()
    }

    fn narrow(values: Vec<f64>) -> Vec<f32> {
        values.into_iter().map(|value| value as f32).collect()
    }

    /// Two adapted matrices with one input against the dense gradient of merged latents.
    fn check(tokens: usize, width: usize, heights: [usize; 2], rank: usize, seed: u64) {
        let scale = 0.5;
        let backend = OpBackend::native(Operands::F32);
        let x = leaf(draw(seed, "x", tokens * width), [1, tokens, width]);
        let factors = heights.map(|out| FactorValues {
            a: draw(seed, "a", rank * width),
            b: draw(seed.wrapping_add(1), "b", out * rank),
            scale,
        });
        let latents = heights.map(|out| {
            Latents::new(LatentFormat::F32, [out, width], &draw(seed, "w", out * width))
        });
        let [a, b] = [0, 1].map(|which| {
            std::array::from_fn::<_, 2, _>(|i| match which {
                0 => leaf(factors[i].a.clone(), [rank, width]),
                _ => leaf(factors[i].b.clone(), [heights[i], rank]),
            })
        });
        let empty = heights.map(|_| leaf(Vec::new(), [0, 0]).set_require_grad(false));
        let both = std::array::from_fn(|i| (&latents[i], Some(factors[i].clone())));
        let mut y = bit_linear_outside(x.clone(), empty, both, backend);
        let mut first = 0;
        for (i, out) in heights.into_iter().enumerate() {
            let own = (first..first + out, scale);
            first += out;
            y = low_rank_gradient(y, &x, [a[i].clone(), b[i].clone()], own, backend);
        }
        let mut found = with_gradients(&y, seed, |grads| {
            let mut all = vec![gradient(&x, grads)];
            all.extend(a.iter().chain(&b).map(|factor| gradient(factor, grads)));
            all
        });
        let kernel = backend.kernel;
        let matrices: [_; 2] = std::array::from_fn(|i| merged(&latents[i], &factors[i], kernel));
        let w: [_; 2] = std::array::from_fn(|i| leaf(matrices[i].clone(), [heights[i], width]));
        let y = bit_linear(x.clone(), w.clone(), backend);
        let expected = with_gradients(&y, seed, |grads| {
            let mut all = vec![gradient(&x, grads)];
            all.extend(w.iter().map(|w| gradient(w, grads)));
            all
        });
        let of_factors = found.split_off(2);
        assert_eq!(found[0], expected[0], "the outputs have the same bits");
        assert_eq!(found[1], expected[1], "and so have the gradients of the input");
        let mut reference = Vec::new();
        for (i, out) in heights.into_iter().enumerate() {
            let (dw, b) = (wide(&expected[2 + i]), wide(&factors[i].b));
            let b = transposed(&b, [out, rank]);
            reference.push(narrow(dense(&b, &dw, [rank, out, width], f64::from(scale))));
        }
        for (i, out) in heights.into_iter().enumerate() {
            let (dw, a) = (wide(&expected[2 + i]), wide(&factors[i].a));
            let a = transposed(&a, [rank, width]);
            reference.push(narrow(dense(&dw, &a, [out, width, rank], f64::from(scale))));
        }
        assert_within(&of_factors, &reference, 2e-5, "factors");
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn gradients_are_those_of_the_dense_matrix(
            tokens in 1usize..30, width in 1usize..70, first in 1usize..40, second in 1usize..40,
            rank in 1usize..20, seed: u64,
        ) {
            check(tokens, width, [first, second], rank, seed);
        }
    }
}
