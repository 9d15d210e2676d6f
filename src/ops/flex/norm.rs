//! `RMSNorm` and its gradients.

use std::sync::Arc;

use bitnet_format::norm::{fixed_order_dot, rms_norm_row};
use burn::backend::TensorMetadata;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, tensor};

/// Rows whose contribution to a sum over rows is added up before the blocks are.
const ROW_BLOCK: usize = 64;

/// What the norm keeps: its input and one factor a row.
#[derive(Clone, Debug)]
pub(crate) struct SavedNorm {
    x: FlexTensor,
    gain: FlexTensor,
    inverse: Arc<Vec<f32>>,
}

pub(crate) fn forward(x: FlexTensor, gain: FlexTensor, eps: f32) -> (FlexTensor, SavedNorm) {
    let (x, gain) = (x.to_contiguous(), gain.to_contiguous());
    let (rows, weights) = (floats(&x), floats(&gain));
    let width = weights.len();
    let mut y = vec![0.0; rows.len()];
    let mut inverse = vec![0.0; rows.len() / width];
    y.par_chunks_mut(width)
        .zip(rows.par_chunks(width))
        .zip(&mut inverse)
        .with_min_len(16)
        .for_each(|((y, x), inverse)| *inverse = rms_norm_row(x, weights, eps, y));
    let y = tensor(y, x.shape());
    (y, SavedNorm { x, gain, inverse: Arc::new(inverse) })
}

impl Saved<Flex, 2> for SavedNorm {
    /// Gradients of input and gain.
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 2] {
        let dy = dy.to_contiguous();
        let (x, gain, dy_rows) = (floats(&self.x), floats(&self.gain), floats(&dy));
        let width = gain.len();
        let block = ROW_BLOCK * width;
        let mut dx = vec![0.0; x.len()];
        let blocks =
            dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy_rows.par_chunks(block));
        let partial: Vec<Vec<f32>> = blocks
            .zip(self.inverse.par_chunks(ROW_BLOCK))
            .map(|(((dx, x), dy), inverse)| {
                let mut dgain = vec![0.0; width];
                for (row, &inverse) in inverse.iter().enumerate() {
                    let range = row * width..(row + 1) * width;
                    let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
                    row_backward(x, gain, inverse, dy, &mut dx[range], &mut dgain);
                }
                dgain
            })
            .collect();
        let dgain = sum_of_rows(&partial, width);
        [tensor(dx, self.x.shape()), tensor(dgain, self.gain.shape())]
    }
}

/// `dx = inverse · (dy·g − x̂ · mean(dy·g·x̂))` and `dg += dy·x̂` with `x̂ = x · inverse`.
fn row_backward(
    x: &[f32],
    gain: &[f32],
    inverse: f32,
    dy: &[f32],
    dx: &mut [f32],
    dgain: &mut [f32],
) {
    for ((dx, dy), gain) in dx.iter_mut().zip(dy).zip(gain) {
        *dx = dy * gain;
    }
    let projection = fixed_order_dot(dx, x) * inverse / x.len() as f32;
    for (((dx, dgain), &x), &dy) in dx.iter_mut().zip(dgain).zip(x).zip(dy) {
        let normed = x * inverse;
        *dx = inverse * (*dx - normed * projection);
        *dgain += dy * normed;
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
