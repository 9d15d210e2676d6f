//! One pass over a parameter, its gradient and its moments, shared out over all threads.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::Work;
use burn::tensor::Shape;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::ops::flex::{floats, tensor};
use crate::ops::{Compute, Update};

/// Elements of a piece; a sum of squares is cut at its multiples.
const PIECE: usize = 1 << 15;

/// Value, gradient, first and second moment → the new value and moments.
pub(crate) fn update(
    tensors: [FlexTensor; 4],
    update: Update,
    compute: Compute,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let [mut value, gradient, mut first, mut second] = tensors.map(|tensor| tensor.to_contiguous());
    let kernel = compute.kernel;
    // In place where nobody else holds the tensor, else in a copy.
    let [values, firsts, seconds] =
        [&mut value, &mut first, &mut second].map(FlexTensor::storage_mut::<f32>);
    values
        .par_chunks_mut(PIECE)
        .zip(firsts.par_chunks_mut(PIECE))
        .zip(seconds.par_chunks_mut(PIECE))
        .zip(floats(&gradient).par_chunks(PIECE))
        .for_each(|(((value, first), second), gradient)| {
            kernel.compiled(Piece { value, gradient, first, second, update });
        });
    (value, first, second)
}

pub(crate) fn sum_of_squares(x: &FlexTensor, compute: Compute) -> FlexTensor {
    let x = x.to_contiguous();
    let kernel = compute.kernel;
    let pieces: Vec<f32> =
        floats(&x).par_chunks(PIECE).map(|piece| kernel.compiled(Squares(piece))).collect();
    let sum: f64 = pieces.into_iter().map(f64::from).sum();
    tensor(vec![sum as f32], Shape::from([1]))
}

struct Piece<'a> {
    value: &'a mut [f32],
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    update: Update,
}

impl Work for Piece<'_> {
    type Output = ();

    /// In the order of operations of `torch.optim.AdamW`.
    #[inline(always)]
    fn run(self) {
        let Self { value, gradient, first, second, update } = self;
        let Update { gradient: factor, beta1, beta2, eps, keep, step, root } = update;
        let [toward, beta2, square] = [1.0 - beta1, beta2, 1.0 - beta2].map(|x| x as f32);
        let [eps, keep, step, root] = [eps, keep, step, root].map(|x| x as f32);
        let places = value.iter_mut().zip(first).zip(second).zip(gradient);
        for (((value, first), second), gradient) in places {
            let gradient = gradient * factor;
            *first += (gradient - *first) * toward;
            *second = *second * beta2 + gradient * square * gradient;
            *value = *value * keep - *first * step / (second.sqrt() / root + eps);
        }
    }
}

struct Squares<'a>(&'a [f32]);

impl Work for Squares<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        const LANES: usize = 32;
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for values in whole {
            for (lane, x) in lanes.iter_mut().zip(values) {
                *lane += x * x;
            }
        }
        lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
    }
}
