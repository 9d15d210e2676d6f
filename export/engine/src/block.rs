//! One transformer block, as the paper reads: attention and feed-forward, each behind a norm and
//! added to the residual stream (`bitnet-b158.md` §1.3).

use bitnet_format::HiddenAct;
use bitnet_kernels::TernaryPanels;

use crate::attention::{Heads, attend};
use crate::cache::LayerCache;
use crate::compute::Compute;
use crate::feed_forward::gated;
use crate::linear::ternary;
use crate::norm::RmsNorm;
use crate::rope::Turns;

/// The weights of one block. `q`, `k`, `v` are one matrix, so are gate and up.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) heads: Heads,
    pub(crate) hidden_act: HiddenAct,
    pub(crate) input_norm: RmsNorm,
    /// `[(H + 2 · kv heads) · D, C]`
    pub(crate) qkv: TernaryPanels,
    pub(crate) attn_sub_norm: Option<RmsNorm>,
    /// `[C, H·D]`
    pub(crate) output: TernaryPanels,
    pub(crate) post_attention_norm: RmsNorm,
    /// `[2F, C]`
    pub(crate) gate_up: TernaryPanels,
    pub(crate) ffn_sub_norm: Option<RmsNorm>,
    /// `[C, F]`
    pub(crate) down: TernaryPanels,
}

impl Block {
    /// Adds this block's work to the residual stream `x [T, C]`; the cache grows by `T` tokens.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        x: &mut [f32],
        turns: &Turns,
        cache: &mut LayerCache,
    ) {
        add(compute, x, &self.attention(compute, x, turns, cache));
        add(compute, x, &self.feed_forward(compute, x));
    }

    /// `x [T, C]` → `[T, C]`
    fn attention(
        &self,
        compute: Compute,
        x: &[f32],
        turns: &Turns,
        cache: &mut LayerCache,
    ) -> Vec<f32> {
        let qkv = ternary(compute, &self.qkv, &self.input_norm.of(compute.threads, x));
        let queries = self.split_qkv(qkv, turns, cache); // [T, H·D]
        let mut attended = attend(compute, self.heads, &queries, cache);
        if let Some(norm) = &self.attn_sub_norm {
            norm.in_place(compute.threads, &mut attended);
        }
        ternary(compute, &self.output, &attended)
    }

    /// Turns queries and keys, moves keys and values to the cache, returns the queries `[T, H·D]`.
    fn split_qkv(&self, mut qkv: Vec<f32>, turns: &Turns, cache: &mut LayerCache) -> Vec<f32> {
        let (queries_end, width) = (self.heads.queries * self.heads.width, self.qkv.rows());
        let keys_end = queries_end + self.heads.keys * self.heads.width;
        let mut queries = Vec::with_capacity(qkv.len() / width * queries_end);
        for (token, qkv) in qkv.chunks_exact_mut(width).enumerate() {
            turns.apply(token, &mut qkv[..keys_end]);
            queries.extend_from_slice(&qkv[..queries_end]);
            cache.push(&qkv[queries_end..keys_end], &qkv[keys_end..]);
        }
        queries
    }

    /// `x [T, C]` → `[T, C]`
    fn feed_forward(&self, compute: Compute, x: &[f32]) -> Vec<f32> {
        let gate_up =
            ternary(compute, &self.gate_up, &self.post_attention_norm.of(compute.threads, x));
        let mut inner = gated(compute.threads, self.hidden_act, &gate_up, self.down.columns());
        if let Some(norm) = &self.ffn_sub_norm {
            norm.in_place(compute.threads, &mut inner);
        }
        ternary(compute, &self.down, &inner)
    }
}

fn add(compute: Compute, x: &mut [f32], y: &[f32]) {
    const COST: usize = 4;
    compute.threads.split(x, 1, COST, |first, x| {
        x.iter_mut().zip(&y[first..]).for_each(|(x, y)| *x += y);
    });
}
