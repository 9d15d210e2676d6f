//! `BitLinear` (arXiv 2402.17764 and 2504.12285, §2): 8-bit activations times ternary weights.
//!
//! ```text
//! a[t] = 127 / max|x[t]|            q[t] = round(x[t] · a[t])         activation codes, one scale a token
//! m    = mean|w|                    T    = clamp(round(w / m), ±1)    weight codes, one scale a matrix
//! y[t,o] = (Σ q[t,i] · T[o,i]) · m / a[t]
//! ```
//!
//! The codes are multiplied first and scaled afterwards. Sums of integers below 2²⁴ are exact in f32
//! in any order, so every device, the int8 kernels and the engine have the same accumulator to the
//! bit. Dequantising first would round each product, and the order of the sum would show.
//!
//! Rounding has no useful derivative. The straight-through estimator (STE) treats both quantisers as
//! the identity in the backward pass and gives the scales no gradient:
//!
//! ```text
//! dx[t] = dy[t] · (T·m)        dw = Σ_t dyᵀ[t] · (q[t] / a[t])
//! ```
//!
//! With 8-bit gradients both products are integer products (`int8`).
//!
//! Matrices that share an input (queries, keys and values; gate and up) are multiplied together:
//! their rows are stacked, the activations are quantised once, and the outputs lie side by side.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;
use std::sync::Arc;

use bitnet_format::quant::{SCALE_EPS, WeightScale};
use bitnet_kernels::{
    Activations, Kernel, MatrixA, MatrixB, OperandLayout, Scale, SimdWork, Size, TernaryPanels,
    matmul,
};
use burn::backend::TensorMetadata;
use burn::tensor::{Shape, Tensor};
use burn_flex::FlexTensor;

use crate::device;
use crate::latents::Latents;
use crate::ops::backend::{GradientFormat, OpBackend};
use crate::ops::int8::{Int8Backward, RoundingCounts};
use crate::ops::merged_latents::FactorValues;
use crate::ops::native::{
    NativeOp, floats, in_rows_with, product, tensor, unwritten, with_last, with_matrices,
};
use crate::ops::outside_latents::{OutsideLatents, quantise_outside};

/// How layers are computed, and where they count what 8-bit gradients lose.
#[derive(Clone, Debug)]
pub struct LinearSettings<const N: usize> {
    /// Kernel and number formats.
    pub backend: OpBackend,
    /// Counts of each layer, which the backward pass adds to.
    pub counts: [Arc<RoundingCounts>; N],
}

impl<const N: usize> From<OpBackend> for LinearSettings<N> {
    fn from(backend: OpBackend) -> Self {
        Self { backend, counts: std::array::from_fn(|_| Arc::default()) }
    }
}

/// Quantised linear layers over latents with one input: `x [B, T, in]`, one to three matrices
/// `[outᵢ, in]` → `[B, T, Σ outᵢ]`
///
/// # Panics
/// With no matrix or more than three.
pub fn bit_linear<const N: usize>(
    x: Tensor<3>,
    latents: [Tensor<2>; N],
    settings: impl Into<LinearSettings<N>>,
) -> Tensor<3> {
    let LinearSettings { backend, counts } = settings.into();
    if !backend.is_native() {
        return reference(x, latents, backend);
    }
    with_matrices(
        x,
        latents,
        NativeBitLinear { backend, counts: counts.into(), outside: Vec::new() },
    )
}

/// The same layers over latents that lie outside of tensors, merged with low-rank factors where there
/// are any; each of `leaves`, empty matrices, gets the gradient of one of them.
///
/// # Panics
/// With no matrix or more than three, or on a device that has no native operations.
pub fn bit_linear_outside<const N: usize>(
    x: Tensor<3>,
    leaves: [Tensor<2>; N],
    latents: [(&Latents, Option<FactorValues>); N],
    settings: impl Into<LinearSettings<N>>,
) -> Tensor<3> {
    let LinearSettings { backend, counts } = settings.into();
    assert!(backend.is_native(), "such latents lie in the host's memory");
    let outside = latents.into_iter().zip(&leaves);
    let outside = outside.map(|((latents, factors), leaf)| OutsideLatents {
        latents: latents.clone(),
        factors: factors.map(Arc::new),
        is_trained: leaf.is_require_grad(),
    });
    let op = NativeBitLinear { backend, counts: counts.into(), outside: outside.collect() };
    with_matrices(x, leaves, op)
}

