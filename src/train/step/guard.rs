//! Which steps are skipped: those whose loss or gradient norm is not finite, or far above the last
//! steps' (a spike).
//!
//! The window of the last steps is part of the state of a run, so a resumed run skips the same steps.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::recipe::Guard;

/// Why an update was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Loss or gradient norm is not finite.
    NotFinite,
    /// One of them lies above its limit.
    Spike,
}

/// The largest loss and gradient norm with which a step is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest loss.
    pub loss: f64,
    /// Largest gradient norm.
    pub grad_norm: f64,
}

impl Limits {
    /// Everything finite passes.
    pub const NONE: Self = Self { loss: f64::INFINITY, grad_norm: f64::INFINITY };

    /// Why a step with these figures must be skipped; `None` when it passes.
    pub(crate) fn check(self, loss: f32, grad_norm: f64) -> Option<Skip> {
        // Before the limits: a comparison with NaN is false and would let the step pass.
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Some(Skip::NotFinite);
        }
        (f64::from(loss) > self.loss || grad_norm > self.grad_norm).then_some(Skip::Spike)
    }
}

/// Loss and gradient norm of the last steps, spikes included: a level that stays is not a spike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpikeWindow {
    losses: VecDeque<f64>,
    grad_norms: VecDeque<f64>,
}

impl SpikeWindow {
    /// The limits of the next step.
    pub(crate) fn limits(&self, guard: &Guard) -> Limits {
        if guard.spike_sigma == 0.0 || self.losses.len() < guard.spike_window {
            return Limits::NONE;
        }
        let limit = |values| limit(values, guard.spike_sigma);
        Limits { loss: limit(&self.losses), grad_norm: limit(&self.grad_norms) }
    }

    /// Adds a finite step to the window.
    pub(crate) fn push(&mut self, guard: &Guard, loss: f32, grad_norm: f64) {
        if guard.spike_sigma == 0.0 || !loss.is_finite() || !grad_norm.is_finite() {
            return;
        }
        for (values, value) in
            [(&mut self.losses, f64::from(loss)), (&mut self.grad_norms, grad_norm)]
        {
            // Also a spike: if the loss stays there, the window follows and the run goes on.
            values.push_back(value);
            while values.len() > guard.spike_window {
                values.pop_front();
            }
        }
    }
}

/// Mean plus `sigma` standard deviations.
fn limit(values: &VecDeque<f64>, sigma: f64) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    mean + sigma * variance.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(spike_sigma: f64) -> Guard {
        Guard { max_skipped_in_a_row: 3, max_skipped: 20, spike_sigma, spike_window: 4 }
    }

    fn filled(guard: &Guard) -> SpikeWindow {
        let mut window = SpikeWindow::default();
        for loss in [9.0, 1.0, 3.0, 1.0, 3.0] {
            window.push(guard, loss, 2.0 * f64::from(loss));
        }
        window
    }

    #[test]
    fn a_step_above_a_limit_is_a_spike_and_a_non_finite_step_is_reported_first() {
        let limits = Limits { loss: 2.0, grad_norm: 5.0 };
        assert_eq!(limits.check(2.0, 5.0), None);
        assert_eq!(limits.check(2.1, 1.0), Some(Skip::Spike));
        assert_eq!(limits.check(1.0, 5.1), Some(Skip::Spike));
        assert_eq!(limits.check(f32::NAN, 1.0), Some(Skip::NotFinite));
        assert_eq!(Limits::NONE.check(1.0, f64::INFINITY), Some(Skip::NotFinite));
        assert_eq!(Limits::NONE.check(1e30, 1e30), None);
    }

    #[test]
    fn a_full_window_limits_by_mean_and_deviation() {
        let guard = guard(2.0);
        let limits = filled(&guard).limits(&guard);
        assert_eq!(limits, Limits { loss: 4.0, grad_norm: 8.0 });
    }

    #[test]
    fn nothing_is_a_spike_before_the_window_is_full_or_when_switched_off() {
        let on = guard(2.0);
        let mut window = SpikeWindow::default();
        window.push(&on, 1.0, 1.0);
        window.push(&on, f32::NAN, 1.0);
        assert_eq!(window.limits(&on), Limits::NONE);
        assert_eq!(window.losses.len(), 1);
        let off = guard(0.0);
        assert_eq!(filled(&off), SpikeWindow::default());
    }
}
