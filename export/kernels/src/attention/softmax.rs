//! Softmax over the scores of a row, with sums and `exp` that are the same on every CPU.

use crate::pages::LANES;

/// Scores of the tokens that are seen become weights; the others become 0.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32], visible: usize, scale: f32) {
    let (seen, hidden) = scores.split_at_mut(visible.min(scores.len()));
    hidden.fill(0.0);
    // `1 / sqrt(D)` is part of the exponent: `s · scale - max` is one fused step, rounded once.
    let largest = largest(seen) * scale;
    for score in seen.iter_mut() {
        *score = exp(score.mul_add(scale, -largest));
    }
    let sum = sum(seen);
    for score in seen {
        *score /= sum;
    }
}

/// The largest value.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, value| max.max(*value))
}

/// In a fixed order: sixteen lanes, then the lanes, then the rest.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// `e^x` for `x ≤ 0` to about one unit in the last place, from the same steps everywhere: the
/// system's own function differs from machine to machine and does not fill vectors.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0; // 1.5 · 2²³
    // Below this the result would be subnormal; it counts for nothing.
    let x = if x < -87.0 { -87.0 } else { x };
    // The whole number is now in the last bits. (As a cast it would not vectorise.)
    let whole = x.mul_add(std::f32::consts::LOG2_E, NO_FRACTIONS);
    let n = whole - NO_FRACTIONS;
    // ln 2 in two parts, so that the remainder is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut sum = 1.987_569_1e-4f32;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum.mul_add(r, factor);
    }
    let power = f32::from_bits((whole.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (sum.mul_add(r * r, r) + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_definition() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 1.3e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-1e9) > 0.0), (1.0, true));
    }

    #[test]
    fn weights_of_hidden_tokens_are_zero_and_the_others_add_up_to_one() {
        let mut scores = [3.0, 1e4, 1e4, -1e4, 7.0];
        softmax(&mut scores, 4, 1.0);
        assert_eq!(scores[1..], [0.5, 0.5, scores[3], 0.0]);
        assert!(scores[3] < 1e-30);
    }
}
