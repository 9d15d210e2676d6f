//! `[ternary_warmup]`: a dense model becomes ternary over the first steps, not at once. Weights and
//! activations are blends `w + λ·(Q(w) − w)`, and λ goes from 0 to 1: a function of the step alone, so a
//! resumed run goes on with the same one.

use super::item::{Item, word};
use super::section::Section;

/// The longest warm-up in steps.
const MOST_STEPS: u64 = 1_000_000_000_000;

/// Half the width of the sigmoid's flank: λ is taken from −6 to 6.
const FLANK: f64 = 6.0;

/// How λ climbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmupShape {
    /// In a straight line.
    Linear,
    /// Slowly at both ends.
    Sigmoid,
}

impl WarmupShape {
    const WORDS: &[(&str, Self)] = &[("linear", Self::Linear), ("sigmoid", Self::Sigmoid)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }
}

/// The blend of the first steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TernaryWarmup {
    /// The first step that is ternary throughout; `None`: a tenth of a run whose length is not known yet.
    pub steps: Option<u64>,
    /// How λ climbs up to it.
    pub shape: WarmupShape,
}

impl TernaryWarmup {
    /// Reads the section, if the recipe has it; `run` are the steps of the run where they are known.
    pub(super) fn read(root: &mut Section<'_>, run: Option<u64>) -> Option<Self> {
        if !root.has("ternary_warmup") {
            // Asked for all the same: a message about an unknown key lists those that were asked
            // for.
            root.item("ternary_warmup");
            return None;
        }
        let mut table = root.section("ternary_warmup");
        let count = |item: &Item<'_>| item.whole_between(1, MOST_STEPS);
        let steps = table.optional("steps", count);
        let shape = table.value("shape", |item| item.choice(WarmupShape::WORDS));
        table.finish();
        Some(Self { steps: steps.or(run.map(default_steps)), shape })
    }

    /// The first step that is ternary throughout, in a run of `steps`.
    pub fn steps_of(&self, run: u64) -> u64 {
        self.steps.unwrap_or_else(|| default_steps(run))
    }

    /// λ of `step`, which counts from 1, in a run of `steps`: above 0, and exactly 1 after the warm-up.
    pub fn lambda(&self, step: u64, run: u64) -> f32 {
        let steps = self.steps_of(run);
        if step >= steps {
            return 1.0;
        }
        let passed = step as f64 / steps as f64;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let share = match self.shape {
            WarmupShape::Linear => passed,
            WarmupShape::Sigmoid => {
                // A sigmoid reaches neither 0 nor 1: stretched so that its flank does, at both
                // ends.
                let (low, high) = (sigmoid(-FLANK), sigmoid(FLANK));
                (sigmoid(FLANK * (2.0 * passed - 1.0)) - low) / (high - low)
            }
        };
        share as f32
    }
}

/// The warm-up of a run that names none.
fn default_steps(run: u64) -> u64 {
    (run / 10).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_climbs_from_above_zero_to_exactly_one() {
        for shape in [WarmupShape::Linear, WarmupShape::Sigmoid] {
            let warmup = TernaryWarmup { steps: Some(10), shape };
            let found: Vec<f32> = (1..=12).map(|step| warmup.lambda(step, 50)).collect();
            assert!(found[0] > 0.0 && found.is_sorted(), "{shape:?} {found:?}");
            assert_eq!(found[4], 0.5, "{shape:?}: half of it is half way");
            assert!(found[8] < 1.0, "{shape:?}");
            assert_eq!(found[9..], [1.0; 3], "{shape:?}");
        }
        let at_once = TernaryWarmup { steps: Some(1), shape: WarmupShape::Linear };
        assert_eq!(at_once.lambda(1, 50), 1.0);
        let tenth = TernaryWarmup { steps: None, shape: WarmupShape::Linear };
        assert_eq!([9, 1000].map(|run| tenth.steps_of(run)), [1, 100]);
    }

    #[test]
    fn a_sigmoid_begins_and_ends_slowly() {
        let lambda = |shape, step| TernaryWarmup { steps: Some(100), shape }.lambda(step, 200);
        assert!(lambda(WarmupShape::Sigmoid, 10) < 0.2 * lambda(WarmupShape::Linear, 10));
        assert!(lambda(WarmupShape::Sigmoid, 90) > lambda(WarmupShape::Linear, 90) + 0.05);
    }
}
