//! The low-rank factors of an adapter, `A [r, in]` and `B [out, r]`, beside a ternary product.
//!
//! A latent adapter changes the latents, `W = W0 + s·(B·A)`, and the merged matrix makes `Y` (`merged_latents`);
//! a side adapter changes the output, `Y + s·(X·Aᵀ)·Bᵀ`. Both have the gradients
//!
//! ```text
//! dB = s·dYᵀ·(X·Aᵀ)        dA = s·(dY·B)ᵀ·X
//! ```
//!
//! where `X [M, in]` is for a latent adapter the activations as they were quantised, since `dW = dYᵀ·X` is
//! straight-through, and for a side adapter the input itself, whose gradient is `s·(dY·B)·A` besides. Only
//! products of width `r` are made, never `dW [out, in]`.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bitnet_format::adapter::AdapterKind;
use bitnet_kernels::{Activations, Kernel, MatrixA, MatrixB, OperandLayout, Scale, Size};
use burn::backend::{Dispatch, TensorMetadata};
use burn::tensor::{Shape, Tensor};
use burn_flex::FlexTensor;

use crate::ops::OpBackend;
use crate::ops::native::{
    NativeDispatch, NativeOp, floats, into_floats, product, tensor, unwritten,
};

/// Joins factors to the output `y [B, T, N]` of a product of `x [B, T, in]`, whose columns `own` are those
/// of their matrix.
#[derive(Clone, Debug)]
pub(crate) struct LowRankJoin {
    pub(crate) backend: OpBackend,
    pub(crate) kind: AdapterKind,
    /// Columns of the output.
    pub(crate) own: Range<usize>,
    /// `s`
    pub(crate) scale: f32,
}

impl LowRankJoin {
    /// `y` with the product of `a [r, in]` and `b [out, r]` beside it, if it is not merged already; its
    /// gradient reaches both.
    pub(crate) fn join(self, y: Tensor<3>, x: &Tensor<3>, [a, b]: [Tensor<2>; 2]) -> Tensor<3> {
        let x = match self.kind {
            // The merged product hands its gradient back.
            AdapterKind::Latent => x.clone().detach(),
            AdapterKind::Side => x.clone(),
        };
        Tensor::from_dispatch(Dispatch::run4(
            y.into_dispatch(),
            x.into_dispatch(),
            a.into_dispatch(),
            b.into_dispatch(),
            self,
        ))
    }

    /// Adds `s·(X·Aᵀ)·Bᵀ` to the columns of this matrix; returns `s·X·Aᵀ [M, r]`.
    fn add_product(&self, y: &mut [f32], x: &[f32], a: &FlexTensor, b: &FlexTensor) -> Vec<f32> {
        let (rank, width) = (a.shape()[0], a.shape()[1]);
        let (tokens, height) = (x.len() / width, self.own.len());
        // `s` is applied once, at the narrow place: r numbers a token instead of `out`.
        let u = self.project(x, (a, OperandLayout::KInner), width);
        let right = MatrixB::Floats(floats(b), OperandLayout::KInner);
        let size = Size { rows: tokens, depth: rank, columns: height };
        let beside = product_of(self.backend, size, rows_of(&u, rank, 1.0), right);
        let stride = y.len() / tokens;
        for (y, beside) in y.chunks_exact_mut(stride).zip(beside.chunks_exact(height)) {
            y[self.own.clone()].iter_mut().zip(beside).for_each(|(y, beside)| *y += beside);
        }
        u
    }

    /// `s` times the first columns of `left [M, stride]` times a factor, `[M, r]`.
    fn project(
        &self,
        left: &[f32],
        (factor, layout): (&FlexTensor, OperandLayout),
        stride: usize,
    ) -> Vec<f32> {
        let (depth, rank) = match layout {
            OperandLayout::KInner => (factor.shape()[1], factor.shape()[0]),
            OperandLayout::KOuter => (factor.shape()[0], factor.shape()[1]),
        };
        // The first row may begin inside a stride.
        let tokens = left.len().div_ceil(stride);
        let right = MatrixB::Floats(floats(factor), layout);
        let size = Size { rows: tokens, depth, columns: rank };
        product_of(self.backend, size, rows_of(left, stride, self.scale), right)
    }
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
pub(crate) struct SavedFactors {
    op: LowRankJoin,
    x: SavedInput,
    a: FlexTensor,
    b: FlexTensor,
}

/// `X [M, in]`, the left operand of both gradients.
#[derive(Clone, Debug)]
pub(crate) enum SavedInput {
    /// Activation codes, and `1 / a` of each token.
    Codes { codes: Arc<Vec<i8>>, inverse_scales: Arc<Vec<f32>> },
    /// The input, and `s·X·Aᵀ`.
    Floats { x: FlexTensor, u: Arc<Vec<f32>> },
}

/// The inputs are `y`, `x`, `a` and `b`.
impl NativeOp<4> for LowRankJoin {
    type Saved = SavedFactors;

