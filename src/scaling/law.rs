//! The curve that is fitted, and what it is fitted to.

use serde::Serialize;

/// What one run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossPoint {
    /// `N`, all parameters of the model; above 0.
    pub parameters: f64,
    /// `D`, tokens it was trained on; above 0.
    pub tokens: f64,
    /// Held-out loss after its last step, in nats a token; above 0.
    pub loss: f64,
}

/// `L(N, D) = E + A / N^alpha + B / D^beta`, in nats a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScalingLaw {
    /// `E`, what no size and no data removes.
    pub e: f64,
    /// `A`, with `alpha` what a finite model costs.
    pub a: f64,
    /// The exponent of `N`.
    pub alpha: f64,
    /// `B`, with `beta` what finite data cost.
    pub b: f64,
    /// The exponent of `D`.
    pub beta: f64,
}

impl ScalingLaw {
    /// The loss of a model with `parameters` parameters after `tokens` tokens, in nats a token.
    pub fn loss(&self, parameters: f64, tokens: f64) -> f64 {
        self.e + self.a / parameters.powf(self.alpha) + self.b / tokens.powf(self.beta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_the_sum_of_three_parts() {
        let law = ScalingLaw { e: 1.5, a: 8.0, alpha: 0.5, b: 27.0, beta: 1.0 / 3.0 };
        assert!((law.loss(16.0, 27.0) - (1.5 + 2.0 + 9.0)).abs() < 1e-12);
    }
}
