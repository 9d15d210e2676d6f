//! Which set the next item of a run comes from.

use std::collections::BTreeMap;

use rand::Rng;

use super::cache::TokenCache;
use super::error::DataError;
use crate::random;

/// The mixture of sets to draw from. The order of the sets does not matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataMixture {
    /// Names and weights. The weights are relative and need not sum to 1.
    pub sets: Vec<(String, f64)>,
    /// How often sets are read at most, by their names. A set that was read so often is drawn no
    /// more, and the others are drawn in its place, in proportion to their weights.
    pub max_epochs: BTreeMap<String, u64>,
}

/// A checked mixture: names in alphabetical order, each with the sum of the weights up to it.
pub(crate) struct WeightedSampler {
    cumulative: Vec<(String, f64)>,
    total: f64,
}

impl WeightedSampler {
    pub(crate) fn new(
        mixture: &DataMixture,
        sets: &BTreeMap<String, TokenCache>,
    ) -> Result<Self, DataError> {
        let mut weights: Vec<(String, f64)> = Vec::with_capacity(mixture.sets.len());
        for (set, weight) in &mixture.sets {
            if !sets.contains_key(set) {
                return Err(unknown(set, sets));
            }
            if !(weight.is_finite() && *weight >= 0.0) {
                return Err(DataError::Weight { set: set.clone(), got: *weight });
            }
            weights.push((set.clone(), *weight));
        }
        weights.retain(|(_, weight)| *weight > 0.0);
        // By name: the order in which a recipe lists its sets does not change the data of a run.
        weights.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut total = 0.0;
        for (_, weight) in &mut weights {
            total += *weight;
            *weight = total;
        }
        match (weights.is_empty(), mixture.max_epochs.is_empty()) {
            (false, _) => Ok(Self { cumulative: weights, total }),
            (true, true) => Err(DataError::NoWeight),
            (true, false) => {
                let sets: Vec<_> = mixture.max_epochs.keys().map(String::as_str).collect();
                Err(DataError::UsedUp { sets: sets.join(", ") })
            }
        }
    }

    pub(crate) fn draw(&self, seed: u64, phase: usize, number: u64) -> String {
        let draw = random::keyed(seed, "mix", phase as u64, number).next_u64();
        // The upper 53 bits, all that a double holds exactly.
        let target = (draw >> 11) as f64 / (1_u64 << 53) as f64 * self.total;
        let drawn = self.cumulative.iter().find(|(_, sum)| target < *sum);
        // Rounding can make the target equal to the last sum.
        drawn.or(self.cumulative.last()).expect("a mixture has a positive weight").0.clone()
    }
}

pub(crate) fn unknown(set: &str, sets: &BTreeMap<String, TokenCache>) -> DataError {
    let known = sets.keys().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    DataError::UnknownSet { set: set.to_owned(), known }
}
