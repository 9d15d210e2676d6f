//! `ln Σ exp` over the logits of a token, which every log-probability needs.
//!
//! The exponentials are f32, good to one unit in the last place ([`exp`]); their sums are f64, in sixteen
//! lanes that are added in order, so every kernel gives the same bits. A log-probability is then within
//! 1e-6 of one computed in f64 alone.
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::attention::{LANES, exp, largest};
use crate::{Kernel, SimdWork};

/// What turns a logit into a log-probability: `logit - largest - log_sum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSum {
    /// The largest logit.
    pub largest: f32,
    /// `ln Σ exp(logit - largest)`.
    pub log_sum: f64,
}

impl LogSum {
    /// Of the logits `[V]` of one token.
    pub fn of(kernel: Kernel, logits: &[f32]) -> Self {
        kernel.dispatch(LogitsOfToken(logits))
    }

    /// The log-probability of a token with this logit.
    pub fn logprob(self, logit: f32) -> f64 {
        f64::from(logit) - f64::from(self.largest) - self.log_sum
    }
}

struct LogitsOfToken<'a>(&'a [f32]);

impl SimdWork for LogitsOfToken<'_> {
    type Output = LogSum;

    #[inline(always)]
    fn run(self) -> LogSum {
        let largest = largest(self.0);
        let share = |logit: &f32| f64::from(exp(logit - largest));
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for logits in whole {
            for (lane, logit) in lanes.iter_mut().zip(logits) {
                *lane += share(logit);
            }
        }
        let sum: f64 = lanes.into_iter().chain(rest.iter().map(share)).sum();
        LogSum { largest, log_sum: sum.ln() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of a large vocabulary, with a tail and a few that are far apart.
    fn logits(count: usize) -> Vec<f32> {
        let one = |i: usize| {
            (i * 7919 % 1009) as f32 / 40.0 - if i.is_multiple_of(97) { 120.0 } else { 0.0 }
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn every_kernel_gives_the_same_bits_close_to_those_of_f64() {
        for count in [1, 15, 16, 17, 5000, 128_256] {
            let logits = logits(count);
            let found = LogSum::of(Kernel::Scalar, &logits);
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - found.largest).exp()).sum();
            assert!(
                (found.log_sum - sum.ln()).abs() < 3e-7,
                "{count}: {}",
                found.log_sum - sum.ln()
            );
            for kernel in Kernel::available() {
                assert_eq!(LogSum::of(kernel, &logits), found, "{count} {kernel:?}");
            }
        }
    }

    #[test]
    fn equal_logits_share_alike_and_impossible_ones_count_for_nothing() {
        let all = LogSum::of(Kernel::Scalar, &[2.0; 4]);
        assert!((all.logprob(2.0) - 0.25f64.ln()).abs() < 1e-15);
        let some = LogSum::of(Kernel::Scalar, &[2.0, f32::NEG_INFINITY, 2.0]);
        assert!((some.logprob(2.0) - 0.5f64.ln()).abs() < 1e-15);
        assert_eq!(some.logprob(f32::NEG_INFINITY), f64::NEG_INFINITY);
    }
}
