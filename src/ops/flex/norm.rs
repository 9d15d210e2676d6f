//! `RMSNorm` and its gradients.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::sync::Arc;

use bitnet_format::norm::{fixed_order_dot, rms_norm_row};
use bitnet_kernels::Work;
use burn::backend::TensorMetadata;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::ops::Compute;
use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows_with, into_floats, tensor};

/// Rows whose contribution to a sum over rows is added up before the blocks are.
const ROW_BLOCK: usize = 64;

/// What the norm keeps: its input and one factor a row.
#[derive(Clone, Debug)]
pub(crate) struct SavedNorm {
    x: FlexTensor,
    gain: FlexTensor,
    inverse: Arc<Vec<f32>>,
    compute: Compute,
}

pub(crate) fn forward(
    x: FlexTensor,
    gain: FlexTensor,
    eps: f32,
    compute: Compute,
) -> (FlexTensor, SavedNorm) {
    let (x, gain) = (x.to_contiguous(), gain.to_contiguous());
    let (rows, weights) = (floats(&x), floats(&gain));
    let (width, kernel) = (weights.len(), compute.kernel);
    let mut y = vec![0.0; rows.len()];
    let mut inverse = vec![0.0; rows.len() / width];
    in_rows_with(&mut y, width, &mut inverse, |first, y, inverse| {
        let x = &rows[first * width..][..y.len()];
        kernel.compiled(Forward { x, gain: weights, eps, y, inverse });
    });
    let y = tensor(y, x.shape());
    (y, SavedNorm { x, gain, inverse: Arc::new(inverse), compute })
}

struct Forward<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
    inverse: &'a mut [f32],
}

impl Work for Forward<'_> {
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

impl Saved<Flex, 2> for SavedNorm {
    /// Gradients of input and gain; the first takes the place of `dy`.
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 2] {
        let (x, gain, mut dx) = (floats(&self.x), floats(&self.gain), into_floats(dy));
        let (width, kernel) = (gain.len(), self.compute.kernel);
        let block = ROW_BLOCK * width;
        let blocks = dx.par_chunks_mut(block).zip(x.par_chunks(block));
        let partial: Vec<Vec<f32>> = blocks
            .zip(self.inverse.par_chunks(ROW_BLOCK))
            .map(|((dx, x), inverse)| kernel.compiled(Backward { x, gain, inverse, dx }))
            .collect();
        let dgain = sum_of_rows(&partial, width);
        [tensor(dx, self.x.shape()), tensor(dgain, self.gain.shape())]
    }
}

/// `dx = inverse · (dy·g − x̂ · mean(dy·g·x̂))` and `dg += dy·x̂` with `x̂ = x · inverse`.
struct Backward<'a> {
    x: &'a [f32],
    gain: &'a [f32],
    inverse: &'a [f32],
    /// `dy` before.
    dx: &'a mut [f32],
}

impl Work for Backward<'_> {
    /// What some rows add to the gain's gradient.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Self { x, gain, inverse, dx } = self;
        let width = gain.len();
        let mut dgain = vec![0.0; width];
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), inverse) in rows.zip(inverse) {
            for (((dx, dgain), x), gain) in dx.iter_mut().zip(&mut dgain).zip(x).zip(gain) {
                *dgain += *dx * (x * inverse);
                *dx *= gain;
            }
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
