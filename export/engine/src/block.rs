//! One transformer block, as the paper reads: attention and feed-forward, each after a norm and
//! added to the residual stream (BitNet b1.58 2B4T, arXiv 2504.12285, section 2).

use std::ops::Range;

use bitnet_format::adapter::Adapter;
use bitnet_format::{HiddenAct, TensorEntry};

use crate::attention::{Heads, attend, attend_one_each};
use crate::batch::{ChunkRun, ForwardBatch};
use crate::cache::KvCache;
use crate::compute::KernelChoice;
use crate::feed_forward::gated;
use crate::norm::NormWeights;
use crate::packed_linear::PackedLinear;
use crate::rope::RotaryCache;
use crate::workspace::{Buffers, scratch_slice};

/// The weights of one block. `q`, `k`, `v` are one matrix, so are gate and up.
#[derive(Debug)]
pub(crate) struct PackedBlock {
    pub(crate) heads: Heads,
    pub(crate) hidden_act: HiddenAct,
    pub(crate) input_norm: NormWeights,
    /// `[(H + 2 · kv heads) · D, C]`
    pub(crate) qkv: PackedLinear,
    /// Norms of each head's queries and keys, each `[D]`.
    pub(crate) head_norms: Option<[NormWeights; 2]>,
    pub(crate) attn_sub_norm: Option<NormWeights>,
    /// `[C, H·D]`
    pub(crate) output: PackedLinear,
    pub(crate) post_attention_norm: NormWeights,
    /// `[2F, C]`
    pub(crate) gate_up: PackedLinear,
    pub(crate) ffn_sub_norm: Option<NormWeights>,
    /// `[C, F]`
    pub(crate) down: PackedLinear,
}

/// Matrices of a block in the tensor table: q, k, v, o, gate, up, down.
pub(crate) const MATRICES: usize = 7;

/// What rotating a value and moving it to a cache costs next to a multiply-add of a kernel, roughly.
const SPLIT_COST: usize = 32;

/// What one normalised value costs next to a multiply-add of a kernel, roughly.
const HEAD_NORM_COST: usize = 16;

impl PackedBlock {
    /// Puts an adapter's factors beside the matrices; `entries` are those of this block, in the order of
    /// the table.
    pub(crate) fn adapt(&mut self, entries: &[TensorEntry], adapter: &Adapter) {
        assert_eq!(entries.len(), MATRICES, "the matrices of one block");
        self.qkv.adapt(&entries[..3], adapter);
        self.output.adapt(&entries[3..4], adapter);
        self.gate_up.adapt(&entries[4..6], adapter);
        self.down.adapt(&entries[6..], adapter);
    }

    /// Number of values of the adapter's factors in this block.
    pub(crate) fn adapter_parameters(&self) -> usize {
        let all = [&self.qkv, &self.output, &self.gate_up, &self.down];
        all.into_iter().map(PackedLinear::adapter_parameters).sum()
    }

    /// Adds this block's work to the residual stream `buffers.x [T, C]`; the caches grow by the
    /// batch's tokens.
    pub(crate) fn forward(
        &self,
        compute: KernelChoice,
        buffers: &mut Buffers,
        layer: usize,
        batch: &mut ForwardBatch,
    ) {
        self.attention(compute, buffers, layer, batch);
        add(compute, &mut buffers.x, &buffers.change);
        self.feed_forward(compute, buffers);
        add(compute, &mut buffers.x, &buffers.change);
    }

    /// `x [T, C]` → `change [T, C]`
    fn attention(
        &self,
        compute: KernelChoice,
        buffers: &mut Buffers,
        layer: usize,
        batch: &mut ForwardBatch,
    ) {
        let Buffers { x, normalised, qkv, queries, attended, change, rotary, products, .. } =
            buffers;
        let (tokens, width) = (x.len() / self.qkv.columns(), self.heads.queries * self.heads.width);
        let normalised = self.input_norm.of(compute.threads, x, normalised);
        let qkv = scratch_slice(qkv, tokens * self.qkv.rows());
        self.qkv.forward(compute, normalised, products, qkv);
        self.normalise_heads(compute, qkv);
        let (queries, attended) =
            (scratch_slice(queries, tokens * width), scratch_slice(attended, tokens * width));
        self.split_qkv(compute, qkv, rotary, (batch, layer), queries);
        // Matrices see all tokens of the batch at once; attention sees those of one sequence, or one
        // of each of several.
        for ChunkRun { rows, chunks } in batch.runs() {
            let places = rows.start * width..rows.end * width;
            let (queries, out) = (&queries[places.clone()], &mut attended[places]);
            let layer_of = |chunk: usize, tokens: usize| {
                let cache = batch.cache(chunk);
                cache.layer(layer, cache.len() + tokens)
            };
            if rows.len() == chunks.len() {
                let cache = |token: usize| layer_of(chunks.start + token, 1);
                attend_one_each(compute, self.heads, queries, cache, out);
            } else {
                attend(compute, self.heads, queries, layer_of(chunks.start, rows.len()), out);
            }
        }
        if let Some(norm) = &self.attn_sub_norm {
            norm.in_place(compute.threads, attended);
        }
        self.output.forward(compute, attended, products, scratch_slice(change, x.len()));
    }

