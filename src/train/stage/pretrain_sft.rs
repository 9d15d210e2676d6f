//! Pretraining and supervised fine-tuning: packed sequences of tokens, next-token cross-entropy over
//! the trained targets, and what a teacher says beside it.

use std::collections::BTreeMap;

use super::distill::taught::Taught;
use super::evaluate::{batch_of, likelihood, own_share};
use super::objective::CrossEntropy;
use super::{BatchRequest, Stage, StepGradients, described, list_dropped};
use crate::data::{
    EpochPlan, Loader, LoaderSettings, PackedSequence, SequencePlan, TokenCache,
    validation_sequences,
};
use crate::distributed::all_ok;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor};
use crate::train::context::{RunContext, StepContext};
use crate::train::step::accumulate::GradAccumulator;

/// Packed sequences and their next-token cross-entropy.
pub(crate) struct PretrainSft {
    loader: Loader<SequencePlan>,
    caches: BTreeMap<String, TokenCache>,
    validation: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    /// What is learned beside cross-entropy; opened before the first step.
    taught: Option<Taught>,
}

impl PretrainSft {
    pub(crate) fn new(
        sets: BTreeMap<String, TokenCache>,
        validation: BTreeMap<String, TokenCache>,
        settings: LoaderSettings,
    ) -> Self {
        let loader = Loader::new(sets.clone(), settings);
        Self { loader, caches: sets, validation, settings, taught: None }
    }

    /// Runs this rank's rows as the run learns them.
    fn accumulate(
        &self,
        model: &LanguageModel,
        rows: &[PackedSequence],
        request: BatchRequest,
        context: StepContext,
    ) -> Result<GradAccumulator, TrainError> {
        let part = |rows: &[PackedSequence]| request.part_size(rows.len(), model.backend());
        let micro_batches = rows.chunks(request.cut.micro_batch);
        let Some(taught) = &self.taught else {
            let parts = |rows: &[PackedSequence]| rows.chunks(part(rows)).map(batch_of).collect();
            let batches: Vec<_> = micro_batches.map(parts).collect();
            return request.accumulate(model, &CrossEntropy, &batches, context);
        };
        let of = |rows: &[PackedSequence]| taught.batch(rows);
        let parts = |rows: &[PackedSequence]| rows.chunks(part(rows)).map(of).collect();
        let batches: Vec<_> = micro_batches.map(parts).collect();
        request.accumulate(model, &taught.objective, &batches, context)
    }
}

impl Stage for PretrainSft {
    fn items(&mut self, set: &str) -> Result<u64, TrainError> {
        Ok(self.loader.plan(set, 0)?.items())
    }

    fn describe(&mut self) -> Result<Vec<String>, TrainError> {
        let mut lines = Vec::new();
        for set in self.caches.keys() {
            let plan = self.loader.plan(set, 0)?;
            let packing = plan.statistics();
            lines.push(format!(
                "{set}: {} documents in {} rows of {}, {:.1} % filled",
                packing.documents,
                packing.rows,
                self.settings.seq_len,
                100.0 * packing.efficiency()
            ));
            let fates = [
                (packing.truncated, "cut to a row"),
                (packing.split, "split over rows"),
                (packing.dropped, "left out as too long"),
                (packing.too_short, "left out as too short"),
                (packing.untrained, "left out because no trained token fits in a row"),
            ];
            lines.extend(described(set, &self.caches[set]));
            let fates = fates.iter().filter(|(count, _)| *count > 0);
            let fates: Vec<_> = fates.map(|(count, fate)| format!("{count} {fate}")).collect();
            if !fates.is_empty() {
                lines.push(format!("{set}: {}", fates.join(", ")));
            }
            lines.extend(list_dropped(set, &plan.left_out()));
        }
        Ok(lines)
    }

    fn preview(
        &mut self,
        set: &str,
        count: u64,
    ) -> Result<Vec<(String, PackedSequence)>, TrainError> {
        let plan = self.loader.plan(set, 0)?;
        let name = |row: u64| format!("{set}, row {row}");
        Ok((0..plan.items().min(count)).map(|row| (name(row), plan.item(row))).collect())
    }

    fn begin(&mut self, context: &RunContext, monitor: &mut dyn Monitor) -> Result<(), TrainError> {
        self.taught = Taught::open(context, &self.caches, self.settings, monitor)?;
        Ok(())
    }

    fn gradients(
        &mut self,
        model: &LanguageModel,
        request: BatchRequest,
        context: StepContext,
    ) -> Result<StepGradients, TrainError> {
        let (rows, next) = request.draw(&mut self.loader, context.comm)?;
        let sum = self.accumulate(model, &rows, request, context)?;
        let places = rows.into_iter().flat_map(|row| row.documents).collect();
        Ok(StepGradients { sum, next, places })
    }

    fn evaluate(
        &mut self,
        model: &LanguageModel,
        context: StepContext,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError> {
        let mut results = BTreeMap::new();
        for (name, cache) in &self.validation {
            all_ok(context.comm, cache.check_sizes().map_err(TrainError::from))?;
            let rows = validation_sequences(cache, self.settings.seq_len);
            let own = own_share(rows, context.comm);
            let own = likelihood(model, own, context.device, &|| context.interrupted());
            let all = context.finish(own)?.all_reduce(context.comm);
            results.insert(name.clone(), all.evaluation());
        }
        Ok(results)
    }
}
