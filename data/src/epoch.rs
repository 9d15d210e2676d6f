//! An epoch of a data set: what all kinds of epochs have in common.

use super::cache::TokenCache;
use super::document::SourceLocation;
use super::packing::{LongDocuments, PackingStatistics};

/// What decides the items of a run besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderSettings {
    /// The seed of the run.
    pub seed: u64,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// What happens to longer documents.
    pub policy: LongDocuments,
}

/// An epoch of a set: items in an order, each readable on its own. An item is what a step trains
/// on: a packed sequence or a preference pair.
///
/// An epoch is a pure function of the tokens of the set, the settings, the name of the set and the
/// number of the epoch.
pub trait EpochPlan {
    /// A packed sequence or a preference pair.
    type Item;

    /// Orders the documents of `set` for its epoch of that number.
    fn new(cache: &TokenCache, settings: LoaderSettings, set: &str, epoch: u64) -> Self;

    /// The number of items.
    fn items(&self) -> u64;

    /// Item `number`, from 0.
    ///
    /// # Panics
    /// If there are fewer items.
    fn item(&self, number: u64) -> Self::Item;

    /// What packing did to the documents.
    fn statistics(&self) -> PackingStatistics;

    /// The documents that no item contains: they are too long, or their trained tokens do not fit.
    fn left_out(&self) -> Vec<SourceLocation>;
}
