//! `BitLinear`: a linear layer that computes with ternary weights and 8-bit activations while the
//! optimizer keeps updating the latent weights in f32. `ops::bit_linear` has the formulas, and
//! `ops::grouped_linear` those of other quantisers.

use std::sync::Arc;

use bitnet_format::quant::WeightScale;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use crate::latents::Latents;
use crate::model::low_rank::LowRankFactors;
use crate::ops::{
    self, DrawPlace, Lambda, LinearQuantiser, LinearSettings, OpBackend, RoundingCounts,
};

/// What the matrix of a [`BitLinear`] holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearWeight {
    /// Latents, quantised again in each forward pass: a model in training.
    Latent,
    /// Latents, multiplied in transformers' order ([`ops::blended_linear`]): for comparisons
    /// with programs that dequantise first.
    Dequantised,
    /// Ternary codes as f32 with the scale they were packed with: a frozen model.
    Frozen(WeightScale),
    /// Codes times the scales of the model's groups: a frozen model too.
    FrozenGroups,
    /// Plain f32 weights and unquantised activations: the dense baseline.
    Dense,
}

/// A linear layer, with a bias where the model has one.
#[derive(Module, Debug)]
pub struct BitLinear {
    /// `[out, in]`, the orientation of files and kernels; empty where the matrix lies outside.
    pub weight: Param<Tensor<2>>,
    /// What an adapter trains in its place.
    pub adapter: Option<LowRankFactors>,
    /// `[out]`, added to the output in f32.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    form: LinearWeight,
    #[module(skip)]
    quantiser: LinearQuantiser,
    /// Scales of frozen codes `[out, in]`, one for each group.
    #[module(skip)]
    scales: Arc<[f32]>,
    #[module(skip)]
    outside: Option<Latents>,
    /// Its number among the layers of the model.
    #[module(skip)]
    number: u64,
    /// What its 8-bit gradients lose.
    #[module(skip)]
    pub(crate) rounding: Arc<RoundingCounts>,
}

impl BitLinear {
    /// A layer over `weight [out, in]`.
    pub fn new(weight: Param<Tensor<2>>, form: LinearWeight) -> Self {
        Self {
            weight,
            adapter: None,
            bias: None,
            form,
            quantiser: LinearQuantiser::default(),
            scales: Arc::default(),
            outside: None,
            number: 0,
            rounding: Arc::default(),
        }
    }

    /// The same layer under this quantiser; its weight holds codes where there are `scales`.
    #[must_use]
    pub(crate) fn quantised_by(self, quantiser: LinearQuantiser, scales: Arc<[f32]>) -> Self {
        Self { quantiser, scales, ..self }
    }

    /// A layer over latents that are no tensor; `leaf`, an empty matrix, gets their gradient.
    pub(crate) fn outside(
        leaf: Param<Tensor<2>>,
        form: LinearWeight,
        latents: Latents,
        adapter: Option<LowRankFactors>,
    ) -> Self {
        Self { adapter, outside: Some(latents), ..Self::new(leaf, form) }
    }

    /// The same layer as the one of this number in its model.
    #[must_use]
    pub(crate) fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// The same layer with this bias `[out]`.
    #[must_use]
    pub(crate) fn with_bias(self, bias: Option<Param<Tensor<1>>>) -> Self {
        Self { bias, ..self }
    }

    /// The same weights, multiplied as they are.
    #[must_use]
    pub(crate) fn dense(&self) -> Self {
        Self { form: LinearWeight::Dense, ..self.clone() }
    }

    /// Several layers with one input, their outputs side by side: `x [B, T, in]` → `[B, T, Σ out]`
    pub fn forward_together<const N: usize>(
        layers: [&Self; N],
        x: Tensor<3>,
        backend: OpBackend,
    ) -> Tensor<3> {
        let y = Self::products_together(layers, x, backend);
        // Of layers computed together all have biases or none has, so these line up with `y`.
        let biases: Vec<_> =
            layers.iter().filter_map(|layer| layer.bias.as_ref()).map(Param::val).collect();
        if biases.is_empty() { y } else { y + Tensor::cat(biases, 0).unsqueeze() }
    }