    fn forward(self, [y, x, a, b]: [FlexTensor; 4]) -> (FlexTensor, SavedFactors) {
        let (x, a, b) = (x.to_contiguous(), a.to_contiguous(), b.to_contiguous());
        match self.kind {
            AdapterKind::Latent => {
                // The codes that the merged product read, since `dW` is of quantised activations.
                let x = SavedInput::quantised(self.backend.kernel, floats(&x), a.shape()[1]);
                (y, SavedFactors { op: self, x, a, b })
            }
            AdapterKind::Side => {
                let shape = y.shape();
                let mut sum = into_floats(y);
                let u = Arc::new(self.add_product(&mut sum, floats(&x), &a, &b));
                let x = SavedInput::Floats { x, u };
                (tensor(sum, shape), SavedFactors { op: self, x, a, b })
            }
        }
    }

    fn value(self, [y, x, a, b]: [FlexTensor; 4]) -> FlexTensor {
        match self.kind {
            AdapterKind::Latent => y,
            AdapterKind::Side => self.forward([y, x, a, b]).0,
        }
    }

    fn backward(saved: SavedFactors, dy: FlexTensor) -> [FlexTensor; 4] {
        let contiguous = dy.to_contiguous();
        let (dx, da, db) = saved.gradients(floats(&contiguous));
        // `y` has only had something added to it, so its gradient is `dy` as it is.
        [dy, dx, tensor(da, saved.a.shape()), tensor(db, saved.b.shape())]
    }
}

impl SavedInput {
    fn quantised(kernel: Kernel, x: &[f32], width: usize) -> Self {
        let tokens = x.len() / width;
        let x = Activations::quantise(kernel, x, width);
        let mut codes = Vec::with_capacity(tokens * width);
        (0..tokens).for_each(|token| codes.extend_from_slice(x.codes(token)));
        let inverse_scales = (0..tokens).map(|token| 1.0 / x.scale(token).multiplier()).collect();
        Self::Codes { codes: Arc::new(codes), inverse_scales: Arc::new(inverse_scales) }
    }
}

impl SavedFactors {
    /// The gradients of `X`, `A` and `B`, from the gradient of all columns.
    fn gradients(&self, dy: &[f32]) -> (FlexTensor, Vec<f32>, Vec<f32>) {
        let LowRankJoin { backend, own, .. } = &self.op;
        let (rank, width) = (self.a.shape()[0], self.a.shape()[1]);
        let tokens = self.tokens(width);
        let (height, stride) = (own.len(), dy.len() / tokens);
        // U = s·X·Aᵀ and V = s·dY·B, both [M, r].
        let u = self.projected_input(width);
        let v = self.op.project(&dy[own.start..], (&self.b, OperandLayout::KOuter), stride);
        // dA = Vᵀ·X and dB = dYᵀ·U.
        let size = Size { rows: rank, depth: tokens, columns: width };
        let da = match &self.x {
            SavedInput::Codes { codes, inverse_scales } => {
                let left = columns_of(&v, (rank, 0), Scale::Each(inverse_scales));
                product_of(*backend, size, left, MatrixB::Codes(codes))
            }
            SavedInput::Floats { x, .. } => {
                let left = columns_of(&v, (rank, 0), Scale::All(1.0));
                let right = MatrixB::Floats(floats(x), OperandLayout::KOuter);
                product_of(*backend, size, left, right)
            }
        };
        let left = columns_of(dy, (stride, own.start), Scale::All(1.0));
        let right = MatrixB::Floats(&u, OperandLayout::KOuter);
        let size = Size { rows: height, depth: tokens, columns: rank };
        (self.input_gradient(&v), da, product_of(*backend, size, left, right))
    }

    fn tokens(&self, width: usize) -> usize {
        match &self.x {
            SavedInput::Codes { inverse_scales, .. } => inverse_scales.len(),
            SavedInput::Floats { x, .. } => x.shape().num_elements() / width,
        }
    }

