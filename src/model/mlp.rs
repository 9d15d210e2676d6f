//! The gated feed-forward half of a block: `down(norm(act(gate(x)) · up(x)))`.

use bitnet_format::{HiddenAct, ModelSpec};
use burn::module::Module;
use burn::tensor::Tensor;

use crate::model::{BitLinear, LoadedTensors, RmsNorm};
use crate::ops::{self, OpBackend};

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
    pub(crate) fn assemble(spec: &ModelSpec, tensors: &mut LoadedTensors) -> Self {
        Self {
            gate_proj: tensors.linear(),
            up_proj: tensors.linear(),
            ffn_sub_norm: spec.sub_norms.then(|| tensors.norm()),
            down_proj: tensors.linear(),
            act: spec.hidden_act,
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    pub(crate) fn forward(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        let gated = self.gate(x, backend);
        let gated = match &self.ffn_sub_norm {
            Some(norm) => norm.forward(gated, backend),
            None => gated,
        };
        self.down_proj.forward(gated, backend)
    }

    /// The gated product, `[B, T, F]`.
    pub(crate) fn gate(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        // One product makes both, gate first: `[B, T, 2F]`, as `ops::gated` reads them.
        let projections = [&self.gate_proj, &self.up_proj];
        let gate_up = BitLinear::forward_together(projections, x, backend);
        ops::gated(gate_up, self.act, backend)
    }

    /// The same weights as dense matrices, without the sub-norm.
    pub(crate) fn dense(&self) -> Self {
        Self {
            gate_proj: self.gate_proj.dense(),
            up_proj: self.up_proj.dense(),
            ffn_sub_norm: None,
            down_proj: self.down_proj.dense(),
            ..self.clone()
        }
    }
}
