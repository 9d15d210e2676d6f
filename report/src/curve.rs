//! A figure over the steps of a run, in bounded memory however long the run was: where there are
//! many points, neighbours give way to their smallest and largest.

/// Points that are kept.
const MOST: usize = 1 << 16;

/// Finite values by step, in the order of the steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    points: Vec<(u64, f64)>,
}

impl Curve {
    /// Adds a point at the end; one that is not finite is left out.
    pub(crate) fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        // Halving only when full makes the cost of a push constant on average. Spikes survive: each
        // group keeps its extremes, also when it is thinned again and again.
        if self.points.len() >= MOST {
            self.points = extremes(&self.points, MOST / 2);
        }
        match self.points.last_mut() {
            // The same figure twice at one step: the later line holds.
            Some(last) if last.0 == step => last.1 = value,
            _ => self.points.push((step, value)),
        }
    }

    /// Forgets `step` and what follows it.
    pub(crate) fn rewind(&mut self, step: u64) {
        let kept = self.points.partition_point(|&(at, _)| at < step);
        self.points.truncate(kept);
    }

    /// All points, or of a long run its extremes.
    pub fn points(&self) -> &[(u64, f64)] {
        &self.points
    }

    /// The newest value.
    pub fn last(&self) -> Option<f64> {
        self.points.last().map(|point| point.1)
    }

    /// The smallest value, with its step.
    pub fn least(&self) -> Option<(u64, f64)> {
        self.points.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// At most `most` points: the first, the last, and of each stretch between them the extremes.
    pub fn thinned(&self, most: usize) -> Vec<(u64, f64)> {
        extremes(&self.points, most)
    }

    /// Exponential moving average; a point `width` steps back counts 1/e.
    #[must_use]
    pub fn smoothed(&self, width: f64) -> Self {
        let Some(&(mut before, mut mean)) = self.points.first() else { return Self::default() };
        let points = self.points.iter().map(|&(step, value)| {
            // The weight follows the distance in steps, not in points: figures are logged unevenly,
            // and long curves are thinned.
            let share = (-((step - before) as f64) / width.max(f64::MIN_POSITIVE)).exp();
            mean = share * mean + (1.0 - share) * value;
            before = step;
            (step, mean)
        });
        Self { points: points.collect() }
    }
}

/// The smallest and the largest of each group of neighbours, in the order of the steps.
fn extremes(points: &[(u64, f64)], most: usize) -> Vec<(u64, f64)> {
    let most = most.max(4);
    if points.len() <= most {
        return points.to_vec();
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    let inner = &points[1..points.len() - 1];
    // First and last stand for themselves; of the rest each group gives two points at most.
    let group = inner.len().div_ceil((most - 2) / 2);
    let pairs = inner.chunks(group).flat_map(|group| {
        let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
        let low = *group.iter().min_by(by_value).expect("a group has points");
        let high = *group.iter().max_by(by_value).expect("a group has points");
        // The extremes of one group come in the order of their steps: lines must not run backwards.
        let (one, other) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        std::iter::once(one).chain((one.0 != other.0).then_some(other))
    });
    std::iter::once(first).chain(pairs).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_spikes_and_stays_small() {
        let mut curve = Curve::default();
        for step in 1..=300_000u64 {
            let value = if step == 123_457 { 99.0 } else { (step as f64).sin() };
            curve.push(step, value);
        }
        assert!(curve.points().len() <= MOST);
        let thin = curve.thinned(1000);
        assert!(thin.len() <= 1000, "{}", thin.len());
        assert!(thin.contains(&(123_457, 99.0)));
        assert_eq!((thin[0].0, thin[thin.len() - 1].0), (1, 300_000));
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn repeated_steps_replace_earlier_points() {
        let mut curve = Curve::default();
        for step in 1..=5 {
            curve.push(step, step as f64);
        }
        curve.rewind(4);
        curve.push(4, 40.0);
        curve.push(5, f64::NAN);
        assert_eq!(curve.points(), [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]);
        assert_eq!((curve.least(), curve.last()), (Some((1, 1.0)), Some(40.0)));
    }

    #[test]
    fn smoothing_follows_a_jump_by_its_width() {
        let mut curve = Curve::default();
        (1..=10).for_each(|step| curve.push(step, 0.0));
        (11..=20).for_each(|step| curve.push(step, 1.0));
        let smooth = curve.smoothed(10.0).last().unwrap();
        assert!((smooth - (1.0 - (-1.0f64).exp())).abs() < 1e-12, "{smooth}");
    }
}