/// With bf16 operands the codes are still exact, but a backend returns the product in bf16 too.
fn reference<const N: usize>(
    x: Tensor<3>,
    latents: [Tensor<2>; N],
    backend: OpBackend,
) -> Tensor<3> {
    let (codes, scale) = activation_codes(&x);
    let matrices = latents.map(weight_codes);
    let of_rows =
        |(codes, scale): &(Tensor<2>, Tensor<2>)| scale.clone().expand([1, codes.dims()[0]]);
    // Stacked matrices keep a scale each, so theirs are laid out by rows.
    let weight_scales = Tensor::cat(matrices.iter().map(of_rows).collect(), 1); // [1, Σ out]
    let weights = Tensor::cat(matrices.map(|(codes, _)| codes).into(), 0);
    let sums = backend.matmul(codes, weights.transpose().unsqueeze());
    // The order of `ActivationScale::rescale`: times the weight scale, then over the token's.
    sums * weight_scales.unsqueeze() / scale
}

/// A quantised linear layer over codes `[out, in]` that were packed before.
pub fn frozen_linear(x: Tensor<3>, codes: Tensor<2>, weight: WeightScale) -> Tensor<3> {
    let (activations, scale) = activation_codes(&x);
    let sums = activations.matmul(codes.transpose().unsqueeze());
    sums.mul_scalar(weight.multiplier()).div(scale)
}

/// 8-bit codes of activations `[B, T, C]` that carry their gradient, and their scales `[B, T, 1]`.
pub fn activation_codes(x: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    // `detach`: quantising is not part of the graph. Its gradient is joined below.
    let values = x.clone().detach();
    let scale = values.clone().abs().max_dim(2).clamp_min(SCALE_EPS).recip().mul_scalar(127.0);
    let codes = (values * scale.clone()).round().clamp(-128.0, 127.0);
    (straight_through(codes, x, &scale), scale)
}

/// Ternary codes of latents `[out, in]` that carry their gradient, and their scale `[1, 1]`.
pub fn weight_codes(latents: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let values = latents.clone().detach();
    let scale = absmean(&values);
    let inverse = scale.clone().recip();
    // Burn rounds half to even, as the definition does.
    let codes = (values * inverse.clone()).round().clamp(-1.0, 1.0);
    (straight_through(codes, &latents, &inverse), scale)
}

/// The scale of latents, `[1, 1]`. Where the host shares the device's memory it is the format's own
/// definition. Elsewhere reading the sum back would stall the device, so the device sums in f32 and
/// in its own order.
fn absmean(latents: &Tensor<2>) -> Tensor<2> {
    let device = latents.device();
    if !device::shares_memory(&device) {
        return latents.clone().abs().mean_dim(1).mean_dim(0).clamp_min(SCALE_EPS);
    }
    let data = latents.clone().inner().into_data();
    let scale = WeightScale::of_latents(data.as_slice().expect("latents are f32"));
    Tensor::from_floats([[scale.multiplier()]], &device)
}

/// `codes` with the gradient of `x · scale`: the term that is added is exactly zero.
pub(super) fn straight_through<const D: usize>(
    codes: Tensor<D>,
    x: &Tensor<D>,
    scale: &Tensor<D>,
) -> Tensor<D> {
    // The form of the STE that keeps the codes exact:
    //
    //    forward    q + (x - x) · a = q + 0        the codes, to the bit
    //    backward   d/dx = a                       as if q were x · a
    //
    // The usual `x + (q - x).detach()` rounds twice on the way forward, and codes would no longer
    // be integers. (An infinite x gives NaN here, which training must see.)
    codes + (x.clone() - x.clone().detach()) * scale.clone()
}

