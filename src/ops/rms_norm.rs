//! `RMSNorm` (arXiv 1910.07467) in the order of transformers' `BitNetRMSNorm`: normalise, then gain.
//!
//! ```text
//! r = 1 / sqrt(mean(x²) + eps)        one number for each row
//! y = x · r · g
//! ```
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::sync::Arc;

use bitnet_format::norm::{fixed_order_dot, rms_norm_row};
use bitnet_kernels::SimdWork;
use burn::backend::{Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::ops::OpBackend;
use crate::ops::native::{
    NativeDispatch, NativeOp, floats, in_rows_with, into_floats, tensor, unwritten,
};

/// Rows whose terms of the gain's gradient are summed together. The blocks depend on the number of
/// rows only, never on threads, so the order of the sum is always the same.
const ROW_BLOCK: usize = 64;

/// `RMSNorm` over the last dimension: `x [B, T, C]`, `gain [C]` → `[B, T, C]`
pub fn rms_norm(x: Tensor<3>, gain: Tensor<1>, eps: f32, backend: OpBackend) -> Tensor<3> {
    if !backend.is_native() {
        return reference(x, gain, eps);
    }
    let op = NativeRmsNorm { eps, backend };
    Tensor::from_dispatch(Dispatch::run2(x.into_dispatch(), gain.into_dispatch(), op))
}

fn reference(x: Tensor<3>, gain: Tensor<1>, eps: f32) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    let inverse = mean_square.add_scalar(eps).sqrt().recip();
    x * inverse * gain.unsqueeze()
}

#[derive(Clone, Debug)]
struct NativeRmsNorm {
    eps: f32,
    backend: OpBackend,
}

/// The input and one factor for each row: cheaper to keep than the normalised rows.
#[derive(Clone, Debug)]
struct SavedRmsNorm {
    x: FlexTensor,
    gain: FlexTensor,
    inverse: Arc<Vec<f32>>,
    backend: OpBackend,
}

impl NativeOp<2> for NativeRmsNorm {
    type Saved = SavedRmsNorm;

    fn forward(self, [x, gain]: [FlexTensor; 2]) -> (FlexTensor, SavedRmsNorm) {
        let Self { eps, backend } = self;
        let (x, gain) = (x.to_contiguous(), gain.to_contiguous());
        let (rows, weights) = (floats(&x), floats(&gain));
        let width = weights.len();
        let mut y = unwritten(rows.len());
        let mut inverse = vec![0.0; rows.len() / width];
        in_rows_with(&mut y, width, &mut inverse, |first, y, inverse| {
            let x = &rows[first * width..][..y.len()];
            backend.kernel.dispatch(Forward { x, gain: weights, eps, y, inverse });
        });
        let y = tensor(y, x.shape());
        (y, SavedRmsNorm { x, gain, inverse: Arc::new(inverse), backend })
    }

    /// Writes the input's gradient over `dy`.
    fn backward(saved: SavedRmsNorm, dy: FlexTensor) -> [FlexTensor; 2] {
        let (x, gain, mut dx) = (floats(&saved.x), floats(&saved.gain), into_floats(dy));
        let (width, kernel) = (gain.len(), saved.backend.kernel);
        // dgain is a sum over all tokens: 64 rows each in order, then the blocks in order.
        let block = ROW_BLOCK * width;
        let blocks = dx.par_chunks_mut(block).zip(x.par_chunks(block));
        let partial: Vec<Vec<f32>> = blocks
            .zip(saved.inverse.par_chunks(ROW_BLOCK))
            .map(|((dx, x), inverse)| kernel.dispatch(BackwardRows { x, gain, inverse, dx }))
            .collect();
        let dgain = sum_of_rows(&partial, width);
        [tensor(dx, saved.x.shape()), tensor(dgain, saved.gain.shape())]
    }
}

struct Forward<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
    inverse: &'a mut [f32],
}

impl SimdWork for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, gain, eps, y, inverse } = self;
        let rows = y.chunks_exact_mut(gain.len()).zip(x.chunks_exact(gain.len()));
        for ((y, x), inverse) in rows.zip(inverse) {
            *inverse = rms_norm_row(x, gain, eps, y);
        }
    }
}

/// `dx = r · (dy·g − x̂ · mean(dy·g·x̂))` and `dg = Σ dy·x̂` with `x̂ = x · r`.
struct BackwardRows<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    inverse: &'a [f32],
    /// Holds `dy` before.
    dx: &'a mut [f32],
}

impl SimdWork for BackwardRows<'_> {
    /// The terms of these rows in the gain's gradient.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Self { x, gain, inverse, dx } = self;
        let width = gain.len();
        let mut dgain = vec![0.0; width];
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), inverse) in rows.zip(inverse) {
            for (((dx, dgain), x), gain) in dx.iter_mut().zip(&mut dgain).zip(x).zip(gain) {
                // `dx` still holds dy here; the next line makes it dy · g.
                *dgain += *dx * (x * inverse);
                *dx *= gain;
            }
            // mean(dy·g·x̂), x̂ = x · r: the row's `r` is multiplied in after the sum.
            let projection = fixed_order_dot(dx, x) * inverse / width as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx - x * inverse * projection);
            }
        }
        dgain
    }
}

fn sum_of_rows(rows: &[Vec<f32>], width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for row in rows {
        for (total, value) in total.iter_mut().zip(row) {
            *total += value;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_within, cases, draw, gradient, leaf, with_gradients};
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(40))]

        #[test]
        fn rms_norm_equals_its_reference(
            // Narrower rows leave a gradient that is the small rest of a cancellation.
            batch in 1usize..4, time in 1usize..140, width in 8usize..90, seed: u64,
        ) {
            let x = leaf(draw(seed, "x", batch * time * width), [batch, time, width]);
            let gain = leaf(draw(seed, "gain", width), [width]);
            let [expected, found] = [OpBackend::reference, OpBackend::native].map(|backend| {
                let y = rms_norm(x.clone(), gain.clone(), 1e-5, backend(Operands::F32));
                with_gradients(&y, seed, |grads| vec![gradient(&x, grads), gradient(&gain, grads)])
            });
            assert_within(&found, &expected, 2e-6, "y, dx, dgain");
        }
    }
}
