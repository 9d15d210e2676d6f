//! Fits a law to points: Huber loss of the residuals of `ln L`, Levenberg–Marquardt from many starts.
//!
//! With `x = ln(N / N0)` and `y = ln(D / D0)`, where `N0` and `D0` are geometric means, the five
//! coordinates are `ln E`, `ln(A / N0^alpha)`, `ln alpha`, `ln(B / D0^beta)` and `ln beta`: all signs are
//! right by construction, and the coordinates hardly depend on each other. The prediction of `ln L` is
//! the log-sum-exp of the three terms' logarithms.

use std::collections::BTreeSet;

use super::law::{LossPoint, ScalingLaw};

/// Where Huber's loss changes from a square to a line, as Hoffmann et al. have it.
const HUBER_DELTA: f64 = 1e-3;
/// Steps of one descent at most.
const MOST_STEPS: usize = 300;
/// Exponents beyond this mean that the points do not determine them.
const EXPONENTS: [f64; 2] = [0.01, 4.0];
/// The fewest sizes and the fewest amounts of tokens.
const FEWEST_LEVELS: usize = 3;
/// The fewest pairs of a size and an amount of tokens: one more than there are unknowns.
const FEWEST_PAIRS: usize = 6;

/// Coordinates of a law; see the head of this file.
pub(super) type Coordinates = [f64; 5];

/// Why these points do not determine a law, if they do not.
pub(super) fn too_few(points: &[LossPoint]) -> Option<String> {
    let count =
        |key: fn(&LossPoint) -> (u64, u64)| points.iter().map(key).collect::<BTreeSet<_>>().len();
    // By their bits: an f64 has no order that a set could use.
    let sizes = count(|point| (point.parameters.to_bits(), 0));
    let tokens = count(|point| (0, point.tokens.to_bits()));
    let pairs = count(|point| (point.parameters.to_bits(), point.tokens.to_bits()));
    let enough = sizes >= FEWEST_LEVELS && tokens >= FEWEST_LEVELS && pairs >= FEWEST_PAIRS;
    (!enough).then(|| {
        format!(
            "{sizes} sizes, {tokens} amounts of tokens and {pairs} pairs of both do not determine five \
             unknowns; expected at least {FEWEST_LEVELS}, {FEWEST_LEVELS} and {FEWEST_PAIRS}"
        )
    })
}

/// Points in the coordinates of the fit.
pub(super) struct Regression {
    /// `x`, `y` and `ln L` of each point.
    rows: Vec<[f64; 3]>,
    /// `ln N0` and `ln D0`.
    centre: [f64; 2],
}

impl Regression {
    pub(super) fn new(points: &[LossPoint]) -> Self {
        let mean = |value: fn(&LossPoint) -> f64| {
            points.iter().map(|point| value(point).ln()).sum::<f64>() / points.len() as f64
        };
        Self::around(points, [mean(|point| point.parameters), mean(|point| point.tokens)])
    }

    /// The same with a centre of other points, so that their coordinates can be a start.
    pub(super) fn around(points: &[LossPoint], centre: [f64; 2]) -> Self {
        let row = |point: &LossPoint| {
            let (x, y) = (point.parameters.ln() - centre[0], point.tokens.ln() - centre[1]);
            [x, y, point.loss.ln()]
        };
        Self { rows: points.iter().map(row).collect(), centre }
    }

    pub(super) fn centre(&self) -> [f64; 2] {
        self.centre
    }

    /// Every combination of some shares of the mean loss and some exponents.
    pub(super) fn starts(&self) -> Vec<Coordinates> {
        let mean = self.rows.iter().map(|row| row[2]).sum::<f64>() / self.rows.len() as f64;
        let mut starts = Vec::new();
        for floor in [0.2, 0.5, 0.8_f64] {
            for split in [0.25, 0.5, 0.75] {
                for alpha in [0.2, 0.5, 1.0_f64] {
                    for beta in [0.2, 0.5, 1.0_f64] {
                        // At the centre (x = y = 0) each start's terms add up to the mean loss.
                        let of_size = mean + ((1.0 - floor) * split).ln();
                        let of_data = mean + ((1.0 - floor) * (1.0 - split)).ln();
                        let exponents = [alpha.ln(), beta.ln()];
                        starts.push([
                            mean + floor.ln(),
                            of_size,
                            exponents[0],
                            of_data,
                            exponents[1],
                        ]);
                    }
                }
            }
        }
        starts
    }

