//! Which phase a step belongs to, and which rates hold there.
//!
//! Steps count from 1. With `T` steps, `w` of warm-up, and `s` and `e` the last steps of the
//! phase before and of the phase itself (`s = 0` in the first):
//!
//! - learning rate, `t ≤ w`: the first phase's peak · t/w, in whatever phase `t` is;
//! - learning rate, span `run`: the curve at `(t − w) / (T − w)`;
//! - learning rate, span `phase`: the curve at `(t − s′) / (e − s′)` with `s′ = max(s, w)`;
//! - weight decay has no warm-up: the curve at `t / T`, or at `(t − s) / (e − s)`.
//!
//! So the last step of a span has the curve's end value, and a span's peak is what the step just
//! before its first would have.

use std::ops::Range;

use super::error::RecipeError;
use super::phase::Phase;
use super::rate::{Rate, Span};
use super::settings::Recipe;

/// The rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRates {
    /// Factor of the normalised moments.
    pub learning_rate: f64,
    /// Factor of decoupled weight decay, besides the learning rate.
    pub weight_decay: f64,
}

/// The rates of every step of a run.
///
/// Invariants: one end a phase, in order, the last of them `steps`; `warmup < steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    phases: Vec<Phase>,
    ends: Vec<u64>,
    warmup: u64,
    steps: u64,
}

/// What it means that the schedule ends at 0.
pub const IDLE_STEP: &str = "the learning rate ends at 0, so the last step trains nothing";

/// A warm-up that leaves no step of the run.
#[derive(Debug)]
struct TooLong {
    warmup: u64,
}

/// The steps of warm-up of a recipe that names none: `min(375, steps / 20)`.
pub fn default_warmup(steps: u64) -> u64 {
    375.min(steps / 20)
}

impl Schedule {
    /// The schedule of a recipe whose number of steps is known by now.
    pub fn new(recipe: &Recipe, steps: u64) -> Result<Self, RecipeError> {
        let (phases, asked) = (&recipe.phases, recipe.optimizer.warmup_steps);
        Self::of_phases(phases, asked, steps).map_err(|TooLong { warmup }| {
            RecipeError::WarmupTooLong { path: recipe.path.clone(), warmup, steps }
        })
    }

    /// The schedule of these phases over at least one step.
    fn of_phases(phases: &[Phase], warmup_steps: Option<u64>, steps: u64) -> Result<Self, TooLong> {
        assert!(!phases.is_empty() && steps > 0, "a run has a phase and a step");
        let warmup = warmup_steps.unwrap_or_else(|| default_warmup(steps));
        if warmup >= steps {
            return Err(TooLong { warmup });
        }
        Ok(Self { phases: phases.to_vec(), ends: phase_ends(phases, steps), warmup, steps })
    }

    /// Number of steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Number of steps of warm-up.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    /// The rates of `step`, which counts from 1.
    pub fn at(&self, step: u64) -> StepRates {
        let phase = &self.phases[self.phase_of(step)];
        let learning_rate = if step <= self.warmup {
            // To the first phase's peak also where the warm-up reaches into a later one.
            self.phases[0].learning_rate.peak() * step as f64 / self.warmup as f64
        } else {
            self.value(phase.learning_rate, step, self.warmup)
        };
        StepRates { learning_rate, weight_decay: self.value(phase.weight_decay, step, 0) }
    }

    /// The value of one of the phase's rates at `step > warmup`.
    fn value(&self, rate: Rate, step: u64, warmup: u64) -> f64 {
        let Rate::Curve { span, .. } = rate else { return rate.peak() };
        let (begin, end) = match span {
            Span::Run => (warmup, self.steps),
            Span::Phase => {
                let steps = self.phase_range(self.phase_of(step));
                ((steps.start - 1).max(warmup), steps.end - 1)
            }
        };
        // `begin < step <= end`: a step lies in its phase, and after the warm-up where one
        // counts. So no span is empty, and nothing is divided by 0.
        rate.after(step - begin, end - begin)
    }

    /// Whether the last step has a learning rate of 0, or what rounding leaves of it.
    pub fn last_step_is_idle(&self) -> bool {
        self.at(self.steps).learning_rate < 1e-15
    }

    /// The index of the phase that `step` belongs to.
    pub fn phase_of(&self, step: u64) -> usize {
        assert!((1..=self.steps).contains(&step), "step {step} of {}", self.steps);
        self.ends.partition_point(|&end| end < step)
    }

    /// The steps of phase `index`, the first of them 1; empty where a short run leaves none.
    pub fn phase_range(&self, index: usize) -> Range<u64> {
        let before = index.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        before + 1..self.ends[index] + 1
    }
}

