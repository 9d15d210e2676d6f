//! `RMSNorm`: `x / sqrt(mean x² + eps)`, then the gain, all in f32. The order in which squares are
//! summed is `bitnet-format`'s, the one that training uses.

use bitnet_format::norm::{inverse_rms, rms_norm_row};

use crate::ThreadPool;
use crate::workspace::scratch_slice;

/// What one value costs next to a multiply-add of a kernel, roughly.
const COST: usize = 16;

/// A norm of one width.
#[derive(Debug)]
pub(crate) struct NormWeights {
    gain: Vec<f32>,
    eps: f32,
}

impl NormWeights {
    pub(crate) fn new(gain: Vec<f32>, eps: f64) -> Self {
        Self { gain, eps: eps as f32 }
    }

    /// `x [T, width]`, each token for itself.
    pub(crate) fn in_place(&self, threads: &ThreadPool, x: &mut [f32]) {
        let width = self.gain.len();
        threads.split(x, width, COST * width, |_, x| self.rows(x));
    }

    /// The same on this thread.
    pub(crate) fn rows(&self, x: &mut [f32]) {
        for token in x.chunks_exact_mut(self.gain.len()) {
            let inverse = inverse_rms(token, self.eps);
            for (x, gain) in token.iter_mut().zip(&self.gain) {
                // Two roundings in transformers' order: first the normalised value, then the gain.
                *x = *x * inverse * gain;
            }
        }
    }

    /// A normalised copy of `x [T, width]` in `copy`.
    pub(crate) fn of<'c>(
        &self,
        threads: &ThreadPool,
        x: &[f32],
        copy: &'c mut Vec<f32>,
    ) -> &'c mut [f32] {
        let (width, copy) = (self.gain.len(), scratch_slice(copy, x.len()));
        threads.split(copy, width, COST * width, |first, copy| {
            let tokens = x[first * width..].chunks_exact(width);
            for (copy, token) in copy.chunks_exact_mut(width).zip(tokens) {
                rms_norm_row(token, &self.gain, self.eps, copy);
            }
        });
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_own_mean_square() {
        let norm = NormWeights::new(vec![1.0, 2.0], 0.0);
        let mut copy = Vec::new();
        let normalised = norm.of(&ThreadPool::new(1).unwrap(), &[3.0, 3.0, 0.0, 2.0], &mut copy);
        assert_eq!(normalised, [1.0, 2.0, 0.0, 2.0 * (2.0 * (1.0 / 2.0f32.sqrt()))]);
    }

    #[test]
    fn a_zero_token_stays_zero() {
        let norm = NormWeights::new(vec![5.0; 3], 1e-5);
        assert_eq!(norm.of(&ThreadPool::new(1).unwrap(), &[0.0; 3], &mut Vec::new()), [0.0; 3]);
    }
}
