//! `BitLinear` and its gradients: 8-bit activations times ternary weights forward, float products
//! with one exact operand backward (`model::BitLinear` says why).
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::sync::Arc;

use bitnet_kernels::{Activations, Left, Order, Right, Scale, Size, TernaryPanels, Work, matmul};
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_flex::{Flex, FlexTensor};

use crate::ops::Compute;
use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows_with, product, tensor, with_last};

/// What the layer keeps: codes of one byte and the scales, no float activations.
#[derive(Clone, Debug)]
pub(crate) struct SavedLinear {
    /// 8-bit activations `[M, in]`.
    levels: Arc<Vec<i8>>,
    /// What each token's gradient is multiplied by on its way to the weights: 1 over its scale.
    inverses: Arc<Vec<f32>>,
    /// Ternary weights of all matrices, one below the other, `[Σ out, in]`.
    codes: Arc<Vec<i8>>,
    /// The scale of each row's matrix `[Σ out]`.
    weights: Arc<Vec<f32>>,
    /// Rows of each matrix.
    heights: Vec<usize>,
    /// Shape of the input, `[.., in]`.
    shape: Shape,
    compute: Compute,
}

/// Activations and their output from each row's matrix.
pub(crate) fn forward<const N: usize>(
    x: FlexTensor,
    latents: [FlexTensor; N],
    compute: Compute,
) -> (FlexTensor, SavedLinear) {
    let (x, latents) = (x.to_contiguous(), latents.map(|matrix| matrix.to_contiguous()));
    let (shape, values) = (x.shape(), floats(&x));
    let width = shape[shape.num_dims() - 1];
    let matrices = latents.each_ref().map(floats);
    let (panels, codes) = TernaryPanels::of_latents(compute.kernel, &matrices, width);
    let out = panels.rows();
    let mut y = vec![0.0; values.len() / width * out];
    let mut levels = vec![0; values.len()];
    let mut scales = vec![0.0; values.len() / width];
    let mut saved: Vec<_> = levels.chunks_mut(width).zip(&mut scales).collect();
    in_rows_with(&mut y, out, &mut saved, |first, y, saved| {
        let values = &values[first * width..][..saved.len() * width];
        let x = Activations::quantise(compute.kernel, values, width);
        matmul(compute.kernel, &panels, &x, 0..out, y);
        let rows = saved.iter_mut().zip(y.chunks_exact_mut(out)).zip(values.chunks_exact(width));
        for (token, (((levels, scale), y), values)) in rows.enumerate() {
            levels.copy_from_slice(x.codes(token));
            **scale = x.scale(token).multiplier();
            // Quantising hides what is no number; training must see it.
            if compute.kernel.compiled(AnyNan(values)) {
                y.fill(f32::NAN);
                **scale = f32::NAN;
            }
        }
    });
    let saved = SavedLinear {
        levels: Arc::new(levels),
        inverses: Arc::new(scales.into_iter().map(|scale| 1.0 / scale).collect()),
        codes: Arc::new(codes),
        weights: Arc::new(panels.scales().to_vec()),
        heights: matrices.iter().map(|matrix| matrix.len() / width).collect(),
        compute,
        shape: shape.clone(),
    };
    (tensor(y, with_last(&shape, out)), saved)
}

/// Whether any of the values is no number, asked without a branch a value.
struct AnyNan<'a>(&'a [f32]);

impl Work for AnyNan<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().fold(false, |found, value| found | value.is_nan())
    }
}

impl SavedLinear {
    /// Gradients of the input and of all matrices together, `[Σ out, in]`.
    fn gradients(&self, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (out, tokens) = (self.weights.len(), self.inverses.len());
        let width = self.codes.len() / out;
        let mut dx = vec![0.0; tokens * width];
        let size = Size { rows: tokens, depth: out, columns: width };
        let scale = Scale::Each(&self.weights);
        let left = Left { values: dy, order: Order::Inner, stride: out, first: 0, scale };
        product(self.compute, size, left, Right::Codes(&self.codes), false, &mut dx);
        let mut dw = vec![0.0; out * width];
        let size = Size { rows: out, depth: tokens, columns: width };
        let scale = Scale::Each(&self.inverses);
        let left = Left { values: dy, order: Order::Outer, stride: out, first: 0, scale };
        product(self.compute, size, left, Right::Codes(&self.levels), false, &mut dw);
        (dx, dw)
    }

    fn parts<const N: usize>(self, dy: &FlexTensor) -> (FlexTensor, [FlexTensor; N]) {
        let dy = dy.to_contiguous();
        let (dx, mut rest) = self.gradients(floats(&dy));
        let width = rest.len() / self.weights.len();
        let matrices = std::array::from_fn(|i| {
            let after = rest.split_off(self.heights[i] * width);
            let rows = std::mem::replace(&mut rest, after);
            tensor(rows, Shape::from([self.heights[i], width]))
        });
        (tensor(dx, self.shape), matrices)
    }
}

impl Saved<Flex, 2> for SavedLinear {
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 2] {
        let (dx, [a]) = self.parts(&dy);
        [dx, a]
    }
}

impl Saved<Flex, 3> for SavedLinear {
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 3] {
        let (dx, [a, b]) = self.parts(&dy);
        [dx, a, b]
    }
}

impl Saved<Flex, 4> for SavedLinear {
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 4] {
        let (dx, [a, b, c]) = self.parts(&dy);
        [dx, a, b, c]
    }
}
