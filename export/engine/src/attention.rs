//! Causal attention of new tokens over the cache, several query heads to a key head.
//!
//! Projections, norms and the residual stream are the block's business.

use bitnet_format::ModelSpec;

use crate::cache::LayerCache;
use crate::compute::Compute;

/// How the heads of a model lie in its vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads, `H`.
    pub(crate) queries: usize,
    /// Key heads, as many as value heads.
    pub(crate) keys: usize,
    /// Head width, `D`.
    pub(crate) width: usize,
}

impl Heads {
    pub(crate) fn of(spec: &ModelSpec) -> Self {
        let (queries, keys) = (spec.num_attention_heads, spec.num_key_value_heads);
        Self { queries, keys, width: spec.head_dim }
    }
}

/// `queries [T, H·D]` of the last `T` tokens of the cache → `[T, H·D]`.
///
/// A score is `q·k / sqrt(D)`; the softmax subtracts the maximum and divides before the values
/// are summed, oldest first.
pub(crate) fn attend(
    compute: Compute,
    heads: Heads,
    queries: &[f32],
    cache: &LayerCache,
) -> Vec<f32> {
    let tokens = queries.len() / (heads.queries * heads.width);
    let seen = cache.keys.len() / (heads.keys * heads.width);
    let mut out = vec![0.0; queries.len()];
    let kernel = compute.kernel;
    compute.threads.split(&mut out, heads.width, 2 * seen * heads.width, |first, out| {
        let mut scores = Vec::with_capacity(seen);
        for (index, out) in (first..).zip(out.chunks_exact_mut(heads.width)) {
            let (token, head) = (index / heads.queries, index % heads.queries);
            let visible = seen - tokens + token + 1;
            let key_head = head / (heads.queries / heads.keys);
            let of_head = |all| rows(all, heads, key_head).take(visible);
            let query = &queries[index * heads.width..][..heads.width];
            scores.clear();
            scores.extend(of_head(&cache.keys).map(|key| kernel.dot(query, key)));
            softmax(&mut scores, 1.0 / (heads.width as f32).sqrt());
            for (&weight, value) in scores.iter().zip(of_head(&cache.values)) {
                kernel.add_scaled(out, weight, value);
            }
        }
    });
    out
}

/// The vectors of one key or value head, oldest first.
fn rows(all: &[f32], heads: Heads, head: usize) -> impl Iterator<Item = &[f32]> {
    let tokens = all.chunks_exact(heads.keys * heads.width);
    tokens.map(move |token| &token[head * heads.width..][..heads.width])
}

fn softmax(scores: &mut [f32], scale: f32) {
    for score in scores.iter_mut() {
        *score *= scale;
    }
    let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, &score| largest.max(score));
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    #[test]
    fn each_token_sees_itself_and_what_came_before() {
        // Equal keys: the output is the mean of the visible values.
        let heads = Heads { queries: 1, keys: 1, width: 2 };
        let threads = Threads::new(1).unwrap();
        let cache = LayerCache { keys: vec![0.0; 6], values: vec![2.0, 0.0, 4.0, 0.0, 12.0, 3.0] };
        let out = attend(Compute::alone(&threads), heads, &[1.0; 4], &cache);
        assert_eq!(out[..2], [3.0, 0.0]);
        assert!((out[2] - 6.0).abs() < 1e-6 && (out[3] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn neighbouring_query_heads_share_a_key_head() {
        let heads = Heads { queries: 4, keys: 2, width: 2 };
        let threads = Threads::new(1).unwrap();
        let cache = LayerCache { keys: vec![0.0; 4], values: vec![1.0, 2.0, 3.0, 4.0] };
        let out = attend(Compute::alone(&threads), heads, &[0.0; 8], &cache);
        assert_eq!(out, [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let mut scores = [1e4, 1e4, -1e4];
        softmax(&mut scores, 1.0);
        assert_eq!(scores, [0.5, 0.5, 0.0]);
    }
}
