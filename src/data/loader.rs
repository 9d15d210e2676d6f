//! The rows of a run, one after the other: which set each comes from, and which row of it.
//!
//! A fold without memory: the same [`Position`] gives the same rows and the same next position.
//! Rows of a set are the epochs of `plan`, one after the other; batches are made in `train`.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::cache::TokenCache;
use super::error::DataError;
use super::packing::LongRows;
use super::plan::EpochPlan;
use crate::random;

/// What decides the rows of a run besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderSettings {
    /// The seed of the run.
    pub seed: u64,
    /// Inputs of a row.
    pub seq_len: usize,
    /// What happens to documents longer than that.
    pub policy: LongRows,
}

/// How often each set is drawn, in proportion. The order of the sets does not matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Names and weights; the weights need no particular sum.
    pub sets: Vec<(String, f64)>,
}

/// How far a run has read; part of every checkpoint. It counts rows, never steps or batches, so
/// the batch size may change without changing the sequence of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// For each phase the rows taken in it.
    pub phase_rows: Vec<u64>,
    /// For each set how far it was read, in all phases together.
    pub sets: BTreeMap<String, Cursor>,
}

/// How far a set was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of it that were taken.
    pub row: u64,
}

/// An epoch of a set: items in an order, each readable on its own.
pub trait Epoch {
    /// What a step trains on: a row, or a pair of them.
    type Item;

    /// Orders the documents of `set` for its epoch of that number.
    fn plan(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self;

    /// How many items there are.
    fn items(&self) -> u64;

    /// Item `number`, from 0.
    ///
    /// # Panics
    /// When there are not so many.
    fn item(&self, number: u64) -> Self::Item;

    /// Of how many documents how many were too short, and how many dropped.
    fn why_empty(&self) -> (u64, u64, u64);
}

/// Gives out rows, or pairs of them. What it keeps are the plans of the epochs it is in, so that
/// they are made once.
#[derive(Debug)]
pub struct Loader<E = EpochPlan> {
    sets: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    plans: BTreeMap<String, (u64, E)>,
}

impl<E: Epoch> Loader<E> {
    /// A loader over named sets.
    pub fn new(sets: BTreeMap<String, TokenCache>, settings: LoaderSettings) -> Self {
        Self { sets, settings, plans: BTreeMap::new() }
    }

    /// The next `count` rows of `phase`, and the position behind them.
    ///
    /// The set of row n of a phase is a draw keyed by (seed, phase, n). The row within the set
    /// continues where the phases before stopped: no row comes twice before the epoch of its set
    /// ends, and the next epoch is in another order.
    pub fn rows(
        &mut self,
        phase: usize,
        mix: &Mix,
        position: &Position,
        count: usize,
    ) -> Result<(Vec<E::Item>, Position), DataError> {
        self.share(phase, mix, position, count, 0..count)
    }

    /// As [`Loader::rows`], but only those of the `count` rows whose number lies in `share`.
    pub fn share(
        &mut self,
        phase: usize,
        mix: &Mix,
        position: &Position,
        count: usize,
        share: Range<usize>,
    ) -> Result<(Vec<E::Item>, Position), DataError> {
        let lottery = Lottery::new(mix, &self.sets)?;
        let mut position = position.clone();
        let mut rows = Vec::with_capacity(share.len());
        for at in 0..count {
            let number = position.take_from(phase);
            let set = lottery.draw(self.settings.seed, phase, number);
            let cursor = position.sets.entry(set.to_owned()).or_default();
            let row = self.advance(set, cursor)?;
            if share.contains(&at) {
                rows.push(self.plan(set, cursor.epoch)?.item(row));
            }
        }
        Ok((rows, position))
    }

    /// The plan of an epoch of a set: for its number of rows and the statistics of packing.
    pub fn plan(&mut self, set: &str, epoch: u64) -> Result<&E, DataError> {
        if self.plans.get(set).is_none_or(|(planned, _)| *planned != epoch) {
            let cache = self.sets.get(set).ok_or_else(|| unknown(set, &self.sets))?;
            let plan = E::plan(cache, self.settings, set, epoch);
            self.plans.insert(set.to_owned(), (epoch, plan));
        }
        Ok(&self.plans[set].1)
    }

    /// Moves a cursor on by a row and gives the number of the row.
    fn advance(&mut self, set: &str, cursor: &mut Cursor) -> Result<u64, DataError> {
        if cursor.row >= self.plan(set, cursor.epoch)?.items() {
            *cursor = Cursor { epoch: cursor.epoch + 1, row: 0 };
        }
        let seq_len = self.settings.seq_len;
        let plan = self.plan(set, cursor.epoch)?;
        if plan.items() == 0 {
            return Err(no_rows(set, seq_len, plan.why_empty()));
        }
        cursor.row += 1;
        Ok(cursor.row - 1)
    }
}

impl Position {
    /// Counts one more row in a phase and gives its number, from 0.
    fn take_from(&mut self, phase: usize) -> u64 {
        if self.phase_rows.len() <= phase {
            self.phase_rows.resize(phase + 1, 0);
        }
        self.phase_rows[phase] += 1;
        self.phase_rows[phase] - 1
    }
}

/// A checked mix: names in alphabetical order, each with the sum of the weights up to it.
struct Lottery<'a> {
    tickets: Vec<(&'a str, f64)>,
    total: f64,
}

impl<'a> Lottery<'a> {
    fn new(mix: &'a Mix, sets: &BTreeMap<String, TokenCache>) -> Result<Self, DataError> {
        let mut weights: Vec<(&str, f64)> = Vec::with_capacity(mix.sets.len());
        for (set, weight) in &mix.sets {
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
            Ok(Self { tickets: weights, total })
        }
    }

