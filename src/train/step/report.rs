//! What a step needs to know beside model and data, and what it reports.

use burn::tensor::Tensor;

use super::guard::{Limits, Skip};
use crate::host::to_host;
use crate::recipe::LossReduction;

/// What a step needs to know beside model, data and rates.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Mean or sum.
    pub reduction: LossReduction,
    /// Largest global gradient norm; 0 switches clipping off.
    pub grad_clip: f64,
    /// Above these the update is skipped.
    pub limits: Limits,
}

impl Default for StepSettings {
    /// Mean loss, gradients clipped to a global norm of 1.
    fn default() -> Self {
        Self { reduction: LossReduction::Mean, grad_clip: 1.0, limits: Limits::NONE }
    }
}

/// The figures of a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean loss per counted item, whatever the reduction.
    pub loss: f32,
    /// Global L2 norm of the gradient of the reduced loss, before clipping.
    pub grad_norm: f64,
    /// Counted items: trained tokens, or pairs.
    pub count: f64,
    /// Trained targets, whatever is counted.
    pub tokens: u64,
    /// Why the update was skipped, if it was.
    pub skipped: Option<Skip>,
    /// The objective's other figures, as means over the counted items.
    pub metrics: Vec<(&'static str, f64)>,
}

/// Loss, gradient norm and whether the update was made.
#[derive(Clone, Debug)]
pub(crate) enum StepFigures {
    OnHost {
        loss: f32,
        grad_norm: f64,
        passed: bool,
    },
    /// The same three on the device, `[3]`, unread.
    OnDevice(Box<Tensor<1>>),
}

/// A step that was made. Its figures may still be on the device; `OptimizerStep::sync` reads them.
#[derive(Clone, Debug)]
pub struct PendingStep {
    pub(super) figures: StepFigures,
    pub(super) limits: Limits,
    pub(super) count: f64,
    /// Trained targets of all ranks.
    pub(crate) tokens: u64,
    /// Trained targets of this rank.
    pub(crate) own_tokens: u64,
    pub(super) metrics: Vec<(&'static str, f64)>,
}

impl PendingStep {
    /// Reads the figures; waits for the device where they are there.
    pub(crate) fn read(self) -> StepReport {
        let (loss, grad_norm, passed) = match self.figures {
            StepFigures::OnHost { loss, grad_norm, passed } => (loss, grad_norm, passed),
            StepFigures::OnDevice(figures) => {
                let figures = to_host(*figures);
                (figures[0], f64::from(figures[1]), figures[2] > 0.5)
            }
        };
        // Host and device may round a limit differently, so the host's check can pass here.
        let why = || self.limits.check(loss, grad_norm).unwrap_or(Skip::Spike);
        let skipped = (!passed).then(why);
        let mean = |(name, sum): (&'static str, f64)| (name, sum / self.count);
        let metrics = self.metrics.into_iter().map(mean).collect();
        StepReport { loss, grad_norm, count: self.count, tokens: self.tokens, skipped, metrics }
    }
}
