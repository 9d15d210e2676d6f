//! What a training stage brings to the loop: which items a step draws, what loss they are trained
//! with, what is evaluated. The loop itself knows no stage.
//!
//! Pretraining and SFT train on packed sequences of tokens (`pretrain_sft`), DPO on preference pairs
//! (`dpo`).

use std::collections::BTreeMap;

use crate::data::{
    DataError, DataMixture, EpochPlan, Loader, LoaderState, PackedSequence, SourceLocation,
    TokenCache,
};
use crate::distributed::Comm;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor};
use crate::ops::OpBackend;
use crate::train::context::{RunContext, StepContext};
use crate::train::step::accumulate::{BatchCut, GradAccumulator};
use crate::train::step::during::UpdateDuring;
use objective::Objective;

pub(crate) mod distill;
pub(crate) mod dpo;
pub(crate) mod evaluate;
mod kept_file;
pub(crate) mod objective;
pub(crate) mod preference;
pub(crate) mod pretrain_sft;
pub(crate) mod reference;

/// Which items a step draws.
#[derive(Clone, Copy)]
pub(crate) struct BatchRequest<'a, 'o> {
    pub(crate) phase: usize,
    pub(crate) mix: &'a DataMixture,
    pub(crate) position: &'a LoaderState,
    pub(crate) batch: usize,
    pub(crate) cut: BatchCut,
    /// What takes the gradients as they are made; `None`: they are summed first.
    pub(crate) updates: Option<&'a UpdateDuring<'o>>,
}

impl BatchRequest<'_, '_> {
    /// This rank's items of the batch, and where the loader stands after the whole of it.
    fn draw<E: EpochPlan + Send + 'static>(
        &self,
        loader: &mut Loader<E>,
        comm: &Comm,
    ) -> Result<(Vec<E::Item>, LoaderState), DataError> {
        loader.items(self.phase, self.mix, self.position, self.batch, comm.share(self.batch))
    }

    /// Items of each part of a micro-batch. One that updates as it goes is one part.
    fn part_size(&self, items: usize, backend: OpBackend) -> usize {
        if self.updates.is_some() { items.max(1) } else { self.cut.part_size(items, backend) }
    }

    /// Runs this rank's micro-batches; stops on all ranks when one of them was interrupted.
    fn accumulate<O: Objective>(
        &self,
        model: &LanguageModel,
        objective: &O,
        micro_batches: &[Vec<O::Batch>],
        context: StepContext,
    ) -> Result<GradAccumulator, TrainError> {
        if let Some(updates) = self.updates {
            // Gradients are used up as they are made, so there is nothing to add a second micro-
            // batch to.
            let [micro_batch] = micro_batches else {
                unreachable!("such a step is one micro-batch");
            };
            let device = context.device;
            return Ok(GradAccumulator::updating(
                model,
                objective,
                &micro_batch[0],
                device,
                updates,
            ));
        }
        let interrupted = || context.interrupted();
        let sum =
            GradAccumulator::over(model, objective, micro_batches, context.device, &interrupted);
        Ok(context.finish(sum)?.all_reduce(context.comm))
    }
}

/// Loss and gradients of this rank's share of a batch.
pub(crate) struct StepGradients {
    pub(crate) sum: GradAccumulator,
    /// The loader's position after the batch.
    pub(crate) next: LoaderState,
    /// The documents in this rank's share.
    pub(crate) places: Vec<SourceLocation>,
}

/// A training stage.
pub(crate) trait Stage {
    /// Items of an epoch of a set.
    fn items(&mut self, set: &str) -> Result<u64, TrainError>;

    /// Statistics of the documents of each set, a line or more.
    fn describe(&mut self) -> Result<Vec<String>, TrainError>;

    /// The first items of a set as rows, each with a name.
    fn preview(
        &mut self,
        set: &str,
        count: u64,
    ) -> Result<Vec<(String, PackedSequence)>, TrainError>;

    /// Prepares what must be there before the first step of this process and takes long to make.
    fn begin(&mut self, _: &RunContext, _: &mut dyn Monitor) -> Result<(), TrainError> {
        Ok(())
    }

    /// Draws a batch and runs this rank's share of it forward and backward; stops on all ranks when
    /// one of them was interrupted.
    fn gradients(
        &mut self,
        model: &LanguageModel,
        request: BatchRequest,
        context: StepContext,
    ) -> Result<StepGradients, TrainError>;

    /// Evaluates every held-out set on all ranks; stops likewise. `model` is without autodiff.
    fn evaluate(
        &mut self,
        model: &LanguageModel,
        context: StepContext,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError>;

    /// The loss that the first step of a run must have, if it is known.
    fn first_loss(&self) -> Option<f32> {
        None
    }
}

/// Lines with the shapes of a set's rows, rows that were skipped, and the lengths of its sequences.
fn described(set: &str, cache: &TokenCache) -> Vec<String> {
    let mut lines = cache.report().lines();
    lines.push(lengths(cache));
    lines.iter().map(|line| format!("{set}: {line}")).collect()
}

fn lengths(cache: &TokenCache) -> String {
    let mut lengths: Vec<u64> = (0..cache.documents()).map(|one| cache.length(one)).collect();
    lengths.sort_unstable();
    let at = |part: f64| lengths.get((lengths.len() as f64 * part) as usize).or(lengths.last());
    let [median, most, longest] = [0.5, 0.95, 1.0].map(|part| at(part).copied().unwrap_or(0));
    format!("lengths in tokens: half up to {median}, 95 % up to {most}, longest {longest}")
}

/// Dropped documents that are listed by name; the rest is only counted.
const LISTED: usize = 10;

/// A line that names the documents that were dropped.
fn list_dropped(set: &str, places: &[SourceLocation]) -> Option<String> {
    let named: Vec<_> = places.iter().take(LISTED).map(ToString::to_string).collect();
    let more = places.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!places.is_empty()).then(|| format!("{set}: left out: {}{more}", named.join(" ")))
}
