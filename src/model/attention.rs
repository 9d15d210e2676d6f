//! Causal grouped-query self-attention of one block.

use bitnet_format::ModelSpec;
use burn::module::Module;
use burn::tensor::Tensor;

use crate::model::rope::RopeTable;
use crate::model::{BitLinear, Documents, Parts, RmsNorm};
use crate::ops::reference::LazySight;
use crate::ops::{self, AttentionShape, Compute};

/// Self-attention of one block.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries `[H·D, C]`.
    pub q_proj: BitLinear,
    /// Keys `[KV·D, C]`.
    pub k_proj: BitLinear,
    /// Values `[KV·D, C]`.
    pub v_proj: BitLinear,
    /// Norm over all heads before the output projection.
    pub attn_sub_norm: Option<RmsNorm>,
    /// Output `[C, H·D]`.
    pub o_proj: BitLinear,
}

/// What all layers of one forward pass share: how heads lie, where tokens stand and what they see.
pub(crate) struct AttentionContext(AttentionShape);

impl AttentionContext {
    pub(crate) fn new(documents: &Documents, rope: &RopeTable) -> Self {
        let [batch, time] = documents.dims();
        let (cosines, sines) = rope.turns(&documents.positions());
        let [heads, key_heads, width] = rope.heads();
        let (starts, sight) = (documents.starts(), LazySight::default());
        Self(AttentionShape { batch, time, heads, key_heads, width, starts, cosines, sines, sight })
    }
}

impl Attention {
    pub(crate) fn assemble(spec: &ModelSpec, parts: &mut Parts) -> Self {
        Self {
            q_proj: parts.linear(),
            k_proj: parts.linear(),
            v_proj: parts.linear(),
            attn_sub_norm: spec.sub_norms.then(|| parts.norm(spec)),
            o_proj: parts.linear(),
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        context: &AttentionContext,
        compute: Compute,
    ) -> Tensor<3> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let qkv = BitLinear::forward_together(projections, x, compute);
        let mixed = ops::attention(qkv, &context.0, compute); // [B, T, H·D]
        let mixed = match &self.attn_sub_norm {
            Some(norm) => norm.forward(mixed, compute),
            None => mixed,
        };
        self.o_proj.forward(mixed, compute)
    }
}