    fn draw(&self, seed: u64, phase: usize, number: u64) -> &'a str {
        let draw = random::keyed(seed, "mix", phase as u64, number).next_u64();
        let target = (draw >> 11) as f64 / (1_u64 << 53) as f64 * self.total;
        let winner = self.tickets.iter().find(|(_, sum)| target < *sum);
        // Rounding can put the target onto the last sum.
        winner.or(self.tickets.last()).expect("a lottery has tickets").0
    }
}

fn unknown(set: &str, sets: &BTreeMap<String, TokenCache>) -> DataError {
    let known = sets.keys().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    DataError::UnknownSet { set: set.to_owned(), known }
}

fn no_rows(set: &str, seq_len: usize, why: (u64, u64, u64)) -> DataError {
    let (documents, too_short, dropped) = why;
    DataError::NoRows { set: set.to_owned(), seq_len, documents, too_short, dropped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::row::Row;
    use crate::data::sample::cache_of;
    use proptest::prelude::*;

    /// Two sets of documents of 1 to 9 tokens: `a` has ids from 0, `b` from 10000.
    fn sets() -> BTreeMap<String, TokenCache> {
        let documents = |first: u32, count: u32| -> Vec<Vec<u32>> {
            let document = |n| (0..=(n * 7 % 9)).map(|at| first + n * 20 + at).collect();
            (0..count).map(document).collect()
        };
        let (a, b) = (cache_of(&documents(0, 30)), cache_of(&documents(10_000, 13)));
        BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)])
    }

    fn loader(policy: LongRows) -> Loader {
        Loader::new(sets(), LoaderSettings { seed: 5, seq_len: 6, policy })
    }

    fn mix(a: f64, b: f64) -> Mix {
        Mix { sets: vec![("a".to_owned(), a), ("b".to_owned(), b)] }
    }

    fn of_b(row: &Row) -> bool {
        row.tokens[0] >= 10_000
    }

    #[test]
    fn the_mix_decides_how_often_a_set_is_drawn() {
        let (rows, position) =
            loader(LongRows::Split).rows(0, &mix(3.0, 1.0), &Position::default(), 2000).unwrap();
        let share = rows.iter().filter(|row| of_b(row)).count() as f64 / 2000.0;
        assert!((share - 0.25).abs() < 0.05, "five standard deviations: {share}");
        assert_eq!(position.phase_rows, [2000]);
        let only = loader(LongRows::Split).rows(0, &mix(0.0, 0.1), &Position::default(), 100);
        assert!(only.unwrap().0.iter().all(of_b));
    }

    #[test]
    fn the_order_of_the_sets_in_a_mix_does_not_matter() {
        let mut reversed = mix(0.3, 0.7);
        reversed.sets.reverse();
        let take =
            |mix: &Mix| loader(LongRows::Drop).rows(1, mix, &Position::default(), 50).unwrap();
        assert_eq!(take(&mix(0.3, 0.7)), take(&reversed));
    }

    #[test]
    fn phases_continue_the_sets_and_draw_on_their_own() {
        let mut loader = loader(LongRows::Split);
        let only = mix(1.0, 0.0);
        let (first, position) = loader.rows(0, &only, &Position::default(), 4).unwrap();
        let (second, position) = loader.rows(1, &only, &position, 4).unwrap();
        let (both, _) = loader.rows(0, &only, &Position::default(), 8).unwrap();
        assert_eq!([first, second].concat(), both);
        assert_eq!(position.phase_rows, [4, 4]);
        assert_eq!(position.sets["a"], Cursor { epoch: 0, row: 8 });
    }

    #[test]
    fn no_row_repeats_before_the_epoch_ends_and_the_next_is_in_another_order() {
        let mut loader = loader(LongRows::Split);
        let rows = loader.plan("a", 0).unwrap().rows() as usize;
        let (both, position) =
            loader.rows(0, &mix(1.0, 0.0), &Position::default(), 2 * rows).unwrap();
        assert_eq!(position.sets["a"], Cursor { epoch: 1, row: rows as u64 });
        let pairs = |rows: &[Row]| {
            let pair = |row: &Row| row.tokens.iter().copied().zip(row.targets.clone()).collect();
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
            let error = loader(LongRows::Split).rows(0, &Mix { sets }, &Position::default(), 1);
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
        let settings = LoaderSettings { seed: 1, seq_len: 4, policy: LongRows::Drop };
        let mix = Mix { sets: vec![("a".to_owned(), 1.0)] };
        let error = Loader::<EpochPlan>::new(sets, settings)
            .rows(0, &mix, &Position::default(), 1)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "[data] \"a\": no rows of 4 tokens; expected a document that fits, got 2 documents of \
             which 1 are too short and 1 too long"
        );
    }

    #[test]
    fn the_sequence_of_rows_is_frozen() {
        let (rows, _) =
            loader(LongRows::Split).rows(0, &mix(0.5, 0.5), &Position::default(), 5).unwrap();
        let firsts: Vec<i32> = rows.iter().map(|row| row.tokens[0]).collect();
        assert_eq!(firsts, [140, 562, 100, 10_040, 106]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_of_any_size_join_to_the_same_rows_even_through_a_checkpoint(
            pieces in prop::collection::vec(0..40_usize, 1..6),
            policy in prop::sample::select(vec![LongRows::Split, LongRows::Truncate, LongRows::Drop]),
        ) {
            let (mix, total) = (mix(0.4, 0.6), pieces.iter().sum());
            let whole = loader(policy).rows(0, &mix, &Position::default(), total).unwrap();
            let (mut joined, mut position) = (Vec::new(), Position::default());
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
