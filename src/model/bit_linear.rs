//! `BitLinear`: a linear layer that computes with ternary weights and 8-bit activations while the
//! optimizer keeps seeing the latent weights.
//!
//! How quantisation-aware training works here: the forward product runs over integer codes,
//! `y = (q · Tᵀ) · m / a`, and the backward pass pretends that quantising was the identity
//! (straight-through estimator): `dL/dx = dL/dy · T·m`, `dL/dw = (dL/dy)ᵀ · q/a`, no gradient to
//! the scales. The codes are multiplied first and scaled afterwards: integers below 2²⁴ are exact
//! in f32 in any order of summation, so every backend, the int8 kernels and the engine agree to
//! the bit on the accumulator. The quantisers are those of `bitnet_format::quant`; the
//! operation with its backward pass is in `ops`.

use bitnet_format::quant::WeightScale;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops::{self, Compute, reference};

/// What the matrix of a [`BitLinear`] holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// Latents, quantised anew in every forward pass: a model in training.
    Latent,
    /// Latents, multiplied in transformers' order ([`reference::dequantised_linear`]): for
    /// comparisons with programs that dequantise first.
    Dequantised,
    /// Ternary codes as f32 with the scale they were packed with: a frozen model.
    Frozen(WeightScale),
    /// Plain f32 weights, activations untouched: the dense twin.
    Dense,
}

/// A linear layer without bias.
#[derive(Module, Debug)]
pub struct BitLinear {
    /// `[out, in]`, the orientation of the file and of the kernels.
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    form: Weight,
}

impl BitLinear {
    /// A layer over `weight [out, in]`.
    pub fn new(weight: Param<Tensor<2>>, form: Weight) -> Self {
        Self { weight, form }
    }

    /// Several layers with one input, outputs beside outputs: `x [B, T, in]` → `[B, T, Σ out]`
    pub fn forward_together<const N: usize>(
        layers: [&Self; N],
        x: Tensor<3>,
        compute: Compute,
    ) -> Tensor<3> {
        if layers.iter().all(|layer| layer.form == Weight::Latent) {
            return ops::bit_linear(x, layers.map(|layer| layer.weight.val()), compute);
        }
        let outputs = layers.map(|layer| layer.forward(x.clone(), compute));
        Tensor::cat(outputs.into(), 2)
    }

    /// `x [B, T, in]` → `[B, T, out]`
    pub fn forward(&self, x: Tensor<3>, compute: Compute) -> Tensor<3> {
        match self.form {
            Weight::Latent => ops::bit_linear(x, [self.weight.val()], compute),
            Weight::Dequantised => reference::dequantised_linear(x, self.weight.val()),
            Weight::Frozen(scale) => reference::frozen_linear(x, self.weight.val(), scale),
            Weight::Dense => x.matmul(self.weight.val().transpose().unsqueeze()),
        }
    }
}