/// The last step of each phase: `round(share · steps)` further on, the last one at `steps`.
fn phase_ends(phases: &[Phase], steps: u64) -> Vec<u64> {
    let mut end: u64 = 0;
    let mut ends: Vec<u64> = phases
        .iter()
        .map(|phase| {
            end = steps.min(end.saturating_add((phase.share * steps as f64).round() as u64));
            end
        })
        .collect();
    if let Some(last) = ends.last_mut() {
        // Each end is rounded and the shares sum to 1 only about; no step may be left without a
        // phase.
        *last = steps;
    }
    ends
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::recipe::rate::CurveShape;

    fn phase(share: f64, learning_rate: Rate, weight_decay: Rate) -> Phase {
        let data = BTreeMap::from([("train".to_owned(), 1.0)]);
        Phase { name: format!("{share}"), share, learning_rate, weight_decay, data }
    }

    fn linear(peak: f64, end: f64, span: Span) -> Rate {
        Rate::Curve { shape: CurveShape::Linear, peak, end, span }
    }

    fn constant(value: f64) -> Rate {
        Rate::Constant { value }
    }

    fn halves(span: Span) -> [Phase; 2] {
        [
            phase(0.5, linear(1.5e-3, 0.0, span), constant(0.1)),
            phase(0.5, linear(1e-3, 0.0, span), constant(0.0)),
        ]
    }

    #[test]
    fn the_reference_run_comes_out_exactly() {
        let phases = [
            phase(0.6, linear(3e-3, 1.5e-3, Span::Phase), constant(0.1)),
            phase(0.4, linear(1e-3, 1e-5, Span::Phase), constant(0.0)),
        ];
        let schedule = Schedule::of_phases(&phases, Some(50), 1000).unwrap();
        for t in 1..=1000 {
            let x = t as f64;
            let expected = match t {
                1..=50 => 3e-3 * x / 50.0,
                51..=600 => 3e-3 + (1.5e-3 - 3e-3) * (x - 50.0) / (600.0 - 50.0),
                _ => 1e-3 + (1e-5 - 1e-3) * (x - 600.0) / 400.0,
            };
            let rates = schedule.at(t);
            assert_eq!(rates.learning_rate.to_bits(), expected.to_bits(), "step {t}");
            assert_eq!(rates.weight_decay, if t <= 600 { 0.1 } else { 0.0 });
        }
    }

    #[test]
    fn run_spans_jump_between_two_full_length_schedules() {
        let schedule = Schedule::of_phases(&halves(Span::Run), Some(100), 1000).unwrap();
        for (t, peak) in [(101, 1.5e-3), (500, 1.5e-3), (501, 1e-3), (999, 1e-3)] {
            let expected = peak * (1.0 - (t as f64 - 100.0) / 900.0);
            assert!((schedule.at(t).learning_rate - expected).abs() < 1e-18, "step {t}");
        }
        assert_eq!(schedule.at(1000).learning_rate, 0.0);
        assert!(schedule.last_step_is_idle());
    }

    #[test]
    fn a_warm_up_climbs_to_the_first_peak_even_beyond_the_first_phase() {
        let schedule = Schedule::of_phases(&halves(Span::Phase), Some(8), 10).unwrap();
        assert_eq!(schedule.at(1).learning_rate, 1.5e-3 / 8.0);
        assert_eq!(schedule.at(8).learning_rate, 1.5e-3);
        assert_eq!(schedule.at(9).learning_rate, 5e-4);
        assert_eq!(schedule.at(10).learning_rate, 0.0);
    }

    #[test]
    fn warm_up_stable_and_decay_are_two_phases() {
        for (shape, middle) in [
            (CurveShape::Linear, 0.5),
            (CurveShape::Cosine, 0.5),
            (CurveShape::OneMinusSqrt, 1.0 - 0.5f64.sqrt()),
        ] {
            let tail = Rate::Curve { shape, peak: 1.0, end: 0.0, span: Span::Phase };
            let phases =
                [phase(0.8, constant(1.0), constant(0.0)), phase(0.2, tail, constant(0.0))];
            let schedule = Schedule::of_phases(&phases, Some(10), 100).unwrap();
            let rate = |step| schedule.at(step).learning_rate;
            assert_eq!([5, 10, 11, 80, 100].map(rate), [0.5, 1.0, 1.0, 1.0, 0.0], "{shape:?}");
            assert!((rate(90) - middle).abs() < 1e-12, "{shape:?}");
        }
    }

    #[test]
    fn weight_decay_knows_no_warm_up() {
        let cosine = |span| Rate::Curve { shape: CurveShape::Cosine, peak: 0.1, end: 0.0, span };
        let phases = [
            phase(0.5, constant(1.0), cosine(Span::Phase)),
            phase(0.5, constant(1.0), cosine(Span::Run)),
        ];
        let schedule = Schedule::of_phases(&phases, Some(50), 100).unwrap();
        let decay = |t| schedule.at(t).weight_decay;
        assert!((decay(25) - 0.05).abs() < 1e-15);
        assert_eq!((decay(50), decay(100)), (0.0, 0.0));
        assert!(
            (decay(75) - 0.1 * 0.5 * (1.0 + (0.75 * std::f64::consts::PI).cos())).abs() < 1e-15
        );
        assert!(decay(1) > 0.0999);
    }

    #[test]
    fn phases_hold_their_rounded_share_and_the_last_the_rest() {
        let schedule = Schedule::of_phases(&halves(Span::Run), None, 3).unwrap();
        assert_eq!((schedule.phase_range(0), schedule.phase_range(1)), (1..3, 3..4));
        assert_eq!([1, 2, 3].map(|t| schedule.phase_of(t)), [0, 0, 1]);
    }

    #[test]
    fn a_run_too_short_for_its_phases_leaves_some_empty() {
        let quarter = phase(0.25, constant(1.0), constant(0.0));
        let phases = [quarter.clone(), quarter.clone(), quarter.clone(), quarter];
        let schedule = Schedule::of_phases(&phases, None, 2).unwrap();
        assert_eq!([0, 1, 2, 3].map(|i| schedule.phase_range(i)), [1..2, 2..3, 3..3, 3..3]);
        assert_eq!(schedule.phase_of(2), 1);
    }

    #[test]
    fn the_default_warm_up_is_a_twentieth_and_at_most_375() {
        assert_eq!([1, 19, 20, 1000, 10_000].map(default_warmup), [0, 0, 1, 50, 375]);
        let schedule = Schedule::of_phases(&halves(Span::Run), None, 1).unwrap();
        assert_eq!(schedule.at(1).learning_rate, 0.0);
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_is_refused() {
        let error = Schedule::of_phases(&halves(Span::Run), Some(10), 10).unwrap_err();
        assert_eq!(error.warmup, 10);
    }
}
