//! Causal attention of new tokens over the cache, several query heads to a key head.
//!
//! Projections, norms and the residual stream are the block's business, the arithmetic is that of
//! `bitnet_kernels::attention`. One token is split by key heads, several by tokens.

use bitnet_format::ModelSpec;
use bitnet_kernels::attention::{LANES, QUERIES, QueryRow, attend as attend_rows};

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

    /// Query heads of one key head; they lie side by side.
    fn group(self) -> usize {
        self.queries / self.keys
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
    let (width, group) = (heads.queries * heads.width, heads.group() * heads.width);
    let mut out = vec![0.0; queries.len()];
    if queries.len() == width {
        let cost = 2 * cache.len() * group;
        compute.threads.split(&mut out, group, cost, |first, out| {
            let queries = &queries[first * group..][..out.len()];
            let places = queries.chunks(group).zip(out.chunks_mut(group));
            for (head, (queries, out)) in (first..).zip(places) {
                group_of_heads(compute, heads, head, queries, cache.len() - 1, cache, out);
            }
        });
    } else {
        // As many tokens together as fill the rows of one pass.
        let together = (QUERIES / heads.group()).max(1) * width;
        let cost = 2 * cache.len() * together;
        compute.threads.split(&mut out, together, cost, |first, out| {
            let start = first * together;
            for (run, out) in out.chunks_mut(together).enumerate() {
                let at = start + run * together;
                let before = cache.len() - (queries.len() - at) / width;
                run_of_tokens(compute, heads, &queries[at..][..out.len()], before, cache, out);
            }
        });
    }
    out
}

/// Some tokens, the first with `before` tokens before it, `queries` and `out` `[t, H·D]`.
fn run_of_tokens(
    compute: Compute,
    heads: Heads,
    queries: &[f32],
    before: usize,
    cache: &LayerCache,
    out: &mut [f32],
) {
    let (width, group) = (heads.queries * heads.width, heads.group() * heads.width);
    let tokens = queries.len() / width;
    let mut rows = vec![0.0; tokens * group];
    let mut gathered = vec![0.0; tokens * group];
    for head in 0..heads.keys {
        let here = |token: usize| token * width + head * group..token * width + (head + 1) * group;
        for (token, rows) in rows.chunks_exact_mut(group).enumerate() {
            rows.copy_from_slice(&queries[here(token)]);
        }
        group_of_heads(compute, heads, head, &rows, before, cache, &mut gathered);
        for (token, gathered) in gathered.chunks_exact(group).enumerate() {
            out[here(token)].copy_from_slice(gathered);
        }
    }
}

/// The query heads of one key head for some tokens, `[t, group · D]`.
fn group_of_heads(
    compute: Compute,
    heads: Heads,
    head: usize,
    queries: &[f32],
    before: usize,
    cache: &LayerCache,
    out: &mut [f32],
) {
    let padded = heads.width.next_multiple_of(LANES);
    let mut scratch = Vec::new();
    let mut found = Vec::new();
    let visible = |row: usize| before + row / heads.group() + 1;
    let rows = queries.chunks_exact(heads.width).enumerate();
    let rows: Vec<QueryRow> =
        rows.map(|(row, query)| QueryRow { query, visible: visible(row) }).collect();
    let places = out.chunks_mut(QUERIES * heads.width);
    for (rows, out) in rows.chunks(QUERIES).zip(places) {
        found.resize(rows.len() * padded, 0.0);
        attend_rows(compute.kernel, rows, cache.head(head), &mut scratch, &mut found);
        for (out, found) in out.chunks_exact_mut(heads.width).zip(found.chunks_exact(padded)) {
            out.copy_from_slice(&found[..heads.width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    fn cache(heads: usize, width: usize, values: &[f32]) -> LayerCache {
        let mut cache = LayerCache::new(heads, width);
        for values in values.chunks(heads * width) {
            cache.push(&vec![0.0; heads * width], values);
        }
        cache
    }

    #[test]
    fn each_token_sees_itself_and_what_came_before() {
        // Equal keys: the output is the mean of the visible values.
        let heads = Heads { queries: 1, keys: 1, width: 2 };
        let threads = Threads::new(1).unwrap();
        let cache = cache(1, 2, &[2.0, 0.0, 4.0, 0.0, 12.0, 3.0]);
        let out = attend(Compute::alone(&threads), heads, &[1.0; 4], &cache);
        assert_eq!(out[..2], [3.0, 0.0]);
        assert!((out[2] - 6.0).abs() < 1e-6 && (out[3] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn neighbouring_query_heads_share_a_key_head() {
        let heads = Heads { queries: 4, keys: 2, width: 2 };
        let threads = Threads::new(1).unwrap();
        let cache = cache(2, 2, &[1.0, 2.0, 3.0, 4.0]);
        let out = attend(Compute::alone(&threads), heads, &[0.0; 8], &cache);
        assert_eq!(out, [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    }
}
