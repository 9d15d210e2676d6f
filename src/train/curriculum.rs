//! What a stage brings to the loop: which items a step draws, what they are trained with, what is
//! evaluated. The loop itself (`training`) knows no stage. Rows of tokens (pretraining and
//! fine-tuning) are here, preference pairs in `pairs`.

use std::collections::BTreeMap;

use burn::tensor::Device;

use crate::data::{
    EpochPlan, Loader, LoaderSettings, Mix, Place, Position, Row, TokenCache, validation_rows,
};
use crate::device::runs_own_operations;
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor};
use crate::platform::Signals;
use crate::ranks::Ranks;
use crate::train::agreement::any_stop;
use crate::train::evaluate::{batch_of, dealt_out, likelihood};
use crate::train::session::Session;
use crate::train::{Accumulated, CrossEntropy, TrainError};

/// Which items a step draws.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'a> {
    pub(crate) phase: usize,
    pub(crate) mix: &'a Mix,
    pub(crate) position: &'a Position,
    pub(crate) batch: usize,
    pub(crate) micro_batch: usize,
}

/// Where it is computed, by whom, and who may cut it off.
#[derive(Clone, Copy)]
pub(crate) struct Desk<'a> {
    pub(crate) device: &'a Device,
    pub(crate) ranks: &'a Ranks,
    pub(crate) signals: &'a Signals,
}

impl Desk<'_> {
    pub(crate) fn interrupted(self) -> bool {
        self.signals.stop().is_some()
    }

    /// What this rank made, unless one of the ranks was interrupted; `None` where this one was.
    pub(crate) fn unless_stopped<T>(self, own: Option<T>) -> Result<T, TrainError> {
        let asked = if own.is_none() { self.signals.stop() } else { None };
        match (any_stop(self.ranks, asked), own) {
            (None, Some(made)) => Ok(made),
            (stop, _) => Err(TrainError::Stopped(stop.expect("only a signal interrupts"))),
        }
    }
}

/// This rank's share of a batch, which ran forward and backward.
pub(crate) struct Lesson {
    pub(crate) sum: Accumulated,
    /// The position behind it.
    pub(crate) next: Position,
    /// The documents it was made of.
    pub(crate) places: Vec<Place>,
}

/// The stage's part of a run.
pub(crate) trait Curriculum {
    /// Items of an epoch of a set.
    fn items(&mut self, set: &str) -> Result<u64, TrainError>;

    /// What became of the documents of each set, a line or more.
    fn describe(&mut self) -> Result<Vec<String>, TrainError>;

    /// The first items of a set as rows, each with a name.
    fn preview(&mut self, set: &str, count: u64) -> Result<Vec<(String, Row)>, TrainError>;

    /// What must be there before the first step of this process and takes long to make.
    fn begin(&mut self, session: &Session, monitor: &mut dyn Monitor) -> Result<(), TrainError>;

    /// Draws a batch and runs this rank's share of it; stopped on all ranks when one of them was
    /// interrupted.
    fn lesson(
        &mut self,
        model: &LanguageModel,
        draw: Draw,
        desk: Desk,
    ) -> Result<Lesson, TrainError>;