    /// `s·X·Aᵀ`
    fn projected_input(&self, width: usize) -> Cow<'_, [f32]> {
        match &self.x {
            SavedInput::Floats { u, .. } => Cow::Borrowed(u),
            SavedInput::Codes { codes, inverse_scales } => {
                // Made now: the forward pass of a latent adapter has no use for it.
                let rows = codes.chunks_exact(width).zip(&**inverse_scales);
                let x: Vec<f32> = rows
                    .flat_map(|(codes, inverse)| codes.iter().map(|&q| f32::from(q) * *inverse))
                    .collect();
                self.op.project(&x, (&self.a, OperandLayout::KInner), width).into()
            }
        }
    }

    /// `V·A` in the shape of the input; nothing where the input took no part.
    fn input_gradient(&self, v: &[f32]) -> FlexTensor {
        let SavedInput::Floats { x, .. } = &self.x else {
            return tensor(Vec::new(), Shape::from([0, 0, 0]));
        };
        let (rank, width) = (self.a.shape()[0], self.a.shape()[1]);
        let right = MatrixB::Floats(floats(&self.a), OperandLayout::KOuter);
        let size = Size { rows: v.len() / rank, depth: rank, columns: width };
        tensor(product_of(self.op.backend, size, rows_of(v, rank, 1.0), right), x.shape())
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
    let mut out = unwritten(size.rows * size.columns);
    product(backend, size, left, right, false, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latents::{LatentFormat, Latents};
    use crate::ops::merged_latents::{FactorValues, merged};
    use crate::ops::testing::{
        DRAWS, assert_within, cases, compare, draw, gradient, leaf, of_draws, with_gradients,
    };
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
        let mut found = of_draws(DRAWS, seed, |seed| {
            let [mut found, expected] = factor_gradients(tokens, width, heights, rank, seed);
            found.extend(expected);
            found
        });
        let expected = found.split_off(4);
        assert_within(&found, &expected, 2e-5, "factors");
    }

    /// The gradients of both matrices' factors, as found and expected.
    fn factor_gradients(
        tokens: usize,
        width: usize,
        heights: [usize; 2],
        rank: usize,
        seed: u64,
    ) -> [Vec<Vec<f32>>; 2] {
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
            let (kind, own) = (AdapterKind::Latent, first..first + out);
            first += out;
            y = LowRankJoin { backend, kind, own, scale }.join(y, &x, [a[i].clone(), b[i].clone()]);
        }
        let mut found = with_gradients(&y, seed, |grads| {
            let mut all = vec![gradient(&x, grads)];
            all.extend(a.iter().chain(&b).map(|factor| gradient(factor, grads)));
            all
        });
        let kernel = backend.kernel;
        let matrices: [_; 2] = std::array::from_fn(|i| merged(&latents[i], &factors[i], kernel).0);
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
        [of_factors, reference]
    }

    /// A side product beside two matrices with one input against tensor operations.
    fn check_side(tokens: usize, width: usize, heights: [usize; 2], rank: usize, seed: u64) {
        let (scale, kind, all) = (0.5, AdapterKind::Side, heights[0] + heights[1]);
        let own = heights[0]..all;
        // Two products after each other round twice.
        compare("side", 2.0, seed, |backend, seed| {
            let x = leaf(draw(seed, "x", tokens * width), [1, tokens, width]);
            let y = leaf(draw(seed, "y", tokens * all), [1, tokens, all]);
            let a = leaf(draw(seed, "a", rank * width), [rank, width]);
            let b = leaf(draw(seed, "b", heights[1] * rank), [heights[1], rank]);
            let both = [a.clone(), b.clone()];
            let sum = if backend.is_native() {
                LowRankJoin { backend, kind, own: own.clone(), scale }.join(y.clone(), &x, both)
            } else {
                let [a, b] = both.map(|factor| factor.transpose().unsqueeze::<3>());
                let beside = backend.matmul(backend.matmul(x.clone(), a), b).mul_scalar(scale);
                let first = y.clone().narrow(2, 0, heights[0]);
                Tensor::cat(vec![first, y.clone().narrow(2, heights[0], heights[1]) + beside], 2)
            };
            with_gradients(&sum, seed, |grads| {
                let mut all = vec![gradient(&x, grads), gradient(&y, grads)];
                all.extend([&a, &b].map(|factor| gradient(factor, grads)));
                all
            })
        });
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn a_side_product_equals_its_reference(
            tokens in 1usize..30, width in 1usize..70, first in 1usize..40, second in 1usize..40,
            rank in 1usize..20, seed: u64,
        ) {
            check_side(tokens, width, [first, second], rank, seed);
        }

        #[test]
        fn gradients_are_those_of_the_dense_matrix(
            tokens in 1usize..30, width in 1usize..70, first in 1usize..40, second in 1usize..40,
            rank in 1usize..20, seed: u64,
        ) {
            check(tokens, width, [first, second], rank, seed);
        }
    }
}
