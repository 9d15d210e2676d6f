//! The one order in which an `RMSNorm` sums its squares.
//!
//! It is defined here, beside the quantisers, because it decides activation codes: where `x · a` is
//! exactly halfway between two codes (common with BF16 embeddings), the last bit of the norm picks
//! one, and that moves a logit by 1e-3. The order is that of torch's CPU reduction over contiguous
//! rows (8 lanes, 4 accumulators), so that codes agree with models trained there.
#![expect(clippy::inline_always, reason = "callers compile these loops for their CPU")]

/// Lanes of one accumulator.
const LANES: usize = 8;
/// Accumulators that run side by side.
const ACCUMULATORS: usize = 4;

/// `Σ a·b` over two rows of one length in the fixed order.
#[inline(always)]
fn fixed_order_sum(a: &[f32], b: &[f32]) -> f32 {
    // The order, for a row of 43 values:
    //
    //    sums[0]   x0 … x7   + x32 … x39     four vectors at a time, the rest into the first
    //    sums[1]   x8 … x15
    //    sums[2]   x16 … x23
    //    sums[3]   x24 … x31
    //    tail      x40 + x41 + x42
    //    then sums[0] + sums[1] + sums[2] + sums[3] lane by lane, then tail + lane 0 + lane 1 + …
    let mut sums = [[0.0f32; LANES]; ACCUMULATORS];
    let (a_whole, a_rest) = a.as_chunks::<{ LANES * ACCUMULATORS }>();
    let (b_whole, b_rest) = b.as_chunks::<{ LANES * ACCUMULATORS }>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for ((sum, a), b) in sums.as_flattened_mut().iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let ((a_rest, a_tail), (b_rest, b_tail)) =
        (a_rest.as_chunks::<LANES>(), b_rest.as_chunks::<LANES>());
    for (a, b) in a_rest.iter().zip(b_rest) {
        for ((sum, a), b) in sums[0].iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let tail = a_tail.iter().zip(b_tail).fold(0.0, |sum, (a, b)| sum + a * b);
    let [mut total, rest @ ..] = sums;
    for sums in rest {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum;
        }
    }
    total.iter().fold(tail, |sum, lane| sum + lane)
}

/// `1 / sqrt(mean(x²) + eps)` of one row `[C]`.
#[inline(always)]
pub fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mean_square = fixed_order_sum(row, row) / row.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}

/// The dot product of two rows, summed in the fixed order.
#[inline(always)]
pub fn fixed_order_dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "rows of one length");
    fixed_order_sum(a, b)
}

/// `out = x · inverse_rms · gain` for one row `[C]`; returns the inverse.
#[inline(always)]
pub fn rms_norm_row(row: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    assert!(row.len() == gain.len() && row.len() == out.len(), "rows of one length");
    let inverse = inverse_rms(row, eps);
    for ((out, &x), &gain) in out.iter_mut().zip(row).zip(gain) {
        *out = x * inverse * gain;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_summation_is_frozen() {
        // 2²⁴ swallows each lone 1 added to it, so the sum tells which terms met before it: vectors
        // 1 to 3 in lane 0, the tail of 3, and the other seven lanes with 5 terms each.
        let mut row = [1.0f32; 43];
        row[0] = 16_777_216.0;
        let sum = fixed_order_sum(&row, &[1.0; 43]);
        assert_eq!(sum, 16_777_248.0);
        assert_ne!(sum, row.iter().sum::<f32>(), "plain order gives another sum");
    }

    #[test]
    fn a_zero_row_stays_zero() {
        let mut out = [1.0; 3];
        let inverse = rms_norm_row(&[0.0; 3], &[1.0, 2.0, 3.0], 1e-4, &mut out);
        assert_eq!(inverse, 1.0 / 1e-4f32.sqrt());
        assert_eq!(out, [0.0; 3]);
    }
}
