//! Observers of a run. The training loop reports events, a [`Monitor`] displays them. A monitor cannot
//! change a result, and the loop itself writes `metrics.jsonl`, whichever monitor is used.

mod curves;
mod events;
mod line_command;
mod mlflow;
mod narrow;
mod plot;
mod progress_line;
mod shown;
mod terminal;
mod trackers;
mod unwritten;

pub use events::EventFile;
pub use mlflow::TrackedRun;
pub use plot::{Glyphs, plot};
pub use shown::shown;
pub use terminal::{Terminal, Verbosity};
pub use trackers::{TrackedFiles, TrackerKind, Trackers};

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

/// What is known before the first step.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The recipe's name.
    pub name: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// Steps of the whole run.
    pub steps: u64,
    /// The first step that will be made; above 1 after a resume.
    pub first_step: u64,
    /// The batch of an optimizer step, as text.
    pub batch: String,
    /// Processes that train together.
    pub ranks: usize,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub step: u64,
    /// Name of the phase.
    pub phase: String,
    /// Trained targets so far.
    pub tokens: u64,
    /// Mean loss per trained token; JSON `null` when not finite.
    pub loss: f32,
    /// The bits of the loss, hexadecimal.
    pub loss_bits: String,
    /// Learning rate of this step.
    pub lr: f64,
    /// Weight decay of this step.
    pub weight_decay: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Trained tokens a second over this step.
    pub tokens_per_second: f64,
    /// Joules per trained token that this machine used, where it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
    /// λ of a warm-up of the ternary weights, where the recipe has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ternary_lambda: Option<f32>,
    /// Whether the update was skipped because of a non-finite value or a loss spike.
    pub skipped: bool,
    /// Processes that train together.
    pub ranks: usize,
    /// Trained targets so far of the rank that writes this.
    pub tokens_this_rank: u64,
    /// Further metrics of the objective.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, f64>,
    /// The documents of a skipped step: file and line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<String>,
}

/// Held-out loss of one set.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Evaluation {
    /// Mean negative log-likelihood of a token, in nats.
    pub nll_per_token: f64,
    /// `exp(nll_per_token)`.
    pub perplexity: f64,
    /// Figures of preference pairs; the others are then those of the chosen answers.
    #[serde(flatten)]
    pub preference: Option<PreferenceEvaluation>,
}

/// Metrics of held-out preference pairs.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct PreferenceEvaluation {
    /// Mean loss a pair.
    pub loss: f64,
    /// Share of the pairs whose chosen answer gained more on the reference than the rejected one.
    pub accuracy: f64,
    /// Mean of beta times the difference of the gains.
    pub margin: f64,
    /// Pairs.
    pub pairs: u64,
}

impl Evaluation {
    /// The loss that training minimises; the best checkpoint has the smallest.
    pub fn criterion(&self) -> f64 {
        self.preference.map_or(self.nll_per_token, |preference| preference.loss)
    }
}

/// An observer of a run; every method has an empty default.
pub trait Monitor {
    /// Training is about to begin.
    fn started(&mut self, _info: &RunInfo) {}
    /// An event to report as one line.
    fn message(&mut self, _text: &str) {}
    /// An event that only a verbose observer reports.
    fn detail(&mut self, _text: &str) {}
    /// Progress of long preparation: `done` of `total` units of `what`.
    fn progress(&mut self, _what: &str, _done: u64, _total: u64) {}
    /// A step was completed.
    fn step(&mut self, _record: &StepRecord) {}
    /// The ternary codes of all matrices were counted.
    fn ternary(&mut self, _step: u64, _all: &TernaryShares) {}
    /// A held-out set was evaluated.
    fn evaluated(&mut self, _step: u64, _set: &str, _evaluation: Evaluation) {}
    /// The model continued a prompt.
    fn sampled(&mut self, _step: u64, _prompt: &str, _text: &str) {}
    /// A checkpoint or a folder was written.
    fn saved(&mut self, _path: &Path) {}
    /// The run came to its end.
    fn finished(&mut self) {}
}

/// Displays nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {}

/// Statistics of the ternary codes of one kind of matrix, over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TernaryShares {
    /// Share of −1.
    pub minus: f64,
    /// Share of 0.
    pub zero: f64,
    /// Share of +1.
    pub plus: f64,
    /// Share of codes that differ from those of the last report of this process; `null` in its
    /// first.
    pub flipped: Option<f64>,
    /// Share of codes that a latent adapter moved from those of its model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<f64>,
    /// Rows of zeros only: outputs that are always 0.
    pub dead_rows: u64,
}
