//! Causal grouped-query attention with the reference arithmetic: scores are materialised, and
//! the `[T, T]` mask exists in this file only.

use bitnet_format::ModelSpec;
use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, activation::softmax};

use crate::model::rope::{RopeTable, Rotation};
use crate::model::{BitLinear, Documents, Parts, RmsNorm};

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
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    key_value_heads: usize,
    #[module(skip)]
    head_dim: usize,
}

/// What all layers of one forward pass share: the rotation and the mask of its documents.
pub(crate) struct AttentionContext {
    rotation: Rotation,
    /// True where attention is forbidden, `[B or 1, 1, 1, T, T]`.
    forbidden: Tensor<5, Bool>,
}

impl AttentionContext {
    pub(crate) fn new(documents: &Documents, rope: &RopeTable, device: &Device) -> Self {
        let [batch, time] = documents.dims();
        let positions = documents.positions();
        let (positions, rows) =
            if documents.all_whole() { (&positions[..time], 1) } else { (&positions[..], batch) };
        let index = Tensor::<1, Int>::arange(0..time as i64, device);
        let key = index.clone().reshape([1, 1, time]);
        let mut forbidden = key.clone().greater(index.reshape([1, time, 1]));
        if !documents.all_whole() {
            let before = key.lower(documents.starts(device).reshape([batch, time, 1]));
            forbidden = before.bool_or(forbidden.expand([batch, time, time]));
        }
        Self {
            rotation: rope.rotation(positions, rows, device),
            forbidden: forbidden.reshape([rows, 1, 1, time, time]),
        }
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
            heads: spec.num_attention_heads,
            key_value_heads: spec.num_key_value_heads,
            head_dim: spec.head_dim,
        }
    }

    /// `x [B, T, C]` → `[B, T, C]`
    pub(crate) fn forward(&self, x: Tensor<3>, context: &AttentionContext) -> Tensor<3> {
        let q = context.rotation.apply(self.split(self.q_proj.forward(x.clone()), self.heads));
        let k = self.split(self.k_proj.forward(x.clone()), self.key_value_heads);
        let k = context.rotation.apply(k);
        let v = self.split(self.v_proj.forward(x), self.key_value_heads);
        let mixed = self.attend(q, k, v, &context.forbidden); // [B, T, H·D]
        let mixed = match &self.attn_sub_norm {
            Some(norm) => norm.forward(mixed),
            None => mixed,
        };
        self.o_proj.forward(mixed)
    }

    /// `[B, T, heads·D]` → `[B, heads, T, D]`
    fn split(&self, x: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, time, _] = x.dims();
        x.reshape([batch, time, heads, self.head_dim]).swap_dims(1, 2)
    }

    /// `q [B, H, T, D]`, `k`, `v [B, KV, T, D]` → `[B, T, H·D]`
    ///
    /// The `G = H / KV` query heads of a group are stacked along time, so that keys and values
    /// are never repeated.
    fn attend(
        &self,
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        forbidden: &Tensor<5, Bool>,
    ) -> Tensor<3> {
        let [batch, heads, time, width] = q.dims();
        let (groups, shared) = (self.key_value_heads, heads / self.key_value_heads);
        let q = q.mul_scalar(1.0 / (width as f32).sqrt());
        let q = q.reshape([batch, groups, shared * time, width]);
        let scores = q.matmul(k.swap_dims(2, 3)); // [B, KV, G·T, T]
        let scores = scores.reshape([batch, groups, shared, time, time]);
        let mask = forbidden.clone().expand([batch, groups, shared, time, time]);
        let weights = softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 4);
        let mixed = weights.reshape([batch, groups, shared * time, time]).matmul(v);
        let mixed = mixed.reshape([batch, heads, time, width]).swap_dims(1, 2);
        mixed.reshape([batch, time, heads * width])
    }
}
