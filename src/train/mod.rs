//! The training loop and its parts, from one optimizer step ([`Accumulated`], [`AdamW`]) to a
//! whole run ([`run`]). Models, files and terminals live in other rooms.

mod adamw;
mod agreement;
mod curriculum;
mod due;
mod error;
mod evaluate;
mod guard;
mod inputs;
mod objective;
mod pairs;
mod pipeline;
mod preference;
mod reference;
mod resume;
mod run;
mod run_dir;
mod sample;
mod session;
mod sources;
mod step;
mod telemetry;
mod together;
mod training;

pub use adamw::{AdamW, AdamWSettings};
pub use agreement::{agree, first_only};
pub(crate) use curriculum::part_size;
pub use error::TrainError;
pub use evaluate::{Likelihood, batch_of, likelihood};
pub use guard::Limits;
pub use objective::{Batch, CrossEntropy, Objective, Outcome, batch_log_probs};
pub use pipeline::{PipelineStage, pipeline};
pub use preference::{PairBatch, Preference, sequence_log_probs};
pub use run::{
    Preview, Resume, RunOptions, Shape, Summary, check, check_batch, final_dir, preview,
    refuse_existing, rehearse, run, shape,
};
pub use sample::{SampleSettings, sample};
pub use step::{Accumulated, MadeStep, Reduction, Skip, StepReport, StepSettings, global_norm};
pub use telemetry::TernaryShares;
pub(crate) use together::{Together, TogetherSettings};

/// The rates of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}