    /// Evaluates every held-out set with all ranks; stopped likewise. `model` is without autodiff.
    fn evaluate(
        &mut self,
        model: &LanguageModel,
        desk: Desk,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError>;

    /// The loss that the very first step of a run must have, if it is known.
    fn first_loss(&self) -> Option<f32> {
        None
    }
}

/// Rows of tokens and next-token cross-entropy.
pub(crate) struct Rows {
    loader: Loader<EpochPlan>,
    caches: BTreeMap<String, TokenCache>,
    validation: BTreeMap<String, TokenCache>,
    seq_len: usize,
}

impl Rows {
    pub(crate) fn new(
        sets: BTreeMap<String, TokenCache>,
        validation: BTreeMap<String, TokenCache>,
        settings: LoaderSettings,
    ) -> Self {
        let seq_len = settings.seq_len;
        Self { loader: Loader::new(sets.clone(), settings), caches: sets, validation, seq_len }
    }
}

impl Curriculum for Rows {
    fn items(&mut self, set: &str) -> Result<u64, TrainError> {
        Ok(self.loader.plan(set, 0)?.rows())
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
                self.seq_len,
                100.0 * packing.efficiency()
            ));
            let fates = [
                (packing.truncated, "cut to a row"),
                (packing.split, "split over rows"),
                (packing.dropped, "left out as too long"),
                (packing.too_short, "left out as too short"),
                (packing.untrained, "left out because no trained token fits in a row"),
            ];
            lines.push(lengths(set, &self.caches[set]));
            let fates = fates.iter().filter(|(count, _)| *count > 0);
            let fates: Vec<_> = fates.map(|(count, fate)| format!("{count} {fate}")).collect();
            if !fates.is_empty() {
                lines.push(format!("{set}: {}", fates.join(", ")));
            }
            lines.extend(list(set, &plan.left_out()));
        }
        Ok(lines)
    }

    fn preview(&mut self, set: &str, count: u64) -> Result<Vec<(String, Row)>, TrainError> {
        let plan = self.loader.plan(set, 0)?;
        let name = |row: u64| format!("{set}, row {row}");
        Ok((0..plan.rows().min(count)).map(|row| (name(row), plan.row(row))).collect())
    }

    fn begin(&mut self, _session: &Session, _monitor: &mut dyn Monitor) -> Result<(), TrainError> {
        Ok(())
    }

    fn lesson(
        &mut self,
        model: &LanguageModel,
        draw: Draw,
        desk: Desk,
    ) -> Result<Lesson, TrainError> {
        let share = desk.ranks.share(draw.batch);
        let (rows, next) =
            self.loader.share(draw.phase, draw.mix, draw.position, draw.batch, share)?;
        let part = |rows: &[Row]| part_size(rows.len(), desk.device);
        let parts = |rows: &[Row]| rows.chunks(part(rows)).map(batch_of).collect();
        let batches: Vec<_> = rows.chunks(draw.micro_batch).map(parts).collect();
        let sum =
            Accumulated::over(model, &CrossEntropy, &batches, desk.device, &|| desk.interrupted());
        let places = rows.into_iter().flat_map(|row| row.documents).collect();
        let sum = desk.unless_stopped(sum)?.with_others(desk.ranks);
        Ok(Lesson { sum, next, places })
    }

    fn evaluate(
        &mut self,
        model: &LanguageModel,
        desk: Desk,
    ) -> Result<BTreeMap<String, Evaluation>, TrainError> {
        let mut results = BTreeMap::new();
        for (name, cache) in &self.validation {
            let rows = validation_rows(cache, self.seq_len);
            let own = dealt_out(rows, desk.ranks);
            let own = likelihood(model, own, desk.device, &|| desk.interrupted());
            let all = desk.unless_stopped(own)?.of_all(desk.ranks);
            results.insert(name.clone(), all.evaluation());
        }
        Ok(results)
    }
}

/// How long the sequences of a set are.
pub(crate) fn lengths(set: &str, cache: &TokenCache) -> String {
    let mut lengths: Vec<u64> = (0..cache.documents()).map(|one| cache.length(one)).collect();
    lengths.sort_unstable();
    let at = |part: f64| lengths.get((lengths.len() as f64 * part) as usize).or(lengths.last());
    let [median, most, longest] = [0.5, 0.95, 1.0].map(|part| at(part).copied().unwrap_or(0));
    format!("{set}: lengths in tokens: half up to {median}, 95 % up to {most}, longest {longest}")
}

/// Rows, or pairs, of the parts into which a micro-batch is cut so that each thread has one. Small
/// models gain the most: their single operations are too small to be shared. A device that has its
/// own way of sharing gets all of it.
pub(crate) fn part_size(items: usize, device: &Device) -> usize {
    if !runs_own_operations(device) {
        return items.max(1);
    }
    items.div_ceil(rayon::current_num_threads()).max(1)
}

/// Documents that are listed by name; the rest is only counted.
const LISTED: usize = 10;

/// A line that names documents that were left out.
pub(crate) fn list(set: &str, places: &[Place]) -> Option<String> {
    let named: Vec<_> = places.iter().take(LISTED).map(ToString::to_string).collect();
    let more = places.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!places.is_empty()).then(|| format!("{set}: left out: {}{more}", named.join(" ")))
}
