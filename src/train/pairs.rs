//! The curriculum of preference training: pairs, their reference log-probabilities, and the
//! evaluation of held-out pairs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::Device;

use crate::data::{Epoch, Loader, LoaderSettings, Pair, PairPlan, Place, Row, TokenCache};
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor, PreferenceEvaluation};
use crate::train::curriculum::{Curriculum, Desk, Draw, Lesson, lengths, list, part_size};
use crate::train::evaluate::Likelihood;
use crate::train::preference::{PairBatch, Preference};
use crate::train::reference::{self, ReferenceKey};
use crate::train::session::Session;
use crate::train::{Accumulated, Objective, TrainError};

/// For each pair of a set what the reference makes of its two answers.
type LogProbs = Vec<[f32; 2]>;

/// Preference pairs and the DPO objective.
pub(crate) struct Pairs {
    loader: Loader<PairPlan>,
    sets: BTreeMap<String, TokenCache>,
    validation: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    objective: Preference,
    /// Pairs a forward pass.
    micro_batch: usize,
    /// By set; a validation set is told from a training set of the same name by its flag.
    references: BTreeMap<(bool, String), LogProbs>,
}

impl Pairs {
    pub(crate) fn new(
        sets: BTreeMap<String, TokenCache>,
        validation: BTreeMap<String, TokenCache>,
        settings: LoaderSettings,
        beta: f64,
        micro_batch: usize,
    ) -> Self {
        let loader = Loader::new(sets.clone(), settings);
        let objective = Preference { beta };
        let references = BTreeMap::new();
        Self { loader, sets, validation, settings, objective, micro_batch, references }
    }

    /// Micro-batches of pairs of one length each, so that nothing is padded to a neighbour's, each
    /// cut into parts.
    fn batches(
        &self,
        held_out: bool,
        pairs: &[Pair],
        micro_batch: usize,
        device: &Device,
    ) -> Vec<Vec<PairBatch>> {
        let mut by_length: BTreeMap<usize, Vec<Pair>> = BTreeMap::new();
        for pair in pairs {
            by_length.entry(pair.chosen.tokens.len()).or_default().push(pair.clone());
        }
        let batch = |pairs: &[Pair]| PairBatch::new(pairs, &self.reference(held_out, pairs));
        let part = |pairs: &[Pair]| part_size(pairs.len(), device);
        let parts = |pairs: &[Pair]| pairs.chunks(part(pairs)).map(batch).collect();
        by_length.values().flat_map(|group| group.chunks(micro_batch).map(parts)).collect()
    }

    fn reference(&self, held_out: bool, pairs: &[Pair]) -> LogProbs {
        let of = |pair: &Pair| self.references[&(held_out, pair.set.to_string())][pair.index];
        pairs.iter().map(of).collect()
    }

