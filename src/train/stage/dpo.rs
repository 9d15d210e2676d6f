//! Preference training (DPO): pairs of answers, their reference log-probabilities, and the evaluation
//! of held-out pairs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::evaluate::Likelihood;
use super::kept_file::{KeptKey, KeptWork};
use super::objective::Objective;
use super::preference::{DpoObjective, PairBatch};
use super::reference;
use super::{BatchRequest, Stage, StepGradients, described, list_dropped};
use crate::data::{
    EpochPlan, Loader, LoaderSettings, PackedSequence, PairPlan, PreferencePair, SourceLocation,
    TokenCache,
};
use crate::distributed::all_ok;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor, PreferenceEvaluation};
use crate::ops::OpBackend;
use crate::train::context::{RunContext, StepContext, cache_dir};
use crate::train::step::accumulate::BatchCut;

/// Log-probability of the chosen and the rejected answer of each pair of a set, by the reference.
type LogProbs = Vec<[f32; 2]>;

/// Preference pairs and the DPO objective.
pub(crate) struct Dpo {
    loader: Loader<PairPlan>,
    sets: BTreeMap<String, TokenCache>,
    validation: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    objective: DpoObjective,
    /// How pairs are cut.
    cut: BatchCut,
    /// By set; a validation set is told from a training set of the same name by its flag.
    references: BTreeMap<(bool, String), LogProbs>,
}

impl Dpo {
    pub(crate) fn new(
        sets: BTreeMap<String, TokenCache>,
        validation: BTreeMap<String, TokenCache>,
        settings: LoaderSettings,
        beta: f64,
        cut: BatchCut,
    ) -> Self {
        let loader = Loader::new(sets.clone(), settings);
        let objective = DpoObjective { beta };
        let references = BTreeMap::new();
        Self { loader, sets, validation, settings, objective, cut, references }
    }

    /// Micro-batches of pairs of one length each, so that nothing is padded to a neighbour's, each
    /// cut into parts.
    fn batches(
        &self,
        held_out: bool,
        pairs: &[PreferencePair],
        cut: BatchCut,
        backend: OpBackend,
    ) -> Vec<Vec<PairBatch>> {
        let mut by_length: BTreeMap<usize, Vec<PreferencePair>> = BTreeMap::new();
        for pair in pairs {
            // A sorted map: the order of batches, and so of sums, follows from the pairs alone.
            by_length.entry(pair.chosen.tokens.len()).or_default().push(pair.clone());
        }
        let batch =
            |pairs: &[PreferencePair]| PairBatch::new(pairs, &self.reference(held_out, pairs));
        let part = |pairs: &[PreferencePair]| cut.part_size(pairs.len(), backend);
        let parts = |pairs: &[PreferencePair]| pairs.chunks(part(pairs)).map(batch).collect();
        by_length.values().flat_map(|group| group.chunks(cut.micro_batch).map(parts)).collect()
    }

    fn reference(&self, held_out: bool, pairs: &[PreferencePair]) -> LogProbs {
        let of =
            |pair: &PreferencePair| self.references[&(held_out, pair.set.to_string())][pair.index];
        pairs.iter().map(of).collect()
    }

    fn evaluate_set(
        &self,
        model: &LanguageModel,
        set: &str,
        context: StepContext,
    ) -> Result<Evaluation, TrainError> {
        let checked = self.validation[set].check_sizes().map_err(TrainError::from);
        all_ok(context.comm, checked)?;
        let plan = PairPlan::in_file_order(&self.validation[set], self.settings, set);
        let pairs: Vec<PreferencePair> =
            (0..plan.items()).map(|number| plan.item(number)).collect();
        let batches = self.batches(true, &pairs, self.cut, model.backend());
        let batches: Vec<PairBatch> = batches.into_iter().flatten().collect();
        let own = context.finish(self.evaluate_share(model, &batches, context))?;
        let sums = context.comm.all_reduce_sum(&own);
        let [loss, count, logp_chosen, accuracy, margin] = sums[..] else {
            unreachable!("as many sums as were given")
        };
        let mean = |sum: f64| sum / f64::max(count, 1.0);
        let chosen = |pair: &PreferencePair| {
            pair.chosen.loss_mask.iter().filter(|&&mask| mask > 0.0).count()
        };
        let tokens = pairs.iter().map(chosen).sum::<usize>() as u64;
        let likelihood = Likelihood { nll: -logp_chosen, tokens };
        let preference = PreferenceEvaluation {
            loss: mean(loss),
            accuracy: mean(accuracy),
            margin: mean(margin),
            pairs: count as u64,
        };
        Ok(Evaluation { preference: Some(preference), ..likelihood.evaluation() })
    }

