//! How sure a fit is: the same fit to many samples of its points, drawn with replacement.

use rand::RngExt;
use rayon::prelude::*;
use serde::Serialize;

use super::law::{LossPoint, ScalingLaw};
use super::regression::{Regression, too_few};
use crate::random::keyed;

/// The middle part of the samples that an interval covers.
const COVERED: f64 = 0.95;
/// Draws of one sample until it determines a law.
const MOST_DRAWS: u64 = 200;
/// Each sample is fitted from the result of the full fit and from every 20th of its starts.
const START_STRIDE: usize = 20;

/// The interval that holds 95 % of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th.
    pub high: f64,
}

/// A law and those of its samples.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// The fit to all points.
    pub law: ScalingLaw,
    samples: Vec<ScalingLaw>,
}

/// Fits a law to the points and to `samples` samples of them; equal for equal `seed`.
///
/// # Errors
/// Says what is missing where the points do not determine a law.
pub fn bootstrap(points: &[LossPoint], samples: usize, seed: u64) -> Result<Bootstrap, String> {
    too_few(points).map_or(Ok(()), Err)?;
    let full = Regression::new(points);
    let starts = full.starts();
    let best = full.best_of(&starts);
    // All starts once more for each sample would cost a whole fit each time.
    let tried: Vec<_> =
        std::iter::once(best).chain(starts.into_iter().step_by(START_STRIDE)).collect();
    let refit = |sample| {
        // In the full fit's coordinates: around another centre they would be another law.
        let problem = Regression::around(&drawn(points, seed, sample), full.centre());
        problem.law(problem.best_of(&tried))
    };
    let samples = (0..samples as u64).into_par_iter().map(refit).collect();
    Ok(Bootstrap { law: full.law(best), samples })
}

/// As many points as there are, with replacement, that determine a law; all where draws fail to.
fn drawn(points: &[LossPoint], seed: u64, sample: u64) -> Vec<LossPoint> {
    let draw = |attempt| {
        // Keyed by sample, so threads may fit them in any order.
        let mut random = keyed(seed, "bootstrap", sample, attempt);
        let pick = |_| points[random.random_range(0..points.len())];
        points.iter().map(pick).collect::<Vec<_>>()
    };
    let mut draws = (0..MOST_DRAWS).map(draw);
    draws.find(|points| too_few(points).is_none()).unwrap_or_else(|| points.to_vec())
}

impl Bootstrap {
    /// Where a figure of the law lies in the samples.
    pub fn interval(&self, figure: impl Fn(&ScalingLaw) -> f64) -> Interval {
        let mut figures: Vec<f64> = self.samples.iter().map(figure).collect();
        figures.sort_unstable_by(f64::total_cmp);
        let last = figures.len().saturating_sub(1) as f64;
        let at = |share: f64| figures.get((share * last).round() as usize).copied();
        let (low, high) = (at((1.0 - COVERED) / 2.0), at(0.5 + COVERED / 2.0));
        Interval { low: low.unwrap_or(f64::NAN), high: high.unwrap_or(f64::NAN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: ScalingLaw = ScalingLaw { e: 1.7, a: 400.0, alpha: 0.34, b: 410.0, beta: 0.28 };

    /// Two seeds a pair, each with up to `noise` of the loss.
    fn noisy(noise: f64) -> Vec<LossPoint> {
        let mut points = Vec::new();
        for (i, n) in [3e5, 1e6, 3e6, 1e7].into_iter().enumerate() {
            for (j, d) in [1e6, 4e6, 1.6e7].into_iter().enumerate() {
                for seed in 0..2 {
                    let mut random = keyed(7, "noise", (3 * i + j) as u64, seed);
                    let factor = 1.0 + noise * random.random_range(-1.0..1.0);
                    let loss = factor * LAW.loss(n, d);
                    points.push(LossPoint { parameters: n, tokens: d, loss });
                }
            }
        }
        points
    }

    #[test]
    fn intervals_hold_the_truth_and_grow_with_the_noise() {
        let width = |noise| {
            let fits = bootstrap(&noisy(noise), 60, 1).unwrap();
            let Interval { low, high } = fits.interval(|law| law.loss(3e7, 6e7));
            let truth = LAW.loss(3e7, 6e7);
            assert!(low < truth && truth < high, "{noise}: {truth} in {low} to {high}");
            high - low
        };
        assert!(width(0.002) < width(0.02));
    }

    #[test]
    fn the_same_seed_gives_the_same_intervals() {
        let found = |seed| bootstrap(&noisy(0.01), 20, seed).unwrap().interval(|law| law.beta);
        assert_eq!(found(3), found(3));
        assert_ne!(found(3), found(4));
    }
}
