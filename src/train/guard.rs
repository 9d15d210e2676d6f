//! When a step is not to be believed: a loss or gradient norm far above those of the last steps.
//!
//! The window is part of the state of a run, so that a resumed run leaves out the same steps. What
//! is not finite is left out by `step` itself.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::recipe::Guard;

/// What a step must stay below to be applied.
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
}

/// Loss and gradient norm of the last steps, spikes included: a level that stays is no spike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpikeWindow {
    losses: VecDeque<f64>,
    grad_norms: VecDeque<f64>,
}

impl SpikeWindow {
    /// What the next step must stay below.
    pub(crate) fn limits(&self, guard: &Guard) -> Limits {
        if guard.spike_sigma == 0.0 || self.losses.len() < guard.spike_window {
            return Limits::NONE;
        }
        let limit = |values| limit(values, guard.spike_sigma);
        Limits { loss: limit(&self.losses), grad_norm: limit(&self.grad_norms) }
    }

    /// Takes a finite step into the window.
    pub(crate) fn push(&mut self, guard: &Guard, loss: f32, grad_norm: f64) {
        if guard.spike_sigma == 0.0 || !loss.is_finite() || !grad_norm.is_finite() {
            return;
        }
        for (values, value) in
            [(&mut self.losses, f64::from(loss)), (&mut self.grad_norms, grad_norm)]
        {
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