#[derive(Clone, Debug)]
struct NativeBitLinear {
    backend: OpBackend,
    counts: Vec<Arc<RoundingCounts>>,
    /// The latents, where they are not tensors.
    outside: Vec<OutsideLatents>,
}

/// Codes of one byte and the scales; no float activations.
#[derive(Clone, Debug)]
struct SavedBitLinear {
    /// Activation codes `[M, in]`.
    activations: Arc<Vec<i8>>,
    /// `1 / a` of each token.
    inverse_scales: Arc<Vec<f32>>,
    /// Weight codes of all matrices, stacked: `[Σ out, in]`.
    weights: Arc<Vec<i8>>,
    /// `m` of each row's matrix, `[Σ out]`.
    weight_scales: Arc<Vec<f32>>,
    /// Rows of each matrix, and whether its gradient is asked for.
    heights: Vec<(usize, bool)>,
    /// Rows of each matrix, and where it counts.
    counts: Vec<(usize, Arc<RoundingCounts>)>,
    /// Shape of the input, `[.., in]`.
    shape: Shape,
    backend: OpBackend,
}

/// The inputs are `x` and then the matrices.
impl<const N: usize> NativeOp<N> for NativeBitLinear {
    type Saved = SavedBitLinear;

    fn forward(self, inputs: [FlexTensor; N]) -> (FlexTensor, SavedBitLinear) {
        let inputs = inputs.map(|tensor| tensor.to_contiguous());
        let (x, latents) = inputs.split_first().expect("an input before the matrices");
        let (shape, kernel) = (x.shape(), self.backend.kernel);
        let width = shape[shape.num_dims() - 1];
        let (panels, weights, heights) = if self.outside.is_empty() {
            let matrices: Vec<_> = latents.iter().map(floats).collect();
            let (panels, codes) = TernaryPanels::of_latents(kernel, &matrices, width);
            let heights = matrices.iter().map(|matrix| (matrix.len() / width, true)).collect();
            (panels, codes, heights)
        } else {
            quantise_outside(&self.outside, width, kernel)
        };
        let rows = panels.rows();
        // The engine's own kernel: training and inference share the accumulator to the bit.
        let found = quantised_product(kernel, floats(x), [width, rows], |x, y| {
            matmul(kernel, &panels, x, 0..rows, y);
        });
        let saved = SavedBitLinear {
            activations: found.codes,
            inverse_scales: found.inverse_scales,
            weights: Arc::new(weights),
            weight_scales: Arc::new(panels.scales().to_vec()),
            counts: heights.iter().map(|(height, _)| *height).zip(self.counts).collect(),
            heights,
            shape: shape.clone(),
            backend: self.backend,
        };
        (tensor(found.y, with_last(&shape, rows)), saved)
    }

    fn backward(saved: SavedBitLinear, dy: FlexTensor) -> [FlexTensor; N] {
        let dy = dy.to_contiguous();
        let dx = saved.input_gradient(floats(&dy));
        let matrices = saved.matrix_gradients(floats(&dy));
        let mut all = std::iter::once(tensor(dx, saved.shape.clone())).chain(matrices);
        std::array::from_fn(|_| all.next().expect("a gradient for each input"))
    }
}

