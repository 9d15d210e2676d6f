//! The data loader: the items of a run, one after the other, drawn from a mixture of sets.
//!
//! The order is a pure function of (seed, phase, state): the same [`LoaderState`] gives the same
//! items and the same next state. A resumed run therefore sees exactly the items that the
//! uninterrupted run would have seen, and no generator state is saved.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::cache::TokenCache;
use super::epoch::{EpochPlan, LoaderSettings};
use super::error::DataError;
use super::packing::PackingStatistics;
use crate::random;

/// The mixture of sets to draw from. The order of the sets does not matter.
#[derive(Clone, Debug, PartialEq)]
pub struct DataMixture {
    /// Names and weights. The weights are relative and need not sum to 1.
    pub sets: Vec<(String, f64)>,
}

/// How far a run has read; part of every checkpoint. It counts items instead of steps or batches, so
/// that a change of the batch size does not change their order.
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
    sets: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    plans: BTreeMap<String, (u64, E)>,
}

impl<E: EpochPlan> Loader<E> {
    /// A loader over named sets.
    pub fn new(sets: BTreeMap<String, TokenCache>, settings: LoaderSettings) -> Self {
        Self { sets, settings, plans: BTreeMap::new() }
    }

    /// Those of the next `count` items of `phase` whose number is in `share`, and the state after all
    /// `count`.
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
        let sampler = WeightedSampler::new(mixture, &self.sets)?;
        self.sets.values().try_for_each(TokenCache::check_sizes)?;
        let mut state = state.clone();
        let mut items = Vec::with_capacity(share.len());
        for at in 0..count {
            let number = state.next_item(phase);
            let set = sampler.draw(self.settings.seed, phase, number);
            let position = state.sets.entry(set.to_owned()).or_default();
            let item = self.advance(set, position)?;
            if share.contains(&at) {
                items.push(self.plan(set, position.epoch)?.item(item));
            }
        }
        Ok((items, state))
    }

    /// The plan of an epoch of a set.
    pub fn plan(&mut self, set: &str, epoch: u64) -> Result<&E, DataError> {
        if self.plans.get(set).is_none_or(|(planned, _)| *planned != epoch) {
            let cache = self.sets.get(set).ok_or_else(|| unknown(set, &self.sets))?;
            let plan = E::new(cache, self.settings, set, epoch);
            self.plans.insert(set.to_owned(), (epoch, plan));
        }
        Ok(&self.plans[set].1)
    }

    /// Advances by one item and returns its number in the epoch.
    fn advance(&mut self, set: &str, position: &mut EpochPosition) -> Result<u64, DataError> {
        if position.row >= self.plan(set, position.epoch)?.items() {
            *position = EpochPosition { epoch: position.epoch + 1, row: 0 };
        }
        let seq_len = self.settings.seq_len;
        let plan = self.plan(set, position.epoch)?;
        if plan.items() == 0 {
            return Err(no_items(set, seq_len, plan.statistics()));
        }
        position.row += 1;
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

/// A checked mixture: names in alphabetical order, each with the sum of the weights up to it.
struct WeightedSampler<'a> {
    cumulative: Vec<(&'a str, f64)>,
    total: f64,
}

impl<'a> WeightedSampler<'a> {
    fn new(
        mixture: &'a DataMixture,
        sets: &BTreeMap<String, TokenCache>,
    ) -> Result<Self, DataError> {
        let mut weights: Vec<(&str, f64)> = Vec::with_capacity(mixture.sets.len());
        for (set, weight) in &mixture.sets {
            if !sets.contains_key(set) {
                return Err(unknown(set, sets));
            }
            if !(weight.is_finite() && *weight >= 0.0) {
                return Err(DataError::Weight { set: set.clone(), got: *weight });
            }
            weights.push((set, *weight));
        }
        weights.retain(|(_, weight)| *weight > 0.0);
        weights.sort_by_key(|(set, _)| *set);
        let mut total = 0.0;
        for (_, weight) in &mut weights {
            total += *weight;
            *weight = total;
        }
        if weights.is_empty() {
            Err(DataError::NoWeight)
        } else {
            Ok(Self { cumulative: weights, total })
        }
    }

    fn draw(&self, seed: u64, phase: usize, number: u64) -> &'a str {
        let draw = random::keyed(seed, "mix", phase as u64, number).next_u64();
        let target = (draw >> 11) as f64 / (1_u64 << 53) as f64 * self.total;
        let drawn = self.cumulative.iter().find(|(_, sum)| target < *sum);
        // Rounding can make the target equal to the last sum.
        drawn.or(self.cumulative.last()).expect("a mixture has a positive weight").0
    }
}

