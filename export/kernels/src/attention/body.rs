//! The loops of attention, written once over [`Vector`] and compiled for each instruction set.

use std::ops::Range;

use super::softmax::softmax;
use super::vector::{Element, Vector};
use crate::pages::{HeadView, LANES, PAGE};

/// How many tokens ahead values are prefetched.
const AHEAD: usize = 12;

/// One query row: its vector `[D]` and how many tokens it sees, the oldest first.
#[derive(Clone, Copy, Debug)]
pub struct QueryRow<'a> {
    /// The query, already rotated (RoPE).
    pub query: &'a [f32],
    /// Tokens it sees.
    pub visible: usize,
}

/// The whole of it, compiled into each instruction set's own function.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
pub(super) unsafe fn body<V: Vector, E: Element, const Q: usize, const W: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // `scores` is `[Q, length]`: every row has a place for each token of whole blocks, also for
    // those that it does not see. `softmax` sets these to 0, so no mask is kept.
    let length = scores.len() / Q;
    let blocks = length / LANES;
    // As many blocks at a time as the registers hold sums for, then one by one.
    let mut block = 0;
    while block < blocks {
        // SAFETY: the caller has the instructions of `V`.
        unsafe {
            if block + W <= blocks {
                block_scores::<V, E, Q, W>(rows, head, block, scores);
                block += W;
            } else {
                block_scores::<V, E, Q, 1>(rows, head, block, scores);
                block += 1;
            }
        }
    }
    let scale = 1.0 / (head.layout.width as f32).sqrt();
    for (row, scores) in rows.iter().zip(scores.chunks_exact_mut(length.max(1))) {
        softmax(scores, row.visible, scale);
    }
    out.fill(0.0);
    let longest = rows.iter().map(|row| row.visible).max().unwrap_or(0);
    let padded = head.layout.padded();
    // Page outside, elements inside: a page's values stay in the first cache while all elements
    // pass over them. Sums are kept in `out` between pages, so the order over tokens is 0, 1, 2, …
    // all the same.
    for start in (0..longest).step_by(PAGE) {
        let tokens = start..longest.min(start + PAGE);
        let mut first = 0;
        while first < padded {
            // SAFETY: as above.
            unsafe {
                if first + W * LANES <= padded {
                    weigh::<V, E, Q, W>(head, first, tokens.clone(), scores, out);
                    first += W * LANES;
                } else {
                    weigh::<V, E, Q, 1>(head, first, tokens.clone(), scores, out);
                    first += LANES;
                }
            }
        }
    }
}

/// `q·k` of every row with `W` blocks of sixteen keys `[D, 16]`, the first of which is `block`.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn block_scores<V: Vector, E: Element, const Q: usize, const W: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    block: usize,
    scores: &mut [f32],
) {
    let (width, length) = (head.layout.width, scores.len() / Q);
    let mut queries: [&[f32]; Q] = [&[]; Q];
    for (query, row) in queries.iter_mut().zip(rows) {
        *query = &row.query[..width];
    }
    let last = length / LANES - 1;
    let keys: [_; W] = std::array::from_fn(|w| &head.block(block + w)[..width]);
    // Past the last block the last one is fetched again, which costs nothing and needs no branch.
    let ahead: [_; W] = std::array::from_fn(|w| &head.block(last.min(block + W + w))[..width]);
    // SAFETY: the caller has the instructions of `V`.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; Q];
        // One vector of keys per block and element, shared by all Q queries:
        //
        //    key[w]  = [ k₀[d] k₁[d] … k₁₅[d] ]        a row of the transposed block
        //    sums[q] += splat(query q [d]) · key[w]    16 scores at once, each in the order d = 0, 1, …
        for d in 0..width {
            let mut key = [V::splat(0.0); W];
            for w in 0..W {
                key[w] = E::load(&keys[w][d]);
                // Blocks are long and lie apart: the hardware does not prefetch the next one in time.
                V::fetch(&ahead[w][d]);
            }
            for row in 0..Q {
                let query = V::splat(queries[row][d]);
                for w in 0..W {
                    sums[row][w] = sums[row][w].add_product(query, key[w]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let places = &mut scores[row * length + block * LANES..][..W * LANES];
            for (sum, place) in sums.into_iter().zip(places.as_chunks_mut().0) {
                sum.store(place);
            }
        }
    }
}

/// Adds some tokens of one page to `W` times sixteen elements of every row's output, from element `first` on.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn weigh<V: Vector, E: Element, const Q: usize, const W: usize>(
    head: HeadView<E>,
    first: usize,
    tokens: Range<usize>,
    weights: &[f32],
    out: &mut [f32],
) {
    let (length, padded, page) = (weights.len() / Q, out.len() / Q, tokens.start / PAGE);
    let mut rows: [&[f32]; Q] = [&[]; Q];
    for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(length.max(1))) {
        *row = &weights[tokens.clone()];
    }
    let values = &head.values(page)[..tokens.len() * padded];
    // What comes after, which the hardware does not prefetch in time.
    let next = head.values((page + 1).min(head.pages.len() - 1));
    let ahead = head.values(page).chunks_exact(padded).skip(AHEAD).chain(next.chunks_exact(padded));
    // SAFETY: the caller has the instructions of `V`.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; Q];
        for (row, sums) in sums.iter_mut().enumerate() {
            let places = &out[row * padded + first..][..W * LANES];
            for (sum, place) in sums.iter_mut().zip(places.as_chunks().0) {
                *sum = V::load(place);
            }
        }
        // A token hidden from a row has weight 0 there. Its product is still added: 0 · v changes
        // no sum as long as cached values are finite.
        for (t, (values, ahead)) in values.chunks_exact(padded).zip(ahead).enumerate() {
            let values = values[first..][..W * LANES].as_chunks().0;
            let ahead = &ahead[first..][..W * LANES];
            let mut value = [V::splat(0.0); W];
            for w in 0..W {
                value[w] = E::load(&values[w]);
                V::fetch(&ahead[w * LANES]);
            }
            for row in 0..Q {
                let weight = V::splat(rows[row][t]);
                for w in 0..W {
                    sums[row][w] = sums[row][w].add_product(weight, value[w]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let places = &mut out[row * padded + first..][..W * LANES];
            for (sum, place) in sums.into_iter().zip(places.as_chunks_mut().0) {
                sum.store(place);
            }
        }
    }
}
