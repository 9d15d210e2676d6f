//! Causal grouped-query attention (arXiv 2305.13245) with rotary positions (arXiv 2104.09864), each
//! token inside its own document.
//!
//! ```text
//! scores  = rotary(q) · rotary(k)ᵀ / sqrt(D)      masked: start of the document ≤ key ≤ query
//! weights = softmax(scores)
//! y       = weights · v
//! ```

mod cpu;
mod reference;
mod softmax;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use crate::ops::OpBackend;
use crate::ops::native::NativeDispatch;

pub use reference::LazyMask;

/// How heads lie in a token's row of queries, keys and values, and what each token may see.
///
/// ```text
/// one token:  [ q 0 | q 1 | … | q H-1 | k 0 … k KV-1 | v 0 … v KV-1 ]    each D wide
/// ```
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Sequences, `B`.
    pub batch: usize,
    /// Tokens of a sequence, `T`.
    pub time: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key and value heads, `KV`; each serves `H / KV` neighbouring query heads.
    pub kv_heads: usize,
    /// Width of a head, `D`.
    pub head_dim: usize,
    /// For each token `[B, T]` the first token of its sequence that it sees: the start of its
    /// document.
    pub segment_starts: Arc<Vec<i32>>,
    /// Cosine for each token's position and each frequency, `[B, T, D/2]`.
    pub cos: Arc<Vec<f32>>,
    /// Sine likewise.
    pub sin: Arc<Vec<f32>>,
    /// The last three as tensors, for devices that compute with them.
    pub mask: LazyMask,
}

impl AttentionShape {
    /// Query heads that share a key head, `G`.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of one token: `(H + 2 KV)·D`.
    pub fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Attention of whole sequences: `qkv [B, T, (H + 2 KV)·D]` → `[B, T, H·D]`
pub fn attention(qkv: Tensor<3>, shape: &AttentionShape, backend: OpBackend) -> Tensor<3> {
    if !backend.is_native() {
        return reference::attention(qkv, shape, backend);
    }
    let op = cpu::NativeAttention { shape: shape.clone(), backend };
    Tensor::from_dispatch(Dispatch::run1(qkv.into_dispatch(), op))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ops::testing::{
        PRECISIONS, assert_within, cases, compare, draw, gradient, leaf, tolerance, with_gradients,
    };
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    /// Sequences of documents of random lengths; the first sequence is one document.
    pub(crate) fn random_shape(
        [batch, time]: [usize; 2],
        [group, kv_heads, half]: [usize; 3],
        seed: u64,
    ) -> AttentionShape {
        let lengths = draw(seed, "documents", batch * time);
        let mut segment_starts = Vec::new();
        for sequence in 0..batch {
            let mut start = 0;
            for at in 0..time {
                if sequence > 0 && at > 0 && lengths[sequence * time + at] > 1.2 {
                    start = at as i32;
                }
                segment_starts.push(start);
            }
        }
        let angles: Vec<f32> = draw(seed, "angles", batch * time * half);
        let table = |f: fn(f32) -> f32| Arc::new(angles.iter().map(|&angle| f(angle)).collect());
        AttentionShape {
            batch,
            time,
            heads: group * kv_heads,
            kv_heads,
            head_dim: 2 * half,
            segment_starts: Arc::new(segment_starts),
            cos: table(f32::cos),
            sin: table(f32::sin),
            mask: LazyMask::default(),
        }
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn attention_equals_its_reference(
            batch in 1usize..4, time in 1usize..150, group in 1usize..4, kv_heads in 1usize..3,
            half in 1usize..20, seed: u64,
        ) {
            compare("attention", 1.0, seed, |backend, seed| {
                let shape = random_shape([batch, time], [group, kv_heads, half], seed);
                let count = batch * time * shape.stride();
                let qkv = leaf(draw(seed, "qkv", count), [batch, time, shape.stride()]);
                let y = attention(qkv.clone(), &shape, backend);
                with_gradients(&y, seed, |grads| vec![gradient(&qkv, grads)])
            });
        }
    }

    /// Long enough for several groups of tiles: the reference agrees, and threads change no bit.
    #[test]
    fn a_long_sequence_is_summed_in_one_order() {
        let shape = random_shape([2, 700], [2, 2, 8], 3);
        let qkv = leaf(draw(3, "qkv", 1400 * shape.stride()), [2, 700, shape.stride()]);
        let run = |backend| {
            let y = attention(qkv.clone(), &shape, backend);
            with_gradients(&y, 3, |grads| vec![gradient(&qkv, grads)])
        };
        let expected = run(OpBackend::reference(Operands::F32));
        for operands in PRECISIONS {
            let found = run(OpBackend::native(operands));
            assert_within(&found, &expected, 2.0 * tolerance(operands), "long attention");
        }
        let backend = OpBackend::native(Operands::F32);
        let expected = run(backend);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| run(backend)) == expected, "{threads} threads");
        }
    }
}
