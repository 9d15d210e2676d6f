//! The training loop and its parts.

mod adamw;
mod objective;
mod step;

pub use adamw::{AdamW, AdamWSettings};
pub use objective::{Batch, CrossEntropy, Objective, Outcome, batch_log_probs};
pub use step::{Accumulated, Reduction, StepReport, StepSettings, global_norm};

/// The rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}