/// The products of quantised activations `[M, in]` with `out` rows, which `product` computes for some
/// tokens.
pub(super) fn quantised_product(
    kernel: Kernel,
    values: &[f32],
    [width, out]: [usize; 2],
    product: impl Fn(&Activations, &mut [f32]) + Sync,
) -> QuantisedProduct {
    let tokens = values.len() / width;
    let (mut y, mut codes) = (unwritten(tokens * out), unwritten(values.len()));
    let mut scales = vec![0.0; tokens];
    let mut saved: Vec<_> = codes.chunks_mut(width).zip(&mut scales).collect();
    in_rows_with(&mut y, out, &mut saved, |first, y, saved| {
        // Each thread quantises the tokens whose products it computes.
        let values = &values[first * width..][..saved.len() * width];
        let x = Activations::quantise(kernel, values, width);
        product(&x, y);
        let rows = saved.iter_mut().zip(y.chunks_exact_mut(out)).zip(values.chunks_exact(width));
        for (token, (((codes, scale), y), values)) in rows.enumerate() {
            codes.copy_from_slice(x.codes(token));
            **scale = 1.0 / x.scale(token).multiplier();
            // An integer code cannot hold NaN, and training must see it.
            if kernel.dispatch(AnyNan(values)) {
                y.fill(f32::NAN);
                **scale = f32::NAN;
            }
        }
    });
    QuantisedProduct { y, codes: Arc::new(codes), inverse_scales: Arc::new(scales) }
}

/// A product with quantised activations, and what its backward pass needs of them.
pub(super) struct QuantisedProduct {
    /// `[M, out]`
    pub(super) y: Vec<f32>,
    /// Activation codes `[M, in]`.
    pub(super) codes: Arc<Vec<i8>>,
    /// `1 / a` of each token.
    pub(super) inverse_scales: Arc<Vec<f32>>,
}

/// Whether any of the values is NaN, without a branch for each value.
struct AnyNan<'a>(&'a [f32]);

impl SimdWork for AnyNan<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().fold(false, |found, value| found | value.is_nan())
    }
}

