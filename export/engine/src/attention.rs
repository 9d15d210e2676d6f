//! Causal attention of new tokens over the cache, several query heads to a key head.
//!
//! `block` does projections, norms and the residual stream; the arithmetic is that of
//! `bitnet_kernels::attention`. Single tokens of sequences are split by key heads, several of one by tokens.

use bitnet_format::ModelSpec;
use bitnet_kernels::attention::{Element, LANES, QUERIES, QueryRow, attend as attend_rows};

use crate::cache::{CachedLayer, LayerView};
use crate::compute::KernelChoice;
use crate::workspace::{ThreadScratch, scratch_slice, with_thread_scratch};

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

/// `queries [T, H·D]` of the last `T` tokens of the cache → `out [T, H·D]`.
///
/// A score is `q·k / sqrt(D)`; the softmax subtracts the maximum and divides before the values
/// are summed, oldest first.
pub(crate) fn attend(
    compute: KernelChoice,
    heads: Heads,
    queries: &[f32],
    cache: CachedLayer,
    out: &mut [f32],
) {
    match cache {
        CachedLayer::F32(layer) => attend_layer(compute, heads, queries, layer, out),
        CachedLayer::F16(layer) => attend_layer(compute, heads, queries, layer, out),
    }
}

fn attend_layer<E: Element>(
    compute: KernelChoice,
    heads: Heads,
    queries: &[f32],
    cache: LayerView<E>,
    out: &mut [f32],
) {
    let width = heads.queries * heads.width;
    // As many tokens together as fill the rows of one pass, so that a thread reads each key once for
    // all of them.
    let together = (QUERIES / heads.group()).max(1) * width;
    let cost = 2 * cache.len() * together;
    compute.threads.split(out, together, cost, |first, out| {
        let at = first * together;
        // The cache holds the new tokens already: the token at `at` sees all but those after it.
        let before = cache.len() - (queries.len() - at) / width;
        let queries = &queries[at..][..out.len()];
        with_thread_scratch(|scratch| {
            run_of_tokens(compute, heads, queries, before, cache, scratch, out);
        });
    });
}

/// One new token of each of several sequences, `queries` and `out` `[T, H·D]`; `cache(t)` is the layer
/// that token `t` sees, itself included. The key heads of all of them are shared out: there is nothing
/// else to split.
pub(crate) fn attend_one_each<'a>(
    compute: KernelChoice,
    heads: Heads,
    queries: &[f32],
    cache: impl Fn(usize) -> CachedLayer<'a> + Sync,
    out: &mut [f32],
) {
    let group = heads.group() * heads.width;
    let tokens = out.len() / (heads.queries * heads.width);
    let seen: usize = (0..tokens).map(|token| cache(token).len()).sum();
    let cost = 2 * seen.div_ceil(tokens.max(1)) * group;
    compute.threads.split(out, group, cost, |first, out| {
        with_thread_scratch(|scratch| {
            let queries = queries[first * group..].chunks(group);
            for (at, (queries, out)) in (first..).zip(queries.zip(out.chunks_mut(group))) {
                let (token, head) = (at / heads.keys, at % heads.keys);
                match cache(token) {
                    CachedLayer::F32(layer) => {
                        let seen = VisibleKeys::before_last(layer, head);
                        group_of_heads(compute, heads, queries, seen, scratch, out);
                    }
                    CachedLayer::F16(layer) => {
                        let seen = VisibleKeys::before_last(layer, head);
                        group_of_heads(compute, heads, queries, seen, scratch, out);
                    }
                }
            }
        });
    });
}

/// What some query rows look at: one head of a cache.
#[derive(Clone, Copy)]
struct VisibleKeys<'a, E> {
    cache: LayerView<'a, E>,
    head: usize,
    /// Tokens before that of the first row.
    before: usize,
}

impl<'a, E> VisibleKeys<'a, E> {
    /// What the last token of a cache sees.
    fn before_last(cache: LayerView<'a, E>, head: usize) -> Self {
        let before = cache.len() - 1;
        Self { cache, head, before }
    }
}

