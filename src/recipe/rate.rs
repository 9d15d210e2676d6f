//! A rate: how a learning rate or a weight decay changes over steps.
//!
//! A rate is a curve over the fraction of its span that has passed; `schedule` decides which
//! fraction belongs to a step.

use std::f64::consts::PI;

use super::item::{Bound, Item, word};
use super::section::Section;

/// A learning rate or a weight decay; every number in it is finite and at least 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// The same at every step.
    Constant {
        /// What it is.
        value: f64,
    },
    /// From `peak` to `end` over a span of steps.
    Curve {
        /// The form of the curve.
        shape: CurveShape,
        /// The value where the span begins.
        peak: f64,
        /// The value at its last step.
        end: f64,
        /// The steps the curve covers.
        span: Span,
    },
}

/// How a curve goes from its peak to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurveShape {
    /// Straight.
    Linear,
    /// Half a cosine.
    Cosine,
    /// `1 − √x` of the way x: steep at first (Hägele et al. 2024, arXiv 2405.18392).
    OneMinusSqrt,
}

impl CurveShape {
    const WORDS: &[(&str, Self)] =
        &[("linear", Self::Linear), ("cosine", Self::Cosine), ("1-sqrt", Self::OneMinusSqrt)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }
}

/// The steps a curve covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All steps of the run, of which the phase shows its part.
    Run,
    /// The steps of the phase.
    Phase,
}

impl Span {
    const WORDS: &[(&str, Self)] = &[("run", Self::Run), ("phase", Self::Phase)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }
}

impl Rate {
    /// The value where a curve begins, which a warm-up climbs to.
    pub fn peak(self) -> f64 {
        match self {
            Self::Constant { value } => value,
            Self::Curve { peak, .. } => peak,
        }
    }

    /// The value when `elapsed` of a span's `length` steps have passed.
    ///
    /// Linear is `peak + (end − peak)·elapsed / length` in just this order of operations, which is
    /// that of the reference run.
    pub fn after(self, elapsed: u64, length: u64) -> f64 {
        let (elapsed, length) = (elapsed as f64, length as f64);
        match self {
            Self::Constant { value } => value,
            Self::Curve { shape: CurveShape::Linear, peak, end, .. } => {
                // Rounding may end a hair below 0.
                (peak + (end - peak) * elapsed / length).max(0.0)
            }
            Self::Curve { shape: CurveShape::Cosine, peak, end, .. } => {
                end + (peak - end) * 0.5 * (1.0 + (PI * elapsed / length).cos())
            }
            Self::Curve { shape: CurveShape::OneMinusSqrt, peak, end, .. } => {
                end + (peak - end) * (1.0 - (elapsed / length).sqrt())
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Constant,
    Curve(CurveShape),
}

// The words of `shape`: a constant takes other keys than a curve, so it is read as one of them.
const KINDS: &[(&str, Kind)] = &[
    ("constant", Kind::Constant),
    ("linear", Kind::Curve(CurveShape::Linear)),
    ("cosine", Kind::Curve(CurveShape::Cosine)),
    ("1-sqrt", Kind::Curve(CurveShape::OneMinusSqrt)),
];

/// Reads `{ shape, … }`.
pub(super) fn read_rate(item: &Item<'_>) -> Option<Rate> {
    let mut table = Section::of(item, "a table such as { shape = \"linear\", peak = 1.5e-3 }")?;
    let words = "\"constant\" or \"linear\" or \"cosine\" or \"1-sqrt\"";
    // Without `finish`: which keys are known depends on the shape.
    let kind = table.required("shape", words, |item| item.choice(KINDS))?;
    let amount = |item: &Item<'_>| item.number(Bound::NonNegative);
    let rate = match kind {
        Kind::Constant => table
            .required("value", "a number of at least 0", amount)
            .map(|value| Rate::Constant { value }),
        Kind::Curve(shape) => {
            let peak = table.required("peak", "a number of at least 0", amount);
            let end = table.value("end", amount);
            let span = table.value("span", |item| item.choice(Span::WORDS));
            peak.map(|peak| Rate::Curve { shape, peak, end, span })
        }
    };
    table.finish();
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(shape: CurveShape) -> Rate {
        Rate::Curve { shape, peak: 1.0, end: 0.5, span: Span::Run }
    }

    #[test]
    fn a_line_is_half_way_in_the_middle() {
        let line = curve(CurveShape::Linear);
        assert_eq!([0, 5, 10].map(|t| line.after(t, 10)), [1.0, 0.75, 0.5]);
    }

    #[test]
    fn a_cosine_is_flat_at_both_ends_and_half_way_in_the_middle() {
        let cosine = curve(CurveShape::Cosine);
        assert_eq!([0, 10].map(|t| cosine.after(t, 10)), [1.0, 0.5]);
        assert!((cosine.after(5, 10) - 0.75).abs() < 1e-15);
        assert!(cosine.after(1, 10) > curve(CurveShape::Linear).after(1, 10));
    }

    #[test]
    fn one_minus_sqrt_falls_fast_and_then_slowly() {
        let root = curve(CurveShape::OneMinusSqrt);
        assert_eq!([0, 25, 100].map(|t| root.after(t, 100)), [1.0, 0.75, 0.5]);
        assert!(root.after(99, 100) > 0.5);
    }

    #[test]
    fn a_constant_is_its_own_peak() {
        let rate = Rate::Constant { value: 0.1 };
        assert_eq!((rate.peak(), rate.after(7, 9)), (0.1, 0.1));
    }
}