    fn products_together<const N: usize>(
        layers: [&Self; N],
        x: Tensor<3>,
        backend: OpBackend,
    ) -> Tensor<3> {
        let all_ternary = layers.iter().all(|layer| layer.form == LinearWeight::Latent);
        // The usual case. During a ternary warm-up (λ < 1) layers are computed one by one below.
        if all_ternary && backend.lambda == Lambda::ONE {
            let weights = layers.map(|layer| layer.weight.val());
            let (matrix, counts) = (layers[0].number, layers.map(|layer| layer.rounding.clone()));
            // Random bits of 8-bit gradients are keyed by the layer's number, among others.
            let backend = backend.drawing(|place| DrawPlace { matrix, ..place });
            let settings = LinearSettings { backend, counts };
            if layers.iter().all(|layer| layer.outside.is_none()) {
                // The layers of a model have one quantiser.
                return match layers[0].quantiser {
                    quantiser if quantiser.is_b158() => ops::bit_linear(x, weights, settings),
                    quantiser => ops::grouped_linear(x, weights, quantiser, backend),
                };
            }
            let latents = layers.map(|layer| {
                let latents = layer.outside.as_ref().expect("all matrices lie outside");
                (latents, layer.adapter.as_ref().and_then(LowRankFactors::to_merge))
            });
            // Latent factors are merged before quantising and side factors join afterwards; the
            // gradients of both come from `join_factors`.
            let y = ops::bit_linear_outside(x.clone(), weights, latents, settings);
            return Self::join_factors(&layers, &x, y, backend);
        }
        if let [layer] = layers.as_slice() {
            return layer.product(x, backend);
        }
        let outputs = layers.map(|layer| layer.product(x.clone(), backend));
        Tensor::cat(outputs.into(), 2)
    }

    /// The outputs `y` with what side adapters add; the gradient reaches the layers' factors too.
    fn join_factors(
        layers: &[&Self],
        x: &Tensor<3>,
        mut y: Tensor<3>,
        backend: OpBackend,
    ) -> Tensor<3> {
        // The outputs lie side by side: a layer owns the columns behind those of the one before.
        let mut first = 0;
        for layer in layers {
            let height = layer.outside.as_ref().map_or(0, |latents| latents.shape()[0]);
            let own = first..first + height;
            first = own.end;
            if let Some(factors) = &layer.adapter {
                let both = [factors.a.val(), factors.b.val()];
                y = factors.beside(own, backend).join(y, x, both);
            }
        }
        y
    }

    /// `x [B, T, in]` → `[B, T, out]`
    pub fn forward(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        Self::forward_together([self], x, backend)
    }

    /// The same without the bias.
    fn product(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        match self.form {
            LinearWeight::Latent if backend.lambda != Lambda::ONE => {
                ops::blended_linear(x, self.matrix(), self.quantiser, backend)
            }
            LinearWeight::Latent => Self::products_together([self], x, backend),
            LinearWeight::Dequantised => {
                // A blend with λ = 1 is the layer in transformers' order.
                let backend = backend.blending(Lambda::ONE);
                ops::blended_linear(x, self.matrix(), self.quantiser, backend)
            }
            LinearWeight::Frozen(scale) if self.quantiser.is_b158() => {
                ops::frozen_linear(x, self.matrix(), scale)
            }
            LinearWeight::Frozen(scale) => {
                // One scale as a group for each row: the grouped product takes groups only.
                let rows = self.matrix().dims()[0];
                self.frozen_product(x, vec![scale.multiplier(); rows])
            }
            LinearWeight::FrozenGroups => self.frozen_product(x, self.scales.to_vec()),
            LinearWeight::Dense => x.matmul(self.matrix().transpose().unsqueeze()),
        }
    }

    /// The product with codes and their `scales [out, groups]`.
    fn frozen_product(&self, x: Tensor<3>, scales: Vec<f32>) -> Tensor<3> {
        let codes = self.matrix();
        let rows = codes.dims()[0];
        let shape = [rows, scales.len() / rows];
        let scales = Tensor::from_data(TensorData::new(scales, shape), &codes.device());
        ops::frozen_grouped_linear(x, codes, scales, self.quantiser)
    }

    /// The matrix as a tensor.
    fn matrix(&self) -> Tensor<2> {
        match &self.outside {
            Some(latents) => ops::matrix_outside(self.weight.val(), latents),
            None => self.weight.val(),
        }
    }
}
