//! The state of a training run: what a checkpoint holds and the loop changes.

use serde::{Deserialize, Serialize};

use super::context::RunContext;
use super::step::adamw::AdamW;
use super::step::guard::{Skip, SpikeWindow};
use super::step::report::{PendingStep, StepReport};
use super::waiting_lines::LogLine;
use crate::data::LoaderState;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::Monitor;

/// Model, optimizer and progress.
pub(crate) struct TrainState {
    pub(crate) model: LanguageModel,
    pub(crate) optimizer: AdamW,
    pub(crate) progress: Progress,
    /// The step of the checkpoint this state was read from.
    pub(crate) resumed_from: Option<u64>,
}

/// The small part of the state: `state.json`. With the model and the moments it decides every later
/// step, so a resumed run ends with the same bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) run_id: String,
    pub(crate) step: u64,
    /// Trained targets so far.
    pub(crate) tokens: u64,
    /// Trained targets of rank 0; absent from checkpoints of older versions.
    #[serde(default)]
    pub(crate) own_tokens: u64,
    /// Updates made: steps less skipped ones.
    pub(crate) updates: u64,
    /// Squares of the last step's gradients by tensor, of a run that updates during its backward passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) last_squares: Vec<f32>,
    /// Where the data loader stands.
    pub(crate) position: LoaderState,
    pub(crate) skipped_in_a_row: u32,
    pub(crate) skipped: u32,
    /// Whether the callbacks of this step (evaluation, samples) are still to be run.
    pub(crate) unfinished: bool,
    /// The evaluation with the lowest loss.
    pub(crate) best: Option<Best>,
    pub(crate) spikes: SpikeWindow,
    pub(crate) data_fingerprint: String,
    pub(crate) tokenizer_blake3: String,
    pub(crate) chat_template: String,
    /// The model that the run started from; absent from checkpoints of older versions.
    #[serde(default)]
    pub(crate) init_blake3: Option<String>,
    /// Lines of the logs that a full disk kept out of them; in checkpoints only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unwritten: Vec<LogLine>,
}

/// The evaluation of a run with the lowest loss.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u64,
    /// Mean over the held-out sets: nats a token, or loss a pair.
    pub(crate) loss: f64,
}

impl TrainState {
    /// The state of step 0.
    pub(crate) fn fresh(
        context: &RunContext,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, TrainError> {
        let model = context.initial_model(monitor)?;
        let optimizer = context.new_optimizer();
        let is_first = context.comm.is_first();
        let init_blake3 = if is_first { context.hash_init_with_progress(monitor)? } else { None };
        let progress = Progress { init_blake3, ..Progress::fresh(context) };
        Ok(Self { model, optimizer, progress, resumed_from: None })
    }
}

impl TrainState {
    /// Whether the last of `steps` steps was made, its callbacks included.
    pub(crate) fn is_trained(&self, steps: u64) -> bool {
        self.progress.step == steps && !self.progress.unfinished
    }
}

impl Progress {
    fn fresh(context: &RunContext) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Only a name for the run; no number of it depends on the clock.
        let key = format!("{:?} {}", now.unwrap_or_default(), std::process::id());
        Self {
            run_id: blake3::hash(key.as_bytes()).to_hex()[..16].to_owned(),
            step: 0,
            tokens: 0,
            own_tokens: 0,
            updates: 0,
            last_squares: Vec::new(),
            position: LoaderState::default(),
            skipped_in_a_row: 0,
            skipped: 0,
            unfinished: false,
            best: None,
            spikes: SpikeWindow::default(),
            data_fingerprint: context.fingerprint.clone(),
            tokenizer_blake3: context.tokenizer_hash(),
            chat_template: context.chat.identity(),
            init_blake3: None,
            unwritten: Vec::new(),
        }
    }

    /// Counts a step that was made and whose figures may be unread; its callbacks are due.
    pub(crate) fn advance(&mut self, next: LoaderState, pending: &PendingStep) {
        self.position = next;
        self.step += 1;
        self.tokens += pending.tokens;
        self.own_tokens += pending.own_tokens;
        // Set before the callbacks and cleared before the checkpoint that they write. A signal
        // between the two saves it as true, and the resumed run runs the callbacks of this step
        // again before the next step.
        self.unfinished = true;
    }

    /// Counts a skipped step, or the end of a row of them.
    pub(crate) fn count_skip(&mut self, report: &StepReport) {
        match report.skipped {
            Some(Skip::NotFinite) => {
                self.skipped_in_a_row += 1;
                self.skipped += 1;
            }
            // A spike neither extends nor ends a row: the state is healthy, only the batch was not.
            Some(Skip::Spike) => {}
            None => self.skipped_in_a_row = 0,
        }
    }
}