    /// Where the best descent ends.
    pub(super) fn best_of(&self, starts: &[Coordinates]) -> Coordinates {
        let ends = starts.iter().map(|start| self.descend(*start));
        ends.min_by(|a, b| self.objective(a).total_cmp(&self.objective(b))).expect("some start")
    }

    pub(super) fn law(&self, at: Coordinates) -> ScalingLaw {
        let (alpha, beta) = (at[2].exp(), at[4].exp());
        ScalingLaw {
            e: at[0].exp(),
            // `ln A = ln(A / N0^alpha) + alpha · ln N0`, and B likewise.
            a: (at[1] + alpha * self.centre[0]).exp(),
            alpha,
            b: (at[3] + beta * self.centre[1]).exp(),
            beta,
        }
    }

    /// Sum of Huber's loss.
    fn objective(&self, at: &Coordinates) -> f64 {
        self.rows.iter().map(|row| huber(predict(at, row).0 - row[2])).sum()
    }

    /// Levenberg–Marquardt on squares reweighted as Huber's loss weighs them.
    fn descend(&self, mut at: Coordinates) -> Coordinates {
        let (mut value, mut damping) = (self.objective(&at), 1e-3);
        for _ in 0..MOST_STEPS {
            let (hessian, gradient) = self.normal_equations(&at);
            let Some(step) = solve(hessian, gradient, damping) else { break };
            let next = moved(&at, &step);
            let found = self.objective(&next);
            if found < value {
                let gain = value - found;
                // Less damping after a step that helped, nearer to Gauss–Newton; else more.
                (at, value, damping) = (next, found, (damping / 3.0).max(1e-12));
                // So little could as well be rounding of the sum.
                if gain < 1e-13 * value {
                    break;
                }
            } else {
                damping *= 4.0;
                if damping > 1e12 {
                    break;
                }
            }
        }
        at
    }

    fn normal_equations(&self, at: &Coordinates) -> ([[f64; 5]; 5], [f64; 5]) {
        let (mut hessian, mut gradient) = ([[0.0; 5]; 5], [0.0; 5]);
        for row in &self.rows {
            let (predicted, slope) = predict(at, row);
            let residual = predicted - row[2];
            // Huber's derivative is this weight times the residual; at 0 the weight is 1.
            let weight = (HUBER_DELTA / residual.abs()).min(1.0);
            for i in 0..5 {
                gradient[i] += weight * slope[i] * residual;
                for j in 0..5 {
                    // Gauss–Newton: no second derivatives, so the matrix is never indefinite.
                    hessian[i][j] += weight * slope[i] * slope[j];
                }
            }
        }
        (hessian, gradient)
    }
}

fn huber(residual: f64) -> f64 {
    let size = residual.abs();
    if size <= HUBER_DELTA { 0.5 * size * size } else { HUBER_DELTA * (size - 0.5 * HUBER_DELTA) }
}

/// `ln L` of a row and its derivatives by the coordinates.
fn predict(at: &Coordinates, &[x, y, _]: &[f64; 3]) -> (f64, [f64; 5]) {
    let (alpha, beta) = (at[2].exp(), at[4].exp());
    let terms = [at[0], at[1] - alpha * x, at[3] - beta * y];
    // Log-sum-exp with the largest term taken out, so that no exponential overflows.
    let most = terms.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let parts = terms.map(|term| (term - most).exp());
    let sum: f64 = parts.iter().sum();
    let [of_floor, of_size, of_data] = parts.map(|part| part / sum);
    // The share of each term; two coordinates are logarithms of exponents, hence `alpha · x`.
    let slope = [of_floor, of_size, -of_size * alpha * x, of_data, -of_data * beta * y];
    (most + sum.ln(), slope)
}

/// A step, no coordinate by more than 1, exponents within their bounds.
fn moved(at: &Coordinates, step: &[f64; 5]) -> Coordinates {
    let mut next = *at;
    for (coordinate, step) in next.iter_mut().zip(step) {
        // A factor of e at most: far away the linear model of the curve means little.
        *coordinate += step.clamp(-1.0, 1.0);
    }
    let [least, most] = EXPONENTS.map(f64::ln);
    for exponent in [2, 4] {
        next[exponent] = next[exponent].clamp(least, most);
    }
    next
}