/// Some tokens, the first with `before` tokens before it, `queries` and `out` `[t, H·D]`.
fn run_of_tokens<E: Element>(
    compute: KernelChoice,
    heads: Heads,
    queries: &[f32],
    before: usize,
    cache: LayerView<E>,
    scratch: &mut ThreadScratch,
    out: &mut [f32],
) {
    let (width, group) = (heads.queries * heads.width, heads.group() * heads.width);
    let mut gathered = std::mem::take(&mut scratch.queries);
    let tokens = queries.len() / width;
    let (rows, results) =
        scratch_slice(&mut gathered, 2 * tokens * group).split_at_mut(tokens * group);
    // Query heads that share a key head become rows of one pass, token after token:
    //
    //    queries  [ t0: h0 h1 h2 h3 | t1: h0 h1 h2 h3 ]     2 key heads, 2 query heads each
    //    rows     key head 0: t0h0 t0h1 t1h0 t1h1           a key is loaded once for all four
    //
    // Heads outside, tokens inside: the keys and values of a head stay in the second cache while all
    // tokens pass over them, where those of all heads would not.
    for head in 0..heads.keys {
        let here = |token: usize| token * width + head * group..token * width + (head + 1) * group;
        for (token, rows) in rows.chunks_exact_mut(group).enumerate() {
            rows.copy_from_slice(&queries[here(token)]);
        }
        group_of_heads(compute, heads, rows, VisibleKeys { cache, head, before }, scratch, results);
        for (token, results) in results.chunks_exact(group).enumerate() {
            out[here(token)].copy_from_slice(results);
        }
    }
    scratch.queries = gathered;
}

/// The query heads of one key head for some tokens, `[t, group · D]`.
fn group_of_heads<E: Element>(
    compute: KernelChoice,
    heads: Heads,
    queries: &[f32],
    seen: VisibleKeys<E>,
    scratch: &mut ThreadScratch,
    out: &mut [f32],
) {
    let padded = heads.width.next_multiple_of(LANES);
    let places = out.chunks_mut(QUERIES * heads.width);
    let some = queries.chunks(QUERIES * heads.width).zip(places).enumerate();
    for (pass, (queries, out)) in some {
        let mut rows = [QueryRow { query: &[], visible: 0 }; QUERIES];
        let count = queries.len() / heads.width;
        for (i, query) in queries.chunks_exact(heads.width).enumerate() {
            // Rows come `group` a token, so row i belongs to token i / group; each sees one token
            // more.
            let visible = seen.before + (pass * QUERIES + i) / heads.group() + 1;
            rows[i] = QueryRow { query, visible };
        }
        let (view, found) =
            (seen.cache.head(seen.head), scratch_slice(&mut scratch.found, count * padded));
        attend_rows(compute.kernel, &rows[..count], view, &mut scratch.scores, found);
        for (out, found) in out.chunks_exact_mut(heads.width).zip(found.chunks_exact(padded)) {
            out.copy_from_slice(&found[..heads.width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvCache, ThreadPool};

    /// A cache of one layer with keys of zeros.
    fn cache(heads: Heads, values: &[f32]) -> KvCache {
        let spec = format!(
            "hidden_size = {0}\nintermediate_size = 4\nnum_hidden_layers = 1\nhead_dim = {1}\n\
             num_attention_heads = {2}\nnum_key_value_heads = {3}\nvocab_size = 9\n\
             max_position_embeddings = 16",
            heads.queries * heads.width,
            heads.width,
            heads.queries,
            heads.keys
        );
        let mut cache = KvCache::new(&toml::from_str(&spec).unwrap());
        for (position, values) in values.chunks(heads.keys * heads.width).enumerate() {
            cache.write(0, position, &vec![0.0; values.len()], values);
        }
        cache
    }

    #[test]
    fn each_token_sees_itself_and_what_came_before() {
        // Equal keys: the output is the mean of the visible values.
        let heads = Heads { queries: 1, keys: 1, width: 2 };
        let threads = ThreadPool::new(1).unwrap();
        let cache = cache(heads, &[2.0, 0.0, 4.0, 0.0, 12.0, 3.0]);
        let mut out = [7.0; 4];
        attend(KernelChoice::alone(&threads), heads, &[1.0; 4], cache.layer(0, 3), &mut out);
        assert_eq!(out[..2], [3.0, 0.0]);
        assert!((out[2] - 6.0).abs() < 1e-6 && (out[3] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn neighbouring_query_heads_share_a_key_head() {
        let heads = Heads { queries: 4, keys: 2, width: 2 };
        let threads = ThreadPool::new(1).unwrap();
        let cache = cache(heads, &[1.0, 2.0, 3.0, 4.0]);
        let means = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
        let (compute, mut out) = (KernelChoice::alone(&threads), [7.0; 8]);
        attend(compute, heads, &[0.0; 8], cache.layer(0, 1), &mut out);
        assert_eq!(out, means);
        let mut two = [7.0; 16];
        attend_one_each(compute, heads, &[0.0; 16], |_| cache.layer(0, 1), &mut two);
        assert_eq!((&two[..8], &two[8..]), (&means[..], &means[..]));
    }
}
