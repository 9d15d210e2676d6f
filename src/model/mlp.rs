//! The gated feed-forward half: `down(norm(act(gate(x)) · up(x)))`.

use bitnet_format::{HiddenAct, ModelSpec};
use burn::module::Module;
use burn::tensor::Tensor;

use crate::model::{BitLinear, Parts, RmsNorm};
use crate::ops::{self, Compute};

/// Feed-forward half of one block.
#[derive(Module, Debug)]
pub struct Mlp {
    /// Gate `[F, C]`.
    pub gate_proj: BitLinear,
    /// Up `[F, C]`.
    pub up_proj: BitLinear,
    /// Norm over the gated product.
    pub ffn_sub_norm: Option<RmsNorm>,
    /// Down `[C, F]`.
    pub down_proj: BitLinear,
    #[module(skip)]
    act: HiddenAct,
}

impl Mlp {
    pub(crate) fn assemble(spec: &ModelSpec, parts: &mut Parts) -> Self {
        Self {
            gate_proj: parts.linear(),
            up_proj: parts.linear(),
            ffn_sub_norm: spec.sub_norms.then(|| parts.norm(spec)),
            down_proj: parts.linear(),
            act: spec.hidden_act,
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    pub(crate) fn forward(&self, x: Tensor<3>, compute: Compute) -> Tensor<3> {
        let projections = [&self.gate_proj, &self.up_proj];
        let gate_up = BitLinear::forward_together(projections, x, compute);
        let gated = ops::gated(gate_up, self.act, compute); // [B, T, F]
        let gated = match &self.ffn_sub_norm {
            Some(norm) => norm.forward(gated, compute),
            None => gated,
        };
        self.down_proj.forward(gated, compute)
    }
}