    /// Loss, count and the three figures of this rank's share, summed; `None` when interrupted.
    fn evaluate_share(
        &self,
        model: &LanguageModel,
        batches: &[PairBatch],
        context: StepContext,
    ) -> Option<[f64; 5]> {
        let mut sums = [0.0; 5];
        for (number, batch) in batches.iter().enumerate() {
            if context.interrupted() {
                return None;
            }
            if !context.comm.owns(number) {
                continue;
            }
            let outcome = self.objective.evaluate(model, batch, context.device);
            let metric = |name: &str| {
                let found = outcome.metrics.iter().find(|(key, _)| *key == name);
                found.expect("a figure of every preference batch").1
            };
            let [chosen, accuracy, margin] = ["logp_chosen", "accuracy", "margin"].map(metric);
            let loss = f64::from(outcome.sum.into_scalar::<f32>());
            let own = [loss, outcome.count, chosen, accuracy, margin];
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        Some(sums)
    }

    /// Reads or computes the reference log-probabilities of one set.
    fn prepare(
        &mut self,
        (held_out, set): (bool, &str),
        work: &mut ReferenceWork<'_, '_>,
    ) -> Result<(), TrainError> {
        let cache = if held_out { &self.validation[set] } else { &self.sets[set] };
        let plan = PairPlan::in_file_order(cache, self.settings, set);
        let key = KeptKey::new(cache, &work.model_hash, work.context.recipe, self.settings);
        let found = work.log_probs(&key, &plan, set)?;
        // Found in the order of the plan, looked up by the number of the pair. Pairs that the plan
        // leaves out stay NaN: a use of one would show at once.
        let mut by_index = vec![[f32::NAN; 2]; cache.documents() / 2];
        for (number, log_probs) in found.into_iter().enumerate() {
            by_index[plan.index(number as u64)] = log_probs;
        }
        self.references.insert((held_out, set.to_owned()), by_index);
        Ok(())
    }
}

/// What computing references needs beside the pairs.
struct ReferenceWork<'a, 'b> {
    context: &'a RunContext<'b>,
    monitor: &'a mut dyn Monitor,
    model_hash: String,
    model: Option<LanguageModel>,
}

impl ReferenceWork<'_, '_> {
    fn log_probs(
        &mut self,
        key: &KeptKey,
        plan: &PairPlan,
        set: &str,
    ) -> Result<LogProbs, TrainError> {
        let (context, monitor) = (self.context, RefCell::new(&mut *self.monitor));
        let what = format!("reference log-probabilities of {set}");
        let dir = cache_dir(context.recipe);
        let work = KeptWork {
            context: context.step_context(&context.device),
            progress: &|done, total| monitor.borrow_mut().progress(&what, done, total),
        };
        let held = &mut self.model;
        reference::open_or_compute((&dir, key), work, plan, &mut || {
            // A model is read only if some set is not in the cache, and once for all sets.
            if held.is_none() {
                *held = Some(context.initial_model(&mut **monitor.borrow_mut())?);
            }
            Ok(held.clone().expect("it was just put there"))
        })
    }
}

impl Stage for Dpo {
    fn items(&mut self, set: &str) -> Result<u64, TrainError> {
        Ok(self.loader.plan(set, 0)?.items())
    }

    fn describe(&mut self) -> Result<Vec<String>, TrainError> {
        let mut lines = Vec::new();
        for set in self.sets.keys() {
            let plan = self.loader.plan(set, 0)?;
            let found = plan.statistics();
            lines.push(format!(
                "{set}: {} pairs, {:.1} % of their rows filled; {} prompts cut, {} left out",
                found.documents,
                100.0 * found.efficiency(),
                found.truncated,
                found.dropped
            ));
            lines.extend(described(set, &self.sets[set]));
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
        let pairs = (0..plan.items().min(count)).map(|number| (number, plan.item(number)));
        let rows = pairs.flat_map(|(number, pair)| {
            let name = |side: &str| format!("{set}, pair {number}, {side}");
            [(name("chosen"), pair.chosen), (name("rejected"), pair.rejected)]
        });
        Ok(rows.collect())
    }

    fn begin(&mut self, context: &RunContext, monitor: &mut dyn Monitor) -> Result<(), TrainError> {
        let model_hash = context.hash_initial_model()?;
        let mut work = ReferenceWork { context, monitor, model_hash, model: None };
        let train = self.sets.keys().map(|set| (false, set.clone()));
        let names: Vec<_> =
            train.chain(self.validation.keys().map(|set| (true, set.clone()))).collect();
        for (held_out, set) in &names {
            self.prepare((*held_out, set), &mut work)?;
        }
        Ok(())
    }

    fn gradients(
        &mut self,
        model: &LanguageModel,
        request: BatchRequest,
        context: StepContext,
    ) -> Result<StepGradients, TrainError> {
        let (pairs, next) = request.draw(&mut self.loader, context.comm)?;
        let batches = self.batches(false, &pairs, request.cut, model.backend());
        let sum = request.accumulate(model, &self.objective, &batches, context)?;
        let places: Vec<SourceLocation> =
            pairs.into_iter().flat_map(|pair| pair.chosen.documents).collect();
        Ok(StepGradients { sum, next, places })
    }

    fn evaluate(
        &mut self,
        model: &LanguageModel,
        context: StepContext,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError> {
        let one = |set: &String| Ok((set.clone(), self.evaluate_set(model, set, context)?));
        self.validation.keys().map(one).collect()
    }

    /// Policy and reference are equal, so every margin is 0.
    fn first_loss(&self) -> Option<f32> {
        Some(std::f32::consts::LN_2)
    }
}