impl SavedBitLinear {
    /// The backward pass in integers, where it is one.
    fn int8(&self) -> Option<Int8Backward<'_>> {
        let GradientFormat::Int8(rounding) = self.backend.gradients else { return None };
        Some(Int8Backward {
            kernel: self.backend.kernel,
            rounding,
            time: self.shape[self.shape.num_dims() - 2],
            activations: &self.activations,
            inverse_scales: &self.inverse_scales,
            weights: &self.weights,
            weight_scales: &self.weight_scales,
            matrices: &self.counts,
        })
    }

    // Otherwise each gradient is a float product with one operand of small integers, which bf16 holds exactly
    // too; the scale goes into the other operand before it is rounded.

    /// The gradient of the input, `[M, in]`.
    fn input_gradient(&self, dy: &[f32]) -> Vec<f32> {
        if let Some(int8) = self.int8() {
            return int8.input(dy);
        }
        let (out, tokens) = (self.weight_scales.len(), self.inverse_scales.len());
        let width = self.weights.len() / out;
        let mut dx = unwritten(tokens * width);
        let size = Size { rows: tokens, depth: out, columns: width };
        // `dx[t,i] = Σ_o (dy[t,o] · m[o]) · T[o,i]`: the scale differs along the sum, so it goes
        // into `dy`.
        let scale = Scale::Each(&self.weight_scales);
        let a = MatrixA { values: dy, layout: OperandLayout::KInner, stride: out, first: 0, scale };
        product(self.backend, size, a, MatrixB::Codes(&self.weights), false, &mut dx);
        dx
    }

    /// The gradient of each matrix, `[outᵢ, in]`; of one that is not trained, `[0, 0]`. Each has memory of
    /// its own: the part of a vector that is cut off would keep the room of the whole.
    fn matrix_gradients(&self, dy: &[f32]) -> Vec<FlexTensor> {
        let width = self.weights.len() / self.weight_scales.len();
        let mut first = 0;
        let trained_rows = |&(height, is_trained): &(usize, bool)| {
            let start = first;
            first += height;
            start..if is_trained { first } else { start }
        };
        let rows: Vec<_> = self.heights.iter().map(trained_rows).collect();
        let gradients = match self.int8() {
            Some(int8) => int8.weights(dy, &rows),
            None => rows.iter().map(|rows| self.weight_gradient(dy, rows.clone())).collect(),
        };
        let shape = |rows: &Range<usize>| match rows.len() {
            0 => [0, 0],
            height => [height, width],
        };
        let of_matrix =
            |(values, rows): (Vec<f32>, &Range<usize>)| tensor(values, Shape::from(shape(rows)));
        gradients.into_iter().zip(&rows).map(of_matrix).collect()
    }

    /// The gradient of some rows of the stacked matrices, `[rows, in]`.
    fn weight_gradient(&self, dy: &[f32], rows: Range<usize>) -> Vec<f32> {
        if rows.is_empty() {
            return Vec::new();
        }
        let (out, tokens) = (self.weight_scales.len(), self.inverse_scales.len());
        let width = self.weights.len() / out;
        let mut dw = unwritten(rows.len() * width);
        let size = Size { rows: rows.len(), depth: tokens, columns: width };
        // `dw[o,i] = Σ_t (dy[t,o] / a[t]) · q[t,i]`: here the sum runs over tokens, and so does the
        // scale.
        let (scale, first) = (Scale::Each(&self.inverse_scales), rows.start);
        let a = MatrixA { values: dy, layout: OperandLayout::KOuter, stride: out, first, scale };
        product(self.backend, size, a, MatrixB::Codes(&self.activations), false, &mut dw);
        dw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        PRECISIONS, assert_within, cases, compare, draw, gradient, host, leaf, with_gradients,
    };
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    /// Compares layers of these heights with one input, and the bits of their outputs in f32.
    fn check<const N: usize>([batch, time, width]: [usize; 3], heights: [usize; N], seed: u64) {
        let run = |backend: OpBackend, seed: u64| {
            let x = leaf(draw(seed, "x", batch * time * width), [batch, time, width]);
            let w = std::array::from_fn(|i| {
                let seed = seed.wrapping_add(i as u64);
                leaf(draw(seed, "w", heights[i] * width), [heights[i], width])
            });
            with_gradients(&bit_linear::<N>(x.clone(), w.clone(), backend), seed, |grads| {
                let mut all = vec![gradient(&x, grads)];
                all.extend(w.iter().map(|w| gradient(w, grads)));
                all
            })
        };
        compare("linear", 1.0, seed, run);
        let run = |backend| run(backend, seed).swap_remove(0);
        let exact = run(OpBackend::reference(Operands::F32));
        for operands in PRECISIONS {
            let found = run(OpBackend::native(operands));
            assert_eq!(found, exact, "sums of integers: the outputs have the same bits");
        }
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn one_layer_equals_its_reference(
            batch in 1usize..4, time in 1usize..40, width in 1usize..90, out in 1usize..70, seed: u64,
        ) {
            check([batch, time, width], [out], seed);
        }

        #[test]
        fn layers_with_one_input_equal_their_references(
            time in 1usize..40, width in 1usize..70, out in prop::array::uniform3(1usize..40),
            seed: u64,
        ) {
            check([1, time, width], out, seed);
            check([1, time, width], [out[0], out[1]], seed);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_reaches_the_output() {
        let x = leaf(vec![1.0, f32::NAN, 2.0, 3.0], [1, 2, 2]);
        let w = leaf(vec![1.0, -1.0], [1, 2]);
        let y = host(bit_linear(x, [w], OpBackend::native(Operands::F32)));
        assert!(y[0].is_nan() && y[1].is_finite());
    }

    #[test]
    fn zero_rows_give_zero_and_finite_gradients() {
        let x = leaf(vec![0.0; 6], [1, 2, 3]);
        let w = leaf(vec![0.0; 6], [2, 3]);
        let y = bit_linear(x.clone(), [w.clone()], OpBackend::native(Operands::F32));
        let all = with_gradients(&y, 1, |grads| vec![gradient(&x, grads), gradient(&w, grads)]);
        assert_within(&all[..1], &[vec![0.0; 4]], 0.0, "y");
        assert!(all.iter().flatten().all(|value| value.is_finite()));
    }
}
