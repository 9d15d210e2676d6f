//! Causal grouped-query self-attention of one block.

use bitnet_format::ModelSpec;
use burn::module::Module;
use burn::tensor::Tensor;

use crate::model::rope::RopeTable;
use crate::model::{BitLinear, LoadedTensors, RmsNorm, SegmentStarts};
use crate::ops::{self, AttentionShape, LazyMask, OpBackend};

/// Self-attention of one block.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries `[H·D, C]`.
    pub q_proj: BitLinear,
    /// Keys `[KV·D, C]`.
    pub k_proj: BitLinear,
    /// Values `[KV·D, C]`.
    pub v_proj: BitLinear,
    /// Norm of each head's queries, `[D]`.
    pub q_norm: Option<RmsNorm>,
    /// Norm of each head's keys, `[D]`.
    pub k_norm: Option<RmsNorm>,
    /// Norm over all heads before the output projection.
    pub attn_sub_norm: Option<RmsNorm>,
    /// Output `[C, H·D]`.
    pub o_proj: BitLinear,
}

/// What all layers of a forward pass share: the shape of heads, positions and mask.
pub(crate) struct AttentionContext(AttentionShape);

impl AttentionContext {
    pub(crate) fn new(segments: &SegmentStarts, rope: &RopeTable) -> Self {
        let [batch, time] = segments.dims();
        let (cos, sin) = rope.cos_sin(segments);
        let [heads, kv_heads, head_dim] = rope.heads();
        // The first layer that needs the mask as tensors makes it; native ones never do.
        let (segment_starts, mask) = (segments.starts(), LazyMask::default());
        Self(AttentionShape {
            batch,
            time,
            heads,
            kv_heads,
            head_dim,
            segment_starts,
            cos,
            sin,
            mask,
        })
    }
}

impl Attention {
    pub(crate) fn assemble(spec: &ModelSpec, tensors: &mut LoadedTensors) -> Self {
        Self {
            q_proj: tensors.linear(),
            k_proj: tensors.linear(),
            v_proj: tensors.linear(),
            q_norm: spec.qk_norm.then(|| tensors.norm()),
            k_norm: spec.qk_norm.then(|| tensors.norm()),
            attn_sub_norm: spec.sub_norms.then(|| tensors.norm()),
            o_proj: tensors.linear(),
        }
    }

    /// Queries, keys and values as the projections give them: `x [B, T, C]` → `[B, T, (H + 2 KV)·D]`
    pub(crate) fn project(&self, x: Tensor<3>, backend: OpBackend) -> Tensor<3> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        BitLinear::forward_together(projections, x, backend)
    }

    /// What the projections gave → `[B, T, C]`
    pub(crate) fn mix(
        &self,
        qkv: Tensor<3>,
        context: &AttentionContext,
        backend: OpBackend,
    ) -> Tensor<3> {
        let mixed = self.attend(qkv, context, backend);
        // Over all heads of a token at once, unlike `q_norm` and `k_norm`.
        let mixed = match &self.attn_sub_norm {
            Some(norm) => norm.forward(mixed, backend),
            None => mixed,
        };
        self.o_proj.forward(mixed, backend)
    }

    /// The values that each head mixes for each token, `[B, T, H·D]`.
    pub(crate) fn attend(
        &self,
        qkv: Tensor<3>,
        context: &AttentionContext,
        backend: OpBackend,
    ) -> Tensor<3> {
        let qkv = self.normalise_heads(qkv, &context.0, backend);
        ops::attention(qkv, &context.0, backend)
    }

    /// The same weights as dense matrices, without the sub-norm.
    pub(crate) fn dense(&self) -> Self {
        Self {
            q_proj: self.q_proj.dense(),
            k_proj: self.k_proj.dense(),
            v_proj: self.v_proj.dense(),
            attn_sub_norm: None,
            o_proj: self.o_proj.dense(),
            ..self.clone()
        }
    }

    /// `qkv [B, T, (H + 2 KV)·D]` with the queries and the keys of each head normalised.
    fn normalise_heads(
        &self,
        qkv: Tensor<3>,
        shape: &AttentionShape,
        backend: OpBackend,
    ) -> Tensor<3> {
        let (Some(of_queries), Some(of_keys)) = (&self.q_norm, &self.k_norm) else { return qkv };
        let AttentionShape { batch, time, heads, kv_heads, head_dim, .. } = *shape;
        let part =
            |first: usize, count: usize| qkv.clone().narrow(2, first * head_dim, count * head_dim);
        let normalised = |norm: &RmsNorm, first: usize, count: usize| {
            // Each head becomes a row of its own, `[B, T·heads, D]`: all share one gain `[D]`.
            let rows = part(first, count).reshape([batch, time * count, head_dim]);
            norm.forward(rows, backend).reshape([batch, time, count * head_dim])
        };
        let q = normalised(of_queries, 0, heads);
        let k = normalised(of_keys, heads, kv_heads);
        Tensor::cat(vec![q, k, part(heads + kv_heads, kv_heads)], 2)
    }
}
