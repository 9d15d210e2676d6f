//! The training loop and its parts, from one optimizer step ([`Accumulated`], [`AdamW`]) to a
//! whole run ([`run`]). Models, files and terminals live in other rooms.

mod adamw;
mod error;
mod evaluate;
mod objective;
mod resume;
mod run;
mod run_dir;
mod sample;
mod session;
mod step;
mod training;

pub use adamw::{AdamW, AdamWSettings};
pub use error::TrainError;
pub use evaluate::{Likelihood, batch_of, likelihood};
pub use objective::{Batch, CrossEntropy, Objective, Outcome, batch_log_probs};
pub use run::{Resume, RunOptions, Summary, final_dir, run};
pub use sample::{SampleSettings, sample};
pub use step::{Accumulated, Reduction, StepReport, StepSettings, global_norm};

/// The rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}