fn unknown(set: &str, sets: &BTreeMap<String, TokenCache>) -> DataError {
    let known = sets.keys().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    DataError::UnknownSet { set: set.to_owned(), known }
}

fn no_items(set: &str, seq_len: usize, statistics: PackingStatistics) -> DataError {
    let PackingStatistics { documents, too_short, dropped, untrained, .. } = statistics;
    let (set, dropped) = (set.to_owned(), dropped + untrained);
    DataError::NoRows { set, seq_len, documents, too_short, dropped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::cache_of;
    use crate::packing::LongDocuments;
    use crate::sequence::PackedSequence;
    use crate::sequence_plan::SequencePlan;
    use proptest::prelude::*;

    impl Loader<SequencePlan> {
        fn rows(
            &mut self,
            phase: usize,
            mixture: &DataMixture,
            state: &LoaderState,
            count: usize,
        ) -> Result<(Vec<PackedSequence>, LoaderState), DataError> {
            self.items(phase, mixture, state, count, 0..count)
        }
    }

    /// Two sets of documents of 1 to 9 tokens: `a` has ids from 0, `b` from 10000.
    fn sets() -> BTreeMap<String, TokenCache> {
        let documents = |first: u32, count: u32| -> Vec<Vec<u32>> {
            let document = |n| (0..=(n * 7 % 9)).map(|at| first + n * 20 + at).collect();
            (0..count).map(document).collect()
        };
        let (a, b) = (cache_of(&documents(0, 30)), cache_of(&documents(10_000, 13)));
        BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)])
    }

    fn loader(policy: LongDocuments) -> Loader<SequencePlan> {
        Loader::new(sets(), LoaderSettings { seed: 5, seq_len: 6, policy })
    }

    fn mix(a: f64, b: f64) -> DataMixture {
        DataMixture { sets: vec![("a".to_owned(), a), ("b".to_owned(), b)] }
    }

    fn of_b(row: &PackedSequence) -> bool {
        row.tokens[0] >= 10_000
    }

    #[test]
    fn the_mix_decides_how_often_a_set_is_drawn() {
        let (rows, position) = loader(LongDocuments::Split)
            .rows(0, &mix(3.0, 1.0), &LoaderState::default(), 2000)
            .unwrap();
        let share = rows.iter().filter(|row| of_b(row)).count() as f64 / 2000.0;
        assert!((share - 0.25).abs() < 0.05, "five standard deviations: {share}");
        assert_eq!(position.phase_rows, [2000]);
        let only =
            loader(LongDocuments::Split).rows(0, &mix(0.0, 0.1), &LoaderState::default(), 100);
        assert!(only.unwrap().0.iter().all(of_b));
    }

    #[test]
    fn the_order_of_the_sets_in_a_mix_does_not_matter() {
        let mut reversed = mix(0.3, 0.7);
        reversed.sets.reverse();
        let take = |mix: &DataMixture| {
            loader(LongDocuments::Drop).rows(1, mix, &LoaderState::default(), 50).unwrap()
        };
        assert_eq!(take(&mix(0.3, 0.7)), take(&reversed));
    }

    #[test]
    fn phases_continue_the_sets_and_draw_on_their_own() {
        let mut loader = loader(LongDocuments::Split);
        let only = mix(1.0, 0.0);
        let (first, position) = loader.rows(0, &only, &LoaderState::default(), 4).unwrap();
        let (second, position) = loader.rows(1, &only, &position, 4).unwrap();
        let (both, _) = loader.rows(0, &only, &LoaderState::default(), 8).unwrap();
        assert_eq!([first, second].concat(), both);
        assert_eq!(position.phase_rows, [4, 4]);
        assert_eq!(position.sets["a"], EpochPosition { epoch: 0, row: 8 });
    }

    #[test]
    fn no_row_repeats_before_the_epoch_ends_and_the_next_is_in_another_order() {
        let mut loader = loader(LongDocuments::Split);
        let rows = loader.plan("a", 0).unwrap().items() as usize;
        let (both, position) =
            loader.rows(0, &mix(1.0, 0.0), &LoaderState::default(), 2 * rows).unwrap();
        assert_eq!(position.sets["a"], EpochPosition { epoch: 1, row: rows as u64 });
        let pairs = |rows: &[PackedSequence]| {
            let pair = |row: &PackedSequence| {
                row.tokens.iter().copied().zip(row.targets.clone()).collect()
            };
            let mut pairs: Vec<(i32, i32)> = rows.iter().flat_map::<Vec<_>, _>(pair).collect();
            pairs.sort_unstable();
            pairs
        };
        assert_eq!(pairs(&both[..rows]), pairs(&both[rows..]));
        assert_ne!(both[..rows], both[rows..]);
    }

    #[test]
    fn a_mix_that_cannot_be_drawn_is_an_error() {
        let rows = |sets: Vec<(String, f64)>| {
            let error = loader(LongDocuments::Split).rows(
                0,
                &DataMixture { sets },
                &LoaderState::default(),
                1,
            );
            error.unwrap_err().to_string()
        };
        assert_eq!(
            rows(vec![("c".to_owned(), 1.0)]),
            "[data]: unknown set; expected one of \"a\", \"b\", got \"c\""
        );
        for weight in [-1.0, f64::NAN, f64::INFINITY] {
            let message = rows(vec![("a".to_owned(), weight)]);
            assert!(message.starts_with("[data] \"a\": bad weight;"), "{message}");
        }
        let nothing =
            "[data]: nothing to draw from; expected a set with a weight above 0, got none";
        assert_eq!(rows(vec![("a".to_owned(), 0.0)]), nothing);
        assert_eq!(rows(Vec::new()), nothing);
    }

    #[test]
    fn a_set_whose_documents_are_all_too_long_is_an_error_and_not_an_endless_loop() {
        let sets = BTreeMap::from([("a".to_owned(), cache_of(&[vec![1; 9], vec![1]]))]);
        let settings = LoaderSettings { seed: 1, seq_len: 4, policy: LongDocuments::Drop };
        let mix = DataMixture { sets: vec![("a".to_owned(), 1.0)] };
        let error = Loader::<SequencePlan>::new(sets, settings)
            .rows(0, &mix, &LoaderState::default(), 1)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "[data] \"a\": no rows of 4 tokens; expected a document that fits, got 2 documents of \
             which 1 are too short and 1 too long"
        );
    }

    #[test]
    fn the_sequence_of_rows_is_frozen() {
        let (rows, _) = loader(LongDocuments::Split)
            .rows(0, &mix(0.5, 0.5), &LoaderState::default(), 5)
            .unwrap();
        let firsts: Vec<i32> = rows.iter().map(|row| row.tokens[0]).collect();
        assert_eq!(firsts, [140, 562, 100, 10_040, 106]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_of_any_size_join_to_the_same_rows_even_through_a_checkpoint(
            pieces in prop::collection::vec(0..40_usize, 1..6),
            policy in prop::sample::select(vec![LongDocuments::Split, LongDocuments::Truncate, LongDocuments::Drop]),
        ) {
            let (mix, total) = (mix(0.4, 0.6), pieces.iter().sum());
            let whole = loader(policy).rows(0, &mix, &LoaderState::default(), total).unwrap();
            let (mut joined, mut position) = (Vec::new(), LoaderState::default());
            for count in pieces {
                let (rows, next) = loader(policy).rows(0, &mix, &position, count).unwrap();
                joined.extend(rows);
                let saved = serde_json::to_string(&next).unwrap();
                position = serde_json::from_str(&saved).unwrap();
            }
            prop_assert_eq!((joined, position), whole);
        }
    }
}
