//! The loops of attention, written once over [`Vector`] and compiled for each instruction set.

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
        // The weights of a token beside each other: one address serves all rows, and the sums stay
        // in registers.
        let mut weights = [[0.0; Q]; PAGE];
        for (row, scores) in scores.chunks_exact(length.max(1)).enumerate() {
            for (weights, score) in weights.iter_mut().zip(&scores[tokens.clone()]) {
                weights[row] = *score;
            }
        }
        let weights = &weights[..tokens.len()];
        let mut first = 0;
        while first < padded {
            // SAFETY: as above.
            unsafe {
                if first + W * LANES <= padded {
                    weigh::<V, E, Q, W>(head, [start / PAGE, first], weights, out);
                    first += W * LANES;
                } else {
                    weigh::<V, E, Q, 1>(head, [start / PAGE, first], weights, out);
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

/// Adds the first tokens of a page, with `weights [t][row]`, to `W` times sixteen elements of every row's
/// output, from element `first` on.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn weigh<V: Vector, E: Element, const Q: usize, const W: usize>(
    head: HeadView<E>,
    [page, first]: [usize; 2],
    weights: &[[f32; Q]],
    out: &mut [f32],
) {
    let padded = out.len() / Q;
    // What comes after this page the hardware does not prefetch in time.
    let (here, next) = (head.values(page), head.values((page + 1).min(head.pages.len() - 1)));
    let mut rows = out.chunks_exact_mut(padded);
    let places: [&mut [[f32; LANES]; W]; Q] = std::array::from_fn(|_| {
        let row = &mut rows.next().expect("a row for each query")[first..];
        row.as_chunks_mut().0.first_chunk_mut().expect("as many elements as vectors hold")
    });
    // SAFETY: the caller has the instructions of `V`.
    unsafe {
        // Plain loops: these are unrolled, and a call in between would move the sums out of their
        // registers for each token. (Iterators of iterators are calls.)
        let mut sums = [[V::splat(0.0); W]; Q];
        for row in 0..Q {
            for w in 0..W {
                sums[row][w] = V::load(&places[row][w]);
            }
        }
        // A token hidden from a row has weight 0 there. Its product is still added: 0 · v changes
        // no sum as long as cached values are finite.
        for (token, weights) in weights.iter().enumerate() {
            let values = here[token * padded + first..][..W * LANES].as_chunks().0;
            let later = (token + AHEAD) * padded + first;
            let behind = later.saturating_sub(here.len());
            let ahead = if later < here.len() { &here[later..] } else { &next[behind..] };
            let ahead = &ahead[..W * LANES];
            let mut value = [V::splat(0.0); W];
            for w in 0..W {
                value[w] = E::load(&values[w]);
                V::fetch(&ahead[w * LANES]);
            }
            for row in 0..Q {
                let weight = V::splat(weights[row]);
                for w in 0..W {
                    sums[row][w] = sums[row][w].add_product(weight, value[w]);
                }
            }
        }
        for row in 0..Q {
            for w in 0..W {
                sums[row][w].store(&mut places[row][w]);
            }
        }
    }
}
