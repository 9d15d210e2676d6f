//! The operations on Burn's CPU backend: one pass over the raw buffers, rows shared out over all
//! cores. Every sum over rows is cut into blocks of a fixed size, so the number of threads never
//! changes a bit.

use std::sync::Arc;

use bitnet_format::norm::{fixed_order_dot, rms_norm_row};
use bitnet_format::quant::{ActivationScale, WeightScale};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use crate::ops::TrainOps;
use crate::ops::autodiff::Differentiable;

/// Rows whose contribution to a sum over rows is added up before the blocks are.
const ROW_BLOCK: usize = 64;

/// What the norm keeps: its input and one factor a row.
#[derive(Clone, Debug)]
pub(crate) struct SavedNorm {
    x: FlexTensor,
    gain: FlexTensor,
    inverse: Arc<Vec<f32>>,
}

/// What the linear layer keeps: codes of one byte and the scales, no float activations.
#[derive(Clone, Debug)]
pub(crate) struct SavedLinear {
    levels: Arc<Vec<i8>>,
    scales: Arc<Vec<f32>>,
    codes: Arc<Vec<i8>>,
    weight: WeightScale,
    /// Shape of the input, `[.., in]`.
    shape: Shape,
    out: usize,
}

impl TrainOps for Flex {
    fn rms_norm(x: FlexTensor, gain: FlexTensor, eps: f32) -> FlexTensor {
        Self::rms_norm_forward(x, gain, eps).0
    }

    fn bit_linear(x: FlexTensor, latents: FlexTensor) -> FlexTensor {
        Self::bit_linear_forward(x, latents).0
    }
}

impl Differentiable for Flex {
    type SavedNorm = SavedNorm;
    type SavedLinear = SavedLinear;

    fn rms_norm_forward(x: FlexTensor, gain: FlexTensor, eps: f32) -> (FlexTensor, SavedNorm) {
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

    fn rms_norm_backward(saved: SavedNorm, dy: FlexTensor) -> (FlexTensor, FlexTensor) {
        let dy = dy.to_contiguous();
        let (x, gain, dy_rows) = (floats(&saved.x), floats(&saved.gain), floats(&dy));
        let width = gain.len();
        let block = ROW_BLOCK * width;
        let mut dx = vec![0.0; x.len()];
        let blocks =
            dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy_rows.par_chunks(block));
        let partial: Vec<Vec<f32>> = blocks
            .zip(saved.inverse.par_chunks(ROW_BLOCK))
            .map(|(((dx, x), dy), inverse)| {
                let mut dgain = vec![0.0; width];
                for (row, &inverse) in inverse.iter().enumerate() {
                    let range = row * width..(row + 1) * width;
                    let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
                    norm_row_backward(x, gain, inverse, dy, &mut dx[range], &mut dgain);
                }
                dgain
            })
            .collect();
        let dgain = sum_of_rows(&partial, width);
        (tensor(dx, saved.x.shape()), tensor(dgain, saved.gain.shape()))
    }

    fn bit_linear_forward(x: FlexTensor, latents: FlexTensor) -> (FlexTensor, SavedLinear) {
        let (x, latents) = (x.to_contiguous(), latents.to_contiguous());
        let (shape, weight_shape) = (x.shape(), latents.shape());
        let (out, width) = (weight_shape[0], weight_shape[1]);
        let (codes_f32, codes, weight) = quantise_weights(floats(&latents));
        let (levels_f32, levels, scales) = quantise_rows(floats(&x), width);
        let rows = scales.len();
        let product = Self::float_matmul(
            tensor(levels_f32, Shape::from([rows, width])),
            Self::float_transpose(tensor(codes_f32, weight_shape)),
        );
        let mut product = product.to_contiguous();
        product.storage_mut::<f32>().par_chunks_mut(out).zip(&scales).with_min_len(16).for_each(
            |(y, scale)| {
                for y in y {
                    *y = *y * weight.multiplier() / scale;
                }
            },
        );
        let y = product.reshape(with_last(&shape, out));
        let (levels, scales) = (Arc::new(levels), Arc::new(scales));
        (y, SavedLinear { levels, scales, codes: Arc::new(codes), weight, shape, out })
    }

