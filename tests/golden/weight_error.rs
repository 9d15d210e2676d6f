//! How far the weights of two correct trajectories may be apart, element by element.
//!
//! AdamW moves a weight by `rate · m / (√v + eps)`. `m` is a mean of gradients and `√v` the root of a
//! mean of their squares, so when every gradient is off by at most `d`, so are both, and the quotient
//! by at most `2 d / (√v + eps)`: next to nothing where gradients are large, and everything where
//! they are as small as `d` itself.

use bitnet_train::train::{AdamW, AdamWSettings};

use super::sets::host;

/// The error of one element of a gradient, in root mean squares of its parameter's. Two f32
/// implementations agree to 1e-6 of a parameter's length (`golden_masked_sum_loss_gradients`); a
/// single element may be ten times worse than the rest.
const GRADIENT_ERROR: f64 = 1e-5;

/// A bound for every element of every parameter, in the order of the model.
pub(crate) struct WeightError {
    settings: AdamWSettings,
    bounds: Vec<Vec<f64>>,
    /// The same, but nothing where every gradient was exactly zero. Behind a dead unit they are so for
    /// everybody; that sums cancel for one of two alone is too rare to meet a near-tie as well.
    pub(crate) likely: Vec<Vec<f64>>,
}

impl WeightError {
    /// The error of the weights both trajectories start from: none.
    pub(crate) fn none(sizes: &[usize], settings: AdamWSettings) -> Self {
        let bounds: Vec<_> = sizes.iter().map(|&size| vec![0.0; size]).collect();
        Self { settings, likely: bounds.clone(), bounds }
    }

    /// That after one more update, which `optimizer` has just made.
    pub(crate) fn after(&self, optimizer: &AdamW, rate: f64) -> Self {
        let steps = i32::try_from(optimizer.updates).unwrap();
        let correction = 1.0 - self.settings.beta2.powi(steps);
        let (mut all, mut all_likely) = (Vec::new(), Vec::new());
        for (bounds, second) in self.bounds.iter().zip(&optimizer.second) {
            let roots = host(second.clone());
            let roots: Vec<_> = roots.iter().map(|v| (f64::from(*v) / correction).sqrt()).collect();
            let mean = roots.iter().map(|root| root * root).sum::<f64>() / roots.len() as f64;
            let error = GRADIENT_ERROR * mean.sqrt();
            let moved = |root: f64| rate * (2.0 * error / (root + self.settings.eps)).min(2.0);
            let bounds: Vec<_> = bounds.iter().zip(&roots).map(|(b, &r)| b + moved(r)).collect();
            let likely = bounds.iter().zip(&roots);
            all_likely.push(likely.map(|(b, &root)| if root == 0.0 { 0.0 } else { *b }).collect());
            all.push(bounds);
        }
        Self { settings: self.settings, bounds: all, likely: all_likely }
    }

    /// The largest difference of a parameter from `expected`, as a part of what is allowed: the bound
    /// and the rounding of the weight. Either side rounds it twice an update, after the decay and after
    /// the step, each time by at most half of `EPSILON`.
    pub(crate) fn apart(&self, index: usize, found: &[f32], expected: &[f32], steps: u64) -> f64 {
        let each = self.bounds[index].iter().zip(found).zip(expected);
        let parts = each.map(|((bound, found), expected)| {
            let rounding = 2.0 * f64::from(expected.abs() * f32::EPSILON) * steps as f64;
            (f64::from(*found) - f64::from(*expected)).abs() / (bound + rounding + 1e-12)
        });
        super::agreement::largest(parts)
    }
}
