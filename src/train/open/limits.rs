//! Whether the sets of a run last to its end, where they may be read only so often.

use std::collections::BTreeMap;

use super::super::stage::Stage;
use super::contradiction;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::recipe::{Phase, Recipe, Schedule};

/// A set that is drawn from: its weight, and the rows it has left; `None` without a limit.
type Drawn = (f64, Option<f64>);

/// Says when sets are used up, and refuses a run that would be left without any.
///
/// Draws are random, so the steps are those to expect.
pub(super) fn check(
    recipe: &Recipe,
    schedule: &Schedule,
    stage: &mut dyn Stage,
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    let mut left = BTreeMap::new();
    for (set, epochs) in recipe.data.max_epochs() {
        // Sets that no phase draws from are not opened.
        if recipe.phases.iter().any(|phase| phase.data.get(&set).is_some_and(|&w| w > 0.0)) {
            left.insert(set.clone(), stage.items(&set)? as f64 * epochs as f64);
        }
    }
    let batches = recipe.train.batches();
    for (index, phase) in recipe.phases.iter().enumerate() {
        let steps = schedule.phase_range(index);
        let before = batches.rows(steps.start - 1);
        let rows = (batches.rows(steps.end.max(steps.start) - 1) - before) as f64;
        let missing = draw(phase, rows, &mut left, &mut |set, after| {
            let step = batches.steps_for(before + after as u64);
            monitor.message(&format!(
                "note: {set} reaches its max_epochs in phase {} at about step {step}; the other sets \
                 take its place",
                phase.name
            ));
        });
        if missing >= 1.0 {
            let what = format!(
                "phase {} takes {rows:.0} rows, {missing:.0} more than its sets have within max_epochs; \
                 expected fewer steps or a set without max_epochs",
                phase.name
            );
            return Err(contradiction(recipe, "data.sets", what));
        }
    }
    Ok(())
}

/// Draws `rows` and returns how many are missing; reports every set that is used up while others
/// are left, with the rows drawn so far.
fn draw(
    phase: &Phase,
    rows: f64,
    left: &mut BTreeMap<String, f64>,
    used_up: &mut dyn FnMut(&str, f64),
) -> f64 {
    let limit = |set: &String| left.get(set).copied();
    let weights = phase.data.iter().filter(|(_, weight)| **weight > 0.0);
    let mut drawn: BTreeMap<&str, Drawn> =
        weights.map(|(set, &weight)| (&**set, (weight, limit(set)))).collect();
    drawn.retain(|_, (_, left)| left.is_none_or(|left| left > 0.0));
    let mut missing = rows;
    // Sets are drawn in proportion until the first one is empty; then the rest shares what is
    // missing. Each turn of the loop ends with the set that runs out next.
    while missing > 0.0 && !drawn.is_empty() {
        let total: f64 = drawn.values().map(|(weight, _)| weight).sum();
        let lasts =
            |(weight, left): &Drawn| left.map_or(f64::INFINITY, |left| left * total / weight);
        let first = drawn.iter().map(|(set, drawn)| (*set, lasts(drawn)));
        let Some((set, lasts)) = first.min_by(|one, other| one.1.total_cmp(&other.1)) else {
            break;
        };
        let taken = lasts.min(missing);
        for (weight, left) in drawn.values_mut() {
            *left = left.map(|left| left - taken * *weight / total);
        }
        missing -= taken;
        for (set, (_, still)) in &drawn {
            left.extend(still.map(|still| ((*set).to_owned(), still.max(0.0))));
        }
        if taken >= lasts {
            drawn.remove(set);
            left.insert(set.to_owned(), 0.0);
            if !drawn.is_empty() && missing > 0.0 {
                used_up(set, rows - missing);
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Rate;

    fn phase(sets: &[(&str, f64)]) -> Phase {
        let rate = Rate::Constant { value: 0.0 };
        let data = sets.iter().map(|(set, weight)| ((*set).to_owned(), *weight)).collect();
        Phase { name: "main".into(), share: 1.0, learning_rate: rate, weight_decay: rate, data }
    }

    #[test]
    fn the_others_take_the_place_of_a_set_that_is_used_up() {
        let limits = |sets: &[(&str, f64)]| -> BTreeMap<String, f64> {
            sets.iter().map(|(set, rows)| ((*set).to_owned(), *rows)).collect()
        };
        let mix = phase(&[("a", 1.0), ("b", 3.0), ("c", 0.0)]);
        let drawn = |rows, left: &mut BTreeMap<String, f64>| {
            let mut told = Vec::new();
            let missing = draw(&mix, rows, left, &mut |set, at| told.push((set.to_owned(), at)));
            (missing, told)
        };
        let mut left = limits(&[("b", 300.0)]);
        assert_eq!(drawn(1000.0, &mut left), (0.0, vec![("b".to_owned(), 400.0)]));
        assert!(left["b"].abs() < 1e-9);
        assert_eq!(drawn(50.0, &mut left), (0.0, vec![]));
        let mut left = limits(&[("a", 200.0), ("b", 300.0)]);
        assert_eq!(drawn(501.0, &mut left), (1.0, vec![("b".to_owned(), 400.0)]));
        let mut left = limits(&[("a", 200.0), ("b", 300.0)]);
        assert_eq!(drawn(100.0, &mut left), (0.0, vec![]));
        assert_eq!(left, limits(&[("a", 175.0), ("b", 225.0)]));
    }
}