    fn bit_linear_backward(saved: SavedLinear, dy: FlexTensor) -> (FlexTensor, FlexTensor) {
        let dy = dy.to_contiguous();
        let (rows, out) = (saved.scales.len(), saved.out);
        let width = saved.codes.len() / out;
        let (for_x, for_w) = scaled_twice(floats(&dy), &saved.scales, out, saved.weight);
        let codes = tensor(widen(&saved.codes), Shape::from([out, width]));
        let dx = Self::float_matmul(tensor(for_x, Shape::from([rows, out])), codes);
        let levels = tensor(widen(&saved.levels), Shape::from([rows, width]));
        let for_w = Self::float_transpose(tensor(for_w, Shape::from([rows, out])));
        let dw = Self::float_matmul(for_w, levels);
        (dx.to_contiguous().reshape(saved.shape), dw)
    }
}

/// `dx = inverse · (dy·g − x̂ · mean(dy·g·x̂))` and `dg += dy·x̂` with `x̂ = x · inverse`.
fn norm_row_backward(
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

/// Codes of latents as f32 for the product and as bytes for the backward pass.
fn quantise_weights(latents: &[f32]) -> (Vec<f32>, Vec<i8>, WeightScale) {
    let scale = WeightScale::of_latents(latents);
    let inverse = scale.inverse();
    let codes: Vec<f32> = latents
        .iter()
        .map(|w| round_ties_even((w * inverse).clamp(-1.5, 1.5)).clamp(-1.0, 1.0))
        .collect();
    let bytes = codes.iter().map(|&code| code as i8).collect();
    (codes, bytes, scale)
}

/// Levels of activations `[rows, width]` as f32 and as bytes, and one scale a row.
fn quantise_rows(x: &[f32], width: usize) -> (Vec<f32>, Vec<i8>, Vec<f32>) {
    let mut levels = vec![0.0; x.len()];
    let mut bytes = vec![0; x.len()];
    let mut scales = vec![0.0; x.len() / width];
    let rows =
        levels.par_chunks_mut(width).zip(bytes.par_chunks_mut(width)).zip(x.par_chunks(width));
    rows.zip(&mut scales).with_min_len(16).for_each(|(((levels, bytes), x), scale)| {
        let multiplier = ActivationScale::from_absmax(absmax(x)).multiplier();
        *scale = multiplier;
        for ((level, byte), x) in levels.iter_mut().zip(bytes).zip(x) {
            *level = round_ties_even(x * multiplier).clamp(-128.0, 127.0);
            *byte = *level as i8;
        }
    });
    (levels, bytes, scales)
}

/// Largest magnitude, in lanes so that it vectorises; the order cannot matter.
fn absmax(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder().iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.iter().fold(tail, |max, &lane| max.max(lane))
}

/// Half to even for |x| below 2²², by pushing the fraction out of the mantissa. It vectorises
/// where `f32::round_ties_even` is a library call, and NaN stays NaN.
fn round_ties_even(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2²³
    (x + SHIFT) - SHIFT
}

/// `dy · m` for the input's gradient and `dy / a` for the latents'.
fn scaled_twice(
    dy: &[f32],
    scales: &[f32],
    out: usize,
    weight: WeightScale,
) -> (Vec<f32>, Vec<f32>) {
    let (mut for_x, mut for_w) = (vec![0.0; dy.len()], vec![0.0; dy.len()]);
    let rows = for_x.par_chunks_mut(out).zip(for_w.par_chunks_mut(out)).zip(dy.par_chunks(out));
    rows.zip(scales).with_min_len(16).for_each(|(((for_x, for_w), dy), scale)| {
        for ((for_x, for_w), dy) in for_x.iter_mut().zip(for_w).zip(dy) {
            *for_x = dy * weight.multiplier();
            *for_w = dy / scale;
        }
    });
    (for_x, for_w)
}

fn widen(codes: &[i8]) -> Vec<f32> {
    codes.par_iter().with_min_len(1 << 14).map(|&code| f32::from(code)).collect()
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

/// The values of a contiguous f32 tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was made contiguous and is f32")
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.to_vec();
    *dims.last_mut().expect("a tensor of at least one dimension") = last;
    Shape::from(dims)
}
