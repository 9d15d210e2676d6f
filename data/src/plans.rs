//! The plans of the epochs that are drawn from. That of the next epoch of a large set is made
//! meanwhile, so that no step waits for it.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};

use super::cache::TokenCache;
use super::epoch::{EpochPlan, LoaderSettings};
use super::error::DataError;
use super::mixture::unknown;

/// Documents from which a plan takes long enough to be made ahead.
const LARGE: usize = 1 << 16;

/// For each set the plan of one epoch, and what is being made for the next.
#[derive(Debug)]
pub(crate) struct EpochPlans<E> {
    pub(crate) sets: BTreeMap<String, TokenCache>,
    settings: LoaderSettings,
    current: BTreeMap<String, (u64, E)>,
    next: BTreeMap<String, (u64, JoinHandle<E>)>,
    /// Documents from which a set is large.
    pub(crate) large: usize,
}

impl<E: EpochPlan + Send + 'static> EpochPlans<E> {
    pub(crate) fn new(sets: BTreeMap<String, TokenCache>, settings: LoaderSettings) -> Self {
        let (current, next) = (BTreeMap::new(), BTreeMap::new());
        Self { sets, settings, current, next, large: LARGE }
    }

    /// The plan of an epoch of a set.
    pub(crate) fn of(&mut self, set: &str, epoch: u64) -> Result<&E, DataError> {
        if self.current.get(set).is_none_or(|(planned, _)| *planned != epoch) {
            let plan = match self.next.remove(set) {
                Some((planned, made)) if planned == epoch => {
                    // Waits where it is not ready: the plan is needed now, and it began half an
                    // epoch ago.
                    made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                _ => {
                    let cache = self.sets.get(set).ok_or_else(|| unknown(set, &self.sets))?;
                    E::new(cache, self.settings, set, epoch)
                }
            };
            self.current.insert(set.to_owned(), (epoch, plan));
        }
        Ok(&self.current[set].1)
    }

    /// Begins to make the plan of an epoch that will be asked for, if the set is large. Where no
    /// thread can be had it is made when it is needed.
    pub(crate) fn prepare(&mut self, set: &str, epoch: u64) {
        let Some(cache) = self.sets.get(set).filter(|cache| cache.documents() >= self.large) else {
            return;
        };
        if self.next.get(set).is_some_and(|(planned, _)| *planned == epoch) {
            return;
        }
        let (cache, settings, name) = (cache.clone(), self.settings, set.to_owned());
        // A clone of a cache shares its maps.
        let make = move || E::new(&cache, settings, &name, epoch);
        // A plan is a pure function, so it does not matter whether this thread or the loader makes
        // it.
        if let Ok(made) = thread::Builder::new().name("epoch".to_owned()).spawn(make) {
            self.next.insert(set.to_owned(), (epoch, made));
        }
    }
}
