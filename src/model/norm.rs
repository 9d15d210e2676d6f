//! The root-mean-square norm as a module; the arithmetic is in `ops::rms_norm`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops::{self, OpBackend};

/// Root-mean-square normalisation over the last dimension with a learned gain.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Gain `[C]`.
    pub weight: Param<Tensor<1>>,
    #[module(skip)]
    eps: f32,
}

impl RmsNorm {
    /// A norm with this gain `[C]`; `eps` is added to the mean square.
    pub fn new(weight: Param<Tensor<1>>, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// What is added to the mean square.
    pub(crate) fn eps(&self) -> f32 {
        self.eps
    }

    /// `x [B, T, C]` → `[B, T, C]`
    pub fn forward(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        ops::rms_norm(x, self.weight.val(), self.eps, backend)
    }
}