/// `−(H + damping·diag H)⁻¹ g` by Cholesky; `None` where rounding leaves no positive matrix.
fn solve(mut h: [[f64; 5]; 5], g: [f64; 5], damping: f64) -> Option<[f64; 5]> {
    for (i, row) in h.iter_mut().enumerate() {
        // In proportion to the diagonal, so the units of a coordinate do not matter. The constant
        // keeps one that no point depends on from a pivot of 0.
        row[i] += damping * row[i] + 1e-15;
    }
    for j in 0..5 {
        let below: f64 = (0..j).map(|k| h[j][k] * h[j][k]).sum();
        let pivot = h[j][j] - below;
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        h[j][j] = pivot.sqrt();
        for i in j + 1..5 {
            let product: f64 = (0..j).map(|k| h[i][k] * h[j][k]).sum();
            h[i][j] = (h[i][j] - product) / h[j][j];
        }
    }
    // `L` is in the lower half now: first L·z = −g, then Lᵀ·x = z.
    let mut x = g.map(|value| -value);
    for i in 0..5 {
        let known: f64 = (0..i).map(|k| h[i][k] * x[k]).sum();
        x[i] = (x[i] - known) / h[i][i];
    }
    for i in (0..5).rev() {
        let known: f64 = (i + 1..5).map(|k| h[k][i] * x[k]).sum();
        x[i] = (x[i] - known) / h[i][i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: ScalingLaw = ScalingLaw { e: 1.7, a: 400.0, alpha: 0.34, b: 410.0, beta: 0.28 };

    fn fit_law(points: &[LossPoint]) -> ScalingLaw {
        let problem = Regression::new(points);
        problem.law(problem.best_of(&problem.starts()))
    }

    fn grid(law: ScalingLaw) -> Vec<LossPoint> {
        let sizes = [3e5, 1e6, 3e6, 1e7];
        let pairs = sizes.into_iter().flat_map(|n| [1e6, 4e6, 1.6e7].map(|d| (n, d)));
        let point = |(n, d)| LossPoint { parameters: n, tokens: d, loss: law.loss(n, d) };
        pairs.map(point).collect()
    }

    #[test]
    fn a_law_without_noise_comes_back() {
        for law in [LAW, ScalingLaw { e: 0.5, a: 30.0, alpha: 0.2, b: 5000.0, beta: 0.5 }] {
            let found = fit_law(&grid(law));
            let pairs = [(found.alpha, law.alpha), (found.beta, law.beta), (found.e, law.e)];
            for (found, expected) in pairs {
                assert!((found / expected - 1.0).abs() < 0.01, "{found} of {expected}");
            }
        }
    }

    #[test]
    fn one_run_gone_wrong_moves_little() {
        let mut points = grid(LAW);
        points[5].loss *= 1.3;
        let found = fit_law(&points);
        assert!((found.alpha / LAW.alpha - 1.0).abs() < 0.05, "{found:?}");
        assert!((found.beta / LAW.beta - 1.0).abs() < 0.05, "{found:?}");
    }

    #[test]
    fn derivatives_are_those_of_the_prediction() {
        let (at, row) = ([0.3, 0.7, -1.1, 0.9, -1.3], [0.8, -0.6, 0.0]);
        let (_, slope) = predict(&at, &row);
        for i in 0..5 {
            let value = |shift: f64| {
                let mut moved = at;
                moved[i] += shift;
                predict(&moved, &row).0
            };
            let numeric = (value(1e-6) - value(-1e-6)) / 2e-6;
            assert!((numeric - slope[i]).abs() < 1e-8, "{i}: {numeric} and {}", slope[i]);
        }
    }

    #[test]
    fn two_sizes_are_too_few_and_the_message_counts_them() {
        let few: Vec<_> = grid(LAW).into_iter().filter(|point| point.parameters < 2e6).collect();
        let reason = too_few(&few).unwrap();
        assert!(reason.starts_with("2 sizes, 3 amounts of tokens and 6 pairs"), "{reason}");
    }

    #[test]
    fn equations_are_solved() {
        let mut h = [[0.0; 5]; 5];
        for (i, row) in h.iter_mut().enumerate() {
            row[i] = 2.0 + i as f64;
            if i > 0 {
                row[i - 1] = 0.5;
            }
        }
        for i in 1..5 {
            h[i - 1][i] = 0.5;
        }
        let x = solve(h, [1.0, 2.0, 3.0, 4.0, 5.0], 0.0).unwrap();
        for (i, row) in h.iter().enumerate() {
            let sum: f64 = row.iter().zip(&x).map(|(h, x)| h * x).sum();
            assert!((sum + 1.0 + i as f64).abs() < 1e-9);
        }
    }
}
