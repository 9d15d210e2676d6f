//! The data loader: the items of a run, one after the other, drawn from a mixture of sets.
//!
//! The order is a pure function of (seed, phase, state): the same [`LoaderState`] gives the same
//! items and the same next state. A resumed run therefore sees exactly the items that the
//! uninterrupted run would have seen, and no generator state is saved.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::cache::TokenCache;
use super::epoch::{EpochPlan, LoaderSettings};
use super::error::DataError;
use super::mixture::{DataMixture, WeightedSampler};
use super::packing::PackingStatistics;
use super::plans::EpochPlans;

/// How far a run has read; part of every checkpoint. It counts items instead of steps or batches,
/// so that a change of the batch size does not change their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// The number of items taken in each phase.
    pub phase_rows: Vec<u64>,
    /// How far each set was read, over all phases.
    pub sets: BTreeMap<String, EpochPosition>,
}

/// How far a set was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochPosition {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The number of items of it that were taken.
    pub row: u64,
}

/// Draws items. It keeps the plan of the current epoch of each set, only to avoid making it again.
#[derive(Debug)]
pub struct Loader<E> {
    settings: LoaderSettings,
    plans: EpochPlans<E>,
}

impl<E: EpochPlan + Send + 'static> Loader<E> {
    /// A loader over named sets.
    pub fn new(sets: BTreeMap<String, TokenCache>, settings: LoaderSettings) -> Self {
        Self { settings, plans: EpochPlans::new(sets, settings) }
    }

    /// Of the next `count` items of `phase` the ones whose number is in `share`, and the state
    /// after all `count`.
    ///
    /// The set of item n of a phase is a random draw keyed by (seed, phase, n). Within a set, items
    /// continue where earlier phases stopped: no item repeats before the epoch of its set ends, and
    /// the next epoch has another order.
    pub fn items(
        &mut self,
        phase: usize,
        mixture: &DataMixture,
        state: &LoaderState,
        count: usize,
        share: Range<usize>,
    ) -> Result<(Vec<E::Item>, LoaderState), DataError> {
        // A set that was read as often as it may be leaves the mixture; the others keep their
        // proportions.
        let mut left = mixture.clone();
        for (set, _) in &mixture.sets {
            self.drop_used_up(&mut left, set, state.sets.get(set))?;
        }
        let mut sampler = WeightedSampler::new(&left, &self.plans.sets)?;
        self.plans.sets.values().try_for_each(TokenCache::check_sizes)?;
        let mut state = state.clone();
        let mut items = Vec::with_capacity(share.len());
        // All `count` items are counted on every rank, and only those in `share` are read: the next
        // state is the same everywhere without a message.
        for at in 0..count {
            // The draw is keyed by this number, so a resumed run draws the same sets.
            let number = state.next_item(phase);
            let set = sampler.draw(self.settings.seed, phase, number);
            let position = state.sets.entry(set.clone()).or_default();
            let item = self.advance(&set, position)?;
            if share.contains(&at) {
                items.push(self.plan(&set, position.epoch)?.item(item));
            }
            if self.drop_used_up(&mut left, &set, Some(position))? && at + 1 < count {
                sampler = WeightedSampler::new(&left, &self.plans.sets)?;
            }
        }
        Ok((items, state))
    }

    /// Takes a set out of a mixture once it was read as often as it may be.
    fn drop_used_up(
        &mut self,
        mixture: &mut DataMixture,
        set: &str,
        position: Option<&EpochPosition>,
    ) -> Result<bool, DataError> {
        let Some(&most) = mixture.max_epochs.get(set) else { return Ok(false) };
        let EpochPosition { epoch, row } = position.copied().unwrap_or_default();
        // The plan is asked only in the last epoch: making one takes a pass over all documents.
        let used_up = epoch >= most || epoch + 1 == most && row >= self.plan(set, epoch)?.items();
        if used_up {
            mixture.sets.retain(|(name, _)| name != set);
        }
        Ok(used_up)
    }

    /// The plan of an epoch of a set.
    pub fn plan(&mut self, set: &str, epoch: u64) -> Result<&E, DataError> {
        self.plans.of(set, epoch)
    }

    /// Advances by one item and returns its number in the epoch.
    fn advance(&mut self, set: &str, position: &mut EpochPosition) -> Result<u64, DataError> {
        if position.row >= self.plan(set, position.epoch)?.items() {
            // Here and not after the last item: the state then says that all of an epoch was read,
            // which `drop_used_up` asks.
            *position = EpochPosition { epoch: position.epoch + 1, row: 0 };
        }
        let seq_len = self.settings.seq_len;
        let plan = self.plan(set, position.epoch)?;
        if plan.items() == 0 {
            return Err(no_items(set, seq_len, plan.statistics()));
        }
        let half = plan.items() / 2;
        position.row += 1;
        // Halfway through an epoch there is time to make the plan of the next one.
        if position.row > half {
            self.plans.prepare(set, position.epoch + 1);
        }
        Ok(position.row - 1)
    }
}

impl LoaderState {
    /// Counts one more item in a phase and returns its number, from 0.
    fn next_item(&mut self, phase: usize) -> u64 {
        if self.phase_rows.len() <= phase {
            self.phase_rows.resize(phase + 1, 0);
        }
        self.phase_rows[phase] += 1;
        self.phase_rows[phase] - 1
    }
}

fn no_items(set: &str, seq_len: usize, statistics: PackingStatistics) -> DataError {
    let PackingStatistics { documents, too_short, dropped, untrained, .. } = statistics;
    let (set, dropped) = (set.to_owned(), dropped + untrained);
    DataError::NoRows { set, seq_len, documents, too_short, dropped }
}

#[cfg(test)]
mod tests;
