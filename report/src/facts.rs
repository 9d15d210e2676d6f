//! Figures of a run as people read them.

use bitnet_format::figures::{grouped, significant};

use crate::folder::RunFolder;
use crate::history::RunHistory;

/// The lowest held-out loss and its step; of several sets their mean counts, as for the best model. Of
/// pairs it is the preference loss, which falls while the answers' own may rise.
pub(crate) fn best_validation(history: &RunHistory) -> Option<(u64, f64)> {
    let of = |key: &str| {
        let curves = history.below("eval/").filter(|(name, _)| name.ends_with(key));
        curves.map(|(_, curve)| curve).collect::<Vec<_>>()
    };
    let pairs = of("/loss");
    let curves = if pairs.is_empty() { of("/nll_per_token") } else { pairs };
    let first = curves.first()?;
    let mean = |step: u64| {
        let at = |curve: &&crate::Curve| {
            let found = curve.points().binary_search_by_key(&step, |point| point.0);
            found.ok().map(|at| curve.points()[at].1)
        };
        let values: Option<Vec<f64>> = curves.iter().map(at).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    // A step at which one of the sets was not measured has no mean and cannot be the best.
    let means = first.points().iter().filter_map(|&(step, _)| Some((step, mean(step)?)));
    means.min_by(|a, b| a.1.total_cmp(&b.1))
}

/// A time: `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 if seconds < 10.0 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86400, whole % 86400 / 3600),
    }
}

/// A figure that may be missing.
pub(crate) fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), significant)
}

/// `12 of 20` steps.
pub(crate) fn steps(run: &RunFolder) -> String {
    let of = run.steps().map(|steps| format!(" of {}", grouped(steps))).unwrap_or_default();
    format!("{}{of}", grouped(run.history.step()))
}

/// Tokens a second over the last steps; their mean, weighted by time.
pub(crate) fn recent_speed(history: &RunHistory) -> Option<f64> {
    let (tokens, seconds) = (history.curve("tokens")?.points(), history.curve("seconds")?.points());
    let back = |points: &[(u64, f64)]| {
        let last = points[points.len() - 1].1;
        // The point 20 steps before the last; of a shorter run its start, where both are 0.
        let before = points.len().checked_sub(21).map_or(0.0, |at| points[at].1);
        last - before
    };
    // Sums over sums: a mean of the speeds would count short steps as much as long ones.
    let speed = back(tokens) / back(seconds);
    speed.is_finite().then_some(speed)
}

/// Seconds to the last step, at the speed of the last steps.
pub(crate) fn remaining(run: &RunFolder) -> Option<f64> {
    let seconds = run.history.curve("seconds")?.points();
    let left = run.steps()?.checked_sub(run.history.step())?;
    let &(step, time) = seconds.last()?;
    let before = seconds.len().checked_sub(21).map_or((0, 0.0), |at| seconds[at]);
    Some((time - before.1) / (step - before.0).max(1) as f64 * left as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::small_run;

    #[test]
    fn times_have_the_units_that_matter() {
        let shown = [4.25, 42.0, 200.0, 7500.0, 273_600.0].map(duration);
        assert_eq!(shown, ["4.2 s", "42 s", "3 min 20 s", "2 h 05 min", "3 d 04 h"]);
    }

    #[test]
    fn what_remains_goes_at_the_speed_of_the_last_steps() {
        let dir = small_run(12);
        let run = RunFolder::open(dir.path()).unwrap();
        assert_eq!(recent_speed(&run.history), Some(50.0));
        assert_eq!(remaining(&run), Some(16.0));
        assert_eq!(best_validation(&run.history).unwrap().0, 10);
    }

    #[test]
    fn the_best_of_pairs_is_that_of_their_own_loss() {
        let dir = small_run(2);
        let lines = [(1, 0.6, 0.70), (2, 0.7, 0.65)].map(|(step, own, loss)| {
            let of_pairs = serde_json::json!({"nll_per_token": own, "loss": loss});
            serde_json::json!({"step": step, "eval": {"preferences": of_pairs}}).to_string() + "\n"
        });
        fs_err::write(dir.path().join("metrics.jsonl"), lines.concat()).unwrap();
        let run = RunFolder::open(dir.path()).unwrap();
        assert_eq!(best_validation(&run.history), Some((2, 0.65)));
    }
}
