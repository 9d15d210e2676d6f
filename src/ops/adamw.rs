//! One `AdamW` update (arXiv 1711.05101) in the order of `torch.optim.AdamW`, and the sum of squares
//! that gradient clipping needs. Neither is part of an autodiff graph.
//!
//! ```text
//! g = gradient · factor                        mean over the batch, and clipping
//! m = m + (g − m) · (1 − β₁)
//! v = v · β₂ + g² · (1 − β₂)
//! w = w · keep − m · step / (√v / root + ε)    keep = 1 − lr·decay, step = lr / (1 − β₁ᵗ),
//!                                              root = √(1 − β₂ᵗ)
//! ```
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::SimdWork;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Shape, Tensor};
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use crate::ops::OpBackend;
use crate::ops::native::{floats, tensor};

/// Elements that one task updates. Sums of squares are cut at its multiples, whatever the number of
/// threads, so that their order is fixed.
const CHUNK: usize = 1 << 15;

/// The numbers of one `AdamW` update.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate {
    /// Factor of the gradient: mean and clipping.
    pub gradient: f32,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Factor of the value: weight decay.
    pub keep: f64,
    /// Factor of the first moment: the learning rate over the bias correction.
    pub step: f64,
    /// Divisor of the second moment's root: its bias correction.
    pub root: f64,
}

/// One update of a parameter: value, gradient and moments `[elements]` → new value and moments.
pub fn adamw(
    value: Tensor<1>,
    gradient: Tensor<1>,
    first: Tensor<1>,
    second: Tensor<1>,
    update: AdamWUpdate,
    backend: OpBackend,
) -> [Tensor<1>; 3] {
    let tensors = [value, gradient, first, second];
    if !backend.is_native() {
        return reference(tensors, update);
    }
    let [value, gradient, first, second] = tensors.map(Tensor::into_dispatch);
    let (value, first, second) = Dispatch::adamw(value, gradient, first, second, update, backend);
    [value, first, second].map(Tensor::from_dispatch)
}

/// `Σ x²`, `[1]`, summed in a fixed order.
pub fn sum_of_squares(x: Tensor<1>, backend: OpBackend) -> Tensor<1> {
    if !backend.is_native() {
        return x.square().sum();
    }
    Tensor::from_dispatch(Dispatch::sum_of_squares(x.into_dispatch(), backend))
}

fn reference(
    [value, gradient, first, second]: [Tensor<1>; 4],
    update: AdamWUpdate,
) -> [Tensor<1>; 3] {
    let AdamWUpdate { gradient: factor, beta1, beta2, eps, keep, step, root } = update;
    let gradient = gradient.mul_scalar(factor);
    let first = first.clone() + (gradient.clone() - first).mul_scalar(1.0 - beta1);
    // Factors in the order of the native loop: another would round differently.
    let second = second.mul_scalar(beta2) + gradient.clone().mul_scalar(1.0 - beta2) * gradient;
    let size = second.clone().sqrt().div_scalar(root).add_scalar(eps);
    let value = value.mul_scalar(keep) - first.clone().mul_scalar(step) / size;
    [value, first, second]
}

/// The native side. These operations return several tensors or need no gradients, so they are not a
/// `NativeOp`.
#[backend_extension(Flex)]
trait OptimizerOps: Backend {
    fn adamw(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: AdamWUpdate,
        backend: OpBackend,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    fn sum_of_squares(x: FloatTensor<Self>, backend: OpBackend) -> FloatTensor<Self>;
}

impl OptimizerOps for Flex {
    /// One pass over all four tensors, in place where nothing else holds them.
    fn adamw(
        value: FlexTensor,
        gradient: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        update: AdamWUpdate,
        backend: OpBackend,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [mut value, gradient, mut first, mut second] =
            [value, gradient, first, second].map(|tensor| tensor.to_contiguous());
        let [values, firsts, seconds] =
            [&mut value, &mut first, &mut second].map(FlexTensor::storage_mut::<f32>);
        values
            .par_chunks_mut(CHUNK)
            .zip(firsts.par_chunks_mut(CHUNK))
            .zip(seconds.par_chunks_mut(CHUNK))
            .zip(floats(&gradient).par_chunks(CHUNK))
            .for_each(|(((value, first), second), gradient)| {
                backend.kernel.dispatch(UpdateChunk { value, gradient, first, second, update });
            });
        (value, first, second)
    }

    fn sum_of_squares(x: FlexTensor, backend: OpBackend) -> FlexTensor {
        let x = x.to_contiguous();
        let chunks = floats(&x).par_chunks(CHUNK);
        let sums: Vec<f32> = chunks.map(|chunk| backend.kernel.dispatch(Squares(chunk))).collect();
        // In f64 and in the order of the chunks, which no number of threads changes.
        let sum: f64 = sums.into_iter().map(f64::from).sum();
        tensor(vec![sum as f32], Shape::from([1]))
    }
}

/// The update of some elements, in place.
pub(crate) struct UpdateChunk<'a> {
    pub(crate) value: &'a mut [f32],
    pub(crate) gradient: &'a [f32],
    pub(crate) first: &'a mut [f32],
    pub(crate) second: &'a mut [f32],
    pub(crate) update: AdamWUpdate,
}

impl SimdWork for UpdateChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { value, gradient, first, second, update } = self;
        let AdamWUpdate { gradient: factor, beta1, beta2, eps, keep, step, root } = update;
        // Computed in f64 and rounded once, as torch does with its Python numbers.
        let [toward, beta2, square] = [1.0 - beta1, beta2, 1.0 - beta2].map(|x| x as f32);
        let [eps, keep, step, root] = [eps, keep, step, root].map(|x| x as f32);
        let elements = value.iter_mut().zip(first).zip(second).zip(gradient);
        for (((value, first), second), gradient) in elements {
            let gradient = gradient * factor;
            *first += (gradient - *first) * toward;
            *second = *second * beta2 + gradient * square * gradient;
            // Decoupled: decay shrinks the value and enters no moment.
            *value = *value * keep - *first * step / (second.sqrt() / root + eps);
        }
    }
}

struct Squares<'a>(&'a [f32]);

impl SimdWork for Squares<'_> {
    type Output = f32;

    /// 32 lanes, each summed in order, then the lanes in order, then the rest: the same order on
    /// every instruction set.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_within, cases, draw, host};
    use bitnet_kernels::Operands;
    use burn::tensor::Device;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(12))]

        #[test]
        fn adamw_and_the_sum_of_squares_equal_their_references(
            elements in 1usize..70_000, seed: u64,
        ) {
            let update = AdamWUpdate {
                gradient: 0.5, beta1: 0.9, beta2: 0.95, eps: 1e-8, keep: 0.999, step: 3e-3, root: 0.3,
            };
            let draw = |purpose: &str| {
                Tensor::<1>::from_floats(draw(seed, purpose, elements).as_slice(), &Device::flex())
            };
            let (value, gradient, first) = (draw("value"), draw("gradient"), draw("first"));
            let second = draw("second").square();
            let [expected, found] = [OpBackend::reference, OpBackend::native].map(|backend| {
                let backend = backend(Operands::F32);
                let squares = sum_of_squares(gradient.clone(), backend);
                let [value, gradient, first, second] = [&value, &gradient, &first, &second];
                let [value, gradient, first, second] = [value, gradient, first, second].map(Tensor::clone);
                let new = adamw(value, gradient, first, second, update, backend);
                new.into_iter().chain([squares]).map(host).collect::<Vec<_>>()
            });
            assert_within(&found, &expected, 1e-6, "value, moments, squares");
        }
    }
}
