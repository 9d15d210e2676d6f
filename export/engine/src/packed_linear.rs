//! A layer's matrices as they run: ternary codes, or floats in a dense model; an adapter's product beside
//! them, and a bias.

use bitnet_format::TensorEntry;
use bitnet_format::adapter::Adapter;
use bitnet_kernels::DenseMatrix;

use crate::compute::KernelChoice;
use crate::linear::{TernaryMatrix, dense};
use crate::side::SideProduct;
use crate::workspace::Products;

/// One matrix, or several of one input below each other: `[N, K]`.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    weights: LinearWeights,
    side: Option<SideProduct>,
    /// `[N]`, where the model has one.
    bias: Option<Vec<f32>>,
}

/// The weights of a layer.
#[derive(Debug)]
pub(crate) enum LinearWeights {
    /// Ternary codes.
    Ternary(TernaryMatrix),
    /// Floats in the type of their file: a dense model, run as a reference.
    Dense(DenseMatrix),
}

impl PackedLinear {
    pub(crate) fn new(weights: LinearWeights, bias: Option<Vec<f32>>) -> Self {
        Self { weights, side: None, bias }
    }

    /// Puts the factors of `entries` beside the codes; `entries` are the matrices of this one.
    pub(crate) fn adapt(&mut self, entries: &[TensorEntry], adapter: &Adapter) {
        self.side = SideProduct::of(entries, adapter);
    }

    /// Number of values of the adapter's factors here.
    pub(crate) fn adapter_parameters(&self) -> usize {
        self.side.as_ref().map_or(0, SideProduct::parameters)
    }

    /// Outputs, `N`.
    pub(crate) fn rows(&self) -> usize {
        match &self.weights {
            LinearWeights::Ternary(matrix) => matrix.rows(),
            LinearWeights::Dense(matrix) => matrix.rows(),
        }
    }

    /// Inputs, `K`.
    pub(crate) fn columns(&self) -> usize {
        match &self.weights {
            LinearWeights::Ternary(matrix) => matrix.columns(),
            LinearWeights::Dense(matrix) => matrix.columns(),
        }
    }

    /// `x [T, K]` → `out [T, N]`
    pub(crate) fn forward(
        &self,
        compute: KernelChoice,
        x: &[f32],
        products: &mut Products,
        out: &mut [f32],
    ) {
        match &self.weights {
            LinearWeights::Ternary(matrix) => matrix.forward(compute, x, products, out),
            LinearWeights::Dense(matrix) => dense(compute, matrix, x, &mut products.tiles, out),
        }
        if let Some(side) = &self.side {
            side.add(compute, x, products, out);
        }
        if let Some(bias) = &self.bias {
            for token in out.chunks_exact_mut(bias.len()) {
                token.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}
