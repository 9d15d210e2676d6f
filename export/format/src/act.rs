//! The activation of the feed-forward gate: one definition for training and engine, so that a model
//! runs with the values it was trained with.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use crate::HiddenAct;

impl HiddenAct {
    /// The activation of `x`; NaN stays NaN.
    #[inline(always)]
    pub fn value(self, x: f32) -> f32 {
        self.value_and_derivative(x).0
    }

    /// The activation of `x` and its derivative there.
    #[inline(always)]
    pub fn value_and_derivative(self, x: f32) -> (f32, f32) {
        match self {
            Self::Relu2 => {
                // Keeps NaN, which `max` would drop.
                let positive = if x < 0.0 { 0.0 } else { x };
                (positive * positive, 2.0 * positive)
            }
            Self::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                // The product rule with σ' = σ·(1 − σ).
                (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu2_is_zero_below_zero_and_keeps_nan() {
        assert_eq!(HiddenAct::Relu2.value_and_derivative(-3.0), (0.0, 0.0));
        assert_eq!(HiddenAct::Relu2.value_and_derivative(3.0), (9.0, 6.0));
        assert!(HiddenAct::Relu2.value(f32::NAN).is_nan());
    }

    #[test]
    fn silu_is_x_times_its_sigmoid_at_both_ends() {
        assert_eq!(HiddenAct::Silu.value(0.0), 0.0);
        assert_eq!(HiddenAct::Silu.value(1.0), 1.0 / (1.0 + (-1.0f32).exp()));
        let ends = (HiddenAct::Silu.value(100.0), HiddenAct::Silu.value(-100.0));
        assert_eq!(ends, (100.0, -0.0), "no NaN where exp overflows");
    }
}
