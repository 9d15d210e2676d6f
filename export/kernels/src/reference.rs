//! The reference: the products as they are defined, in plain Rust. Every other kernel gives the same
//! bits.

use crate::layout::{CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};

/// Lanes of a dense dot product.
pub(crate) const LANES: usize = 32;

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    tokens.check(sums.len(), pair.len());
    for (token, sums) in sums.iter_mut().enumerate() {
        *sums = [0; ROWS_PER_PAIR];
        for (chunk, x) in pair.iter().zip(tokens.of(token, pair.len())) {
            for (sum, bytes) in sums.iter_mut().zip(chunk.0.as_chunks::<4>().0) {
                *sum += row_product(*bytes, x);
            }
        }
    }
}

/// `Σ u·q` of one row over 16 columns: field `f` of byte `j` belongs to column `4f + j`.
fn row_product(bytes: [u8; 4], x: &[i8; CHUNK]) -> i32 {
    let code = |column: usize| i32::from((bytes[column % 4] >> (2 * (column / 4))) & 3);
    x.iter().enumerate().map(|(column, &x)| code(column) * i32::from(x)).sum()
}

/// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`.
#[inline]
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    let chunks = chunks_of(panel, tokens, sums.len());
    for (sums, token) in sums.iter_mut().zip(tokens.chunks_exact(chunks)) {
        *sums = [0; INT8_ROWS];
        for (line, x) in panel.iter().zip(token.as_flattened().as_chunks::<4>().0) {
            for (sum, u) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
                for (u, x) in u.iter().zip(x) {
                    *sum += i32::from(*u) * i32::from(*x);
                }
            }
        }
    }
}

/// Chunks of one of `count` tokens, which are as wide as an 8-bit panel.
pub(crate) fn chunks_of(panel: &[Line], tokens: &[[i8; CHUNK]], count: usize) -> usize {
    let chunks = panel.len().div_ceil(CHUNK / 4);
    assert_eq!(tokens.len(), chunks * count, "each token as wide as the panel");
    chunks
}

/// One token's `out` = `(sums - offset) · weights / scale`, in this order.
#[inline]
pub(crate) fn rescale(sums: &[i32], offset: i32, weights: &[f32], scale: f32, out: &mut [f32]) {
    for ((out, &sum), &weight) in out.iter_mut().zip(sums).zip(weights) {
        *out = (sum - offset) as f32 * weight / scale;
    }
}

/// `Σ w·x` in the order that [`crate::Kernel::dot`] states.
pub(crate) fn dot<W: Copy + Into<f32>>(w: &[W], x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len(), "two vectors of one length");
    let mut lanes = [0.0; LANES];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        add_products(&mut lanes, w, x);
    }
    finish_dot(lanes, w_rest, x_rest)
}

/// Adds the products that fill no vector to the first lanes, then halves to halves.
pub(crate) fn finish_dot<W: Copy + Into<f32>>(
    mut lanes: [f32; LANES],
    w_rest: &[W],
    x_rest: &[f32],
) -> f32 {
    add_products(&mut lanes, w_rest, x_rest);
    // 32 lanes, 16, 8, 4, 2, 1: the order in which vector registers are folded in halves.
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        width /= 2;
    }
    lanes[0]
}

fn add_products<W: Copy + Into<f32>>(lanes: &mut [f32; LANES], w: &[W], x: &[f32]) {
    for ((lane, &w), &x) in lanes.iter_mut().zip(w).zip(x) {
        let w: f32 = w.into();
        *lane += w * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_meets_its_column() {
        for column in 0..CHUNK {
            let mut x = [0; CHUNK];
            x[column] = 7;
            let mut bytes = [0x55u8; 4];
            bytes[column % 4] += 1 << (2 * (column / 4));
            assert_eq!(row_product(bytes, &x), 14);
            assert_eq!(row_product([0x55; 4], &x), 7);
        }
    }

    #[test]
    fn the_order_of_a_dot_product_is_frozen() {
        // Lane 0 holds 2²⁴ and takes 1 from the second chunk, which is lost; lane 1 keeps its 1
        // until the lanes meet, where it is lost too; the tail's 3 in lane 2 rounds up.
        let mut w = vec![0.0f32; 67];
        (w[0], w[32], w[1], w[66]) = (16_777_216.0, 1.0, 1.0, 3.0);
        assert_eq!(dot(&w, &[1.0; 67]), 16_777_220.0);
        assert_eq!(dot::<f32>(&[], &[]), 0.0);
    }
}
