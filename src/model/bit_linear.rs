//! `BitLinear`: a linear layer that computes with ternary weights and 8-bit activations while the
//! optimizer keeps updating the latent weights in f32. `ops::bit_linear` has the formulas.

use bitnet_format::quant::WeightScale;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops::{self, OpBackend};

/// What the matrix of a [`BitLinear`] holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearWeight {
    /// Latents, quantised again in each forward pass: a model in training.
    Latent,
    /// Latents, multiplied in transformers' order ([`ops::dequantised_linear`]): for comparisons
    /// with programs that dequantise first.
    Dequantised,
    /// Ternary codes as f32 with the scale they were packed with: a frozen model.
    Frozen(WeightScale),
    /// Plain f32 weights and unquantised activations: the dense baseline.
    Dense,
}

/// A linear layer without bias.
#[derive(Module, Debug)]
pub struct BitLinear {
    /// `[out, in]`, the orientation of files and kernels.
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    form: LinearWeight,
}

impl BitLinear {
    /// A layer over `weight [out, in]`.
    pub fn new(weight: Param<Tensor<2>>, form: LinearWeight) -> Self {
        Self { weight, form }
    }

    /// Several layers with one input, their outputs side by side: `x [B, T, in]` → `[B, T, Σ out]`
    pub fn forward_together<const N: usize>(
        layers: [&Self; N],
        x: Tensor<3>,
        backend: OpBackend,
    ) -> Tensor<3> {
        if layers.iter().all(|layer| layer.form == LinearWeight::Latent) {
            return ops::bit_linear(x, layers.map(|layer| layer.weight.val()), backend);
        }
        let outputs = layers.map(|layer| layer.forward(x.clone(), backend));
        Tensor::cat(outputs.into(), 2)
    }

    /// `x [B, T, in]` → `[B, T, out]`
    pub fn forward(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        match self.form {
            LinearWeight::Latent => ops::bit_linear(x, [self.weight.val()], backend),
            LinearWeight::Dequantised => ops::dequantised_linear(x, self.weight.val()),
            LinearWeight::Frozen(scale) => ops::frozen_linear(x, self.weight.val(), scale),
            LinearWeight::Dense => x.matmul(self.weight.val().transpose().unsqueeze()),
        }
    }
}