    fn evaluate_set(
        &self,
        model: &LanguageModel,
        set: &str,
        desk: Desk,
    ) -> Result<Evaluation, TrainError> {
        let plan = PairPlan::in_file_order(&self.validation[set], self.settings, set);
        let pairs: Vec<Pair> = (0..plan.items()).map(|number| plan.item(number)).collect();
        let batches = self.batches(true, &pairs, self.micro_batch, desk.device);
        let batches: Vec<PairBatch> = batches.into_iter().flatten().collect();
        let own = desk.unless_stopped(self.evaluate_share(model, &batches, desk))?;
        let sums = desk.ranks.sums(&own);
        let [loss, count, logp_chosen, accuracy, margin] = sums[..] else {
            unreachable!("as many sums as were given")
        };
        let mean = |sum: f64| sum / f64::max(count, 1.0);
        let chosen = |pair: &Pair| pair.chosen.loss_mask.iter().filter(|&&mask| mask > 0.0).count();
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
        desk: Desk,
    ) -> Option<[f64; 5]> {
        let mut sums = [0.0; 5];
        for (number, batch) in batches.iter().enumerate() {
            if desk.interrupted() {
                return None;
            }
            if !desk.ranks.deals_with(number) {
                continue;
            }
            let outcome = self.objective.evaluate(model, batch, desk.device);
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
        let LoaderSettings { seq_len, policy, .. } = self.settings;
        let recipe = work.session.recipe;
        let key = ReferenceKey {
            data: cache.key().to_owned(),
            model: work.model_hash.clone(),
            rows: format!(
                "{seq_len} {policy:?} {} {}",
                recipe.train.precision.name(),
                recipe.device
            ),
        };
        let found = work.log_probs(&key, &plan, set)?;
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
    session: &'a Session<'b>,
    monitor: &'a mut dyn Monitor,
    model_hash: String,
    model: Option<LanguageModel>,
}

impl ReferenceWork<'_, '_> {
    fn log_probs(
        &mut self,
        key: &ReferenceKey,
        plan: &PairPlan,
        set: &str,
    ) -> Result<LogProbs, TrainError> {
        let (session, monitor) = (self.session, RefCell::new(&mut *self.monitor));
        let what = format!("reference log-probabilities of {set}");
        let dir: PathBuf = session.cache_dir();
        let request = reference::Request {
            dir: &dir,
            key,
            desk: session.desk(&session.device),
            progress: &|done, total| monitor.borrow_mut().progress(&what, done, total),
        };
        let held = &mut self.model;
        reference::open_or_compute(&request, plan, &mut || {
            if held.is_none() {
                *held = Some(session.initial_model(&mut **monitor.borrow_mut())?);
            }
            Ok(held.clone().expect("it was just put there"))
        })
    }
}

impl Curriculum for Pairs {
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
                found.pairs,
                100.0 * found.tokens as f64 / found.capacity.max(1) as f64,
                found.truncated,
                found.dropped
            ));
            lines.push(lengths(set, &self.sets[set]));
            lines.extend(list(set, &plan.left_out()));
        }
        Ok(lines)
    }

    fn preview(&mut self, set: &str, count: u64) -> Result<Vec<(String, Row)>, TrainError> {
        let plan = self.loader.plan(set, 0)?;
        let pairs = (0..plan.items().min(count)).map(|number| (number, plan.item(number)));
        let rows = pairs.flat_map(|(number, pair)| {
            let name = |side: &str| format!("{set}, pair {number}, {side}");
            [(name("chosen"), pair.chosen), (name("rejected"), pair.rejected)]
        });
        Ok(rows.collect())
    }

    fn begin(&mut self, session: &Session, monitor: &mut dyn Monitor) -> Result<(), TrainError> {
        let model_hash = session.hash_initial_model()?;
        let mut work = ReferenceWork { session, monitor, model_hash, model: None };
        let train = self.sets.keys().map(|set| (false, set.clone()));
        let names: Vec<_> =
            train.chain(self.validation.keys().map(|set| (true, set.clone()))).collect();
        for (held_out, set) in &names {
            self.prepare((*held_out, set), &mut work)?;
        }
        Ok(())
    }

    fn lesson(
        &mut self,
        model: &LanguageModel,
        draw: Draw,
        desk: Desk,
    ) -> Result<Lesson, TrainError> {
        let share = desk.ranks.share(draw.batch);
        let (pairs, next) =
            self.loader.share(draw.phase, draw.mix, draw.position, draw.batch, share)?;
        let batches = self.batches(false, &pairs, draw.micro_batch, desk.device);
        let interrupted = || desk.interrupted();
        let sum = Accumulated::over(model, &self.objective, &batches, desk.device, &interrupted);
        let places: Vec<Place> = pairs.into_iter().flat_map(|pair| pair.chosen.documents).collect();
        let sum = desk.unless_stopped(sum)?.with_others(desk.ranks);
        Ok(Lesson { sum, next, places })
    }

    fn evaluate(
        &mut self,
        model: &LanguageModel,
        desk: Desk,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError> {
        let one = |set: &String| Ok((set.clone(), self.evaluate_set(model, set, desk)?));
        self.validation.keys().map(one).collect()
    }

    /// Policy and reference are equal, so every margin is 0.
    fn first_loss(&self) -> Option<f32> {
        Some(std::f32::consts::LN_2)
    }
}