    /// Normalises the queries and the keys of each head, `qkv [T, (H + 2 · kv heads) · D]`.
    fn normalise_heads(&self, compute: KernelChoice, qkv: &mut [f32]) {
        let Some([of_queries, of_keys]) = &self.head_norms else { return };
        let (Heads { queries, keys, width }, row) = (self.heads, self.qkv.rows());
        compute.threads.split(qkv, row, HEAD_NORM_COST * row, |_, qkv| {
            for token in qkv.chunks_exact_mut(row) {
                let (q, rest) = token.split_at_mut(queries * width);
                of_queries.rows(q);
                of_keys.rows(&mut rest[..keys * width]);
            }
        });
    }

    /// Rotates queries and keys, moves keys and values to the caches, the queries `[T, H·D]` to where
    /// attention reads them. Sequences are shared out.
    fn split_qkv(
        &self,
        compute: KernelChoice,
        mut qkv: &mut [f32],
        rotary: &RotaryCache,
        (batch, layer): (&mut ForwardBatch, usize),
        mut queries: &mut [f32],
    ) {
        let (queries_end, width) = (self.heads.queries * self.heads.width, self.qkv.rows());
        let chunks = batch.chunks.len();
        let cost = SPLIT_COST * qkv.len() / chunks;
        let each = |(rows, cache): (Range<usize>, _)| NewTokens {
            cache,
            qkv: qkv.split_off_mut(..rows.len() * width).expect("rows of this batch"),
            queries: queries.split_off_mut(..rows.len() * queries_end).expect("rows of this batch"),
            rows,
        };
        let mut sequences = batch.rows().map(each);
        if chunks == 1 {
            // Nothing to share out, and nothing to allocate for a token of one sequence.
            let mut only = sequences.next().expect("one chunk");
            return only.enter(self.heads, layer, rotary);
        }
        let mut sequences: Vec<NewTokens> = sequences.collect();
        compute.threads.split(&mut sequences, 1, cost, |_, sequences| {
            for new in sequences {
                new.enter(self.heads, layer, rotary);
            }
        });
    }

    /// `x [T, C]` → `change [T, C]`
    fn feed_forward(&self, compute: KernelChoice, buffers: &mut Buffers) {
        let Buffers { x, normalised, gate_up, inner, change, products, .. } = buffers;
        let tokens = x.len() / self.gate_up.columns();
        let normalised = self.post_attention_norm.of(compute.threads, x, normalised);
        let gate_up = scratch_slice(gate_up, tokens * self.gate_up.rows());
        self.gate_up.forward(compute, normalised, products, gate_up);
        let inner = scratch_slice(inner, tokens * self.down.columns());
        gated(compute.threads, self.hidden_act, gate_up, self.down.columns(), inner);
        if let Some(norm) = &self.ffn_sub_norm {
            norm.in_place(compute.threads, inner);
        }
        self.down.forward(compute, inner, products, scratch_slice(change, x.len()));
    }
}

/// The queries, keys and values of one sequence in a batch.
struct NewTokens<'a> {
    rows: Range<usize>,
    cache: &'a mut KvCache,
    /// `[t, (H + 2 · kv heads) · D]`
    qkv: &'a mut [f32],
    /// `[t, H·D]`
    queries: &'a mut [f32],
}

impl NewTokens<'_> {
    /// Rotates them and moves each to where attention finds it.
    fn enter(&mut self, heads: Heads, layer: usize, rotary: &RotaryCache) {
        let (queries_end, keys_end) =
            (heads.queries * heads.width, (heads.queries + heads.keys) * heads.width);
        let width = keys_end + heads.keys * heads.width;
        let tokens = self.qkv.chunks_exact_mut(width);
        let places = self.queries.chunks_exact_mut(queries_end);
        for ((row, position), (qkv, queries)) in
            self.rows.clone().zip(self.cache.len()..).zip(tokens.zip(places))
        {
            // Queries and keys lie first and are rotated in place; values are not. Keys enter the
            // cache rotated, so that a cached key is never touched again.
            rotary.rotate(row, &mut qkv[..keys_end]);
            queries.copy_from_slice(&qkv[..queries_end]);
            self.cache.write(layer, position, &qkv[queries_end..keys_end], &qkv[keys_end..]);
        }
    }
}

fn add(compute: KernelChoice, x: &mut [f32], y: &[f32]) {
    const COST: usize = 4;
    compute.threads.split(x, 1, COST, |first, x| {
        x.iter_mut().zip(&y[first..]).for_each(|(x, y)| *x += y);
    });
}
