//! Where the text of a run comes from, by stage, and its token caches. `data` packs the rows.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bitnet_stories::{Split, StoryStyle};
use bitnet_text::{ChatTemplate, Tokenizer};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::super::context::cache_dir;
use crate::data::{
    CacheRequest, DocumentSource, Encoding, ReadingRules, SplitSide, TokenCache, TrainingTexts,
    generated_dialogues, generated_preferences, generated_stories,
};
use crate::data_files::DataCaller;
use crate::distributed::Hosts;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::{self, Signals};
use crate::recipe::{self, DataSource, FileSets, Recipe, StageKind};

/// How the documents of a stage are read.
pub(crate) fn encoding(stage: StageKind, chat: &ChatTemplate) -> Encoding {
    match stage {
        StageKind::Pretrain => Encoding::Text,
        StageKind::Sft => Encoding::Conversations(chat.clone()),
        StageKind::Dpo => Encoding::Preferences(chat.clone()),
    }
}

/// Named sets of documents to train on: those that a phase draws from.
pub(crate) fn training(
    recipe: &Recipe,
    caller: &mut DataCaller<'_>,
) -> Result<BTreeMap<String, DocumentSource>, TrainError> {
    let mut sources = match &recipe.data.source {
        DataSource::Files { sets, .. } => {
            files(sets, &recipe.data.reading, recipe::set_key, caller)?
        }
        DataSource::Generate(world) => generated(recipe, Split::Train, world.stories as u64),
    };
    sources.retain(|name, _| is_drawn(recipe, name));
    Ok(one_side(recipe, sources, false))
}

/// The rows that are held out of each set, or the others, where a share is held out.
fn one_side(
    recipe: &Recipe,
    sources: BTreeMap<String, DocumentSource>,
    held_out: bool,
) -> BTreeMap<String, DocumentSource> {
    let share = recipe.data.validation_share;
    let side = (share > 0.0).then_some(SplitSide { share, seed: recipe.seed, held_out });
    let select = |source: DocumentSource| source.selecting(|selection| selection.side = side);
    sources.into_iter().map(|(name, source)| (name, select(source))).collect()
}

fn is_drawn(recipe: &Recipe, set: &str) -> bool {
    recipe.phases.iter().any(|phase| phase.data.get(set).is_some_and(|&weight| weight > 0.0))
}

/// Named sets of documents to evaluate.
pub(crate) fn validation(
    recipe: &Recipe,
    caller: &mut DataCaller<'_>,
) -> Result<BTreeMap<String, DocumentSource>, TrainError> {
    match &recipe.data.source {
        DataSource::Files { sets, .. } if recipe.data.validation_share > 0.0 => {
            let mut sources = files(sets, &recipe.data.reading, recipe::set_key, caller)?;
            sources.retain(|name, _| is_drawn(recipe, name));
            let sources = one_side(recipe, sources, true).into_iter();
            Ok(sources.map(|(name, it)| (recipe::held_out_name(&name).to_owned(), it)).collect())
        }
        DataSource::Files { validation, .. } => {
            files(validation, &recipe.data.reading, recipe::validation_key, caller)
        }
        DataSource::Generate(world) => {
            let mut sources = generated(recipe, Split::HeldOut, world.held_out as u64);
            sources.retain(|name, _| is_drawn(recipe, name));
            Ok(sources)
        }
    }
}

fn generated(recipe: &Recipe, split: Split, count: u64) -> BTreeMap<String, DocumentSource> {
    let seed = recipe.seed;
    let sources = match recipe.stage {
        StageKind::Pretrain => vec![
            generated_stories(seed, split, StoryStyle::General, count),
            generated_stories(seed, split, StoryStyle::Hq, count),
            generated_stories(seed, split, StoryStyle::Plain, count),
        ],
        StageKind::Sft => vec![generated_dialogues(seed, split, count)],
        StageKind::Dpo => vec![generated_preferences(seed, split, count)],
    };
    let names = recipe::generated_sets(recipe.stage).iter().map(|name| (*name).to_owned());
    names.zip(sources).collect()
}

/// The files of each set; `key` gives the recipe's key of a set.
fn files(
    sets: &FileSets,
    rules: &ReadingRules,
    key: fn(&str) -> String,
    caller: &mut DataCaller<'_>,
) -> Result<BTreeMap<String, DocumentSource>, TrainError> {
    let mut sources = BTreeMap::new();
    for (name, set) in sets {
        let mut files = Vec::new();
        for pattern in &set.files {
            files.extend(caller.files(pattern, &key(name))?);
        }
        let rules = set.reading.as_ref().unwrap_or(rules).clone();
        sources.insert(name.clone(), DocumentSource::Files(files, rules));
    }
    Ok(sources)
}

/// Trains a tokenizer on the text of all sets.
pub(crate) fn trained_tokenizer(
    recipe: &Recipe,
    encoding: &Encoding,
    vocab_size: usize,
    caller: &mut DataCaller<'_>,
) -> Result<Vec<u8>, TrainError> {
    let sources: Vec<_> = training(recipe, caller)?.into_values().collect();
    let mut texts = TrainingTexts::new(&sources, encoding);
    let trained = bitnet_text::train_bpe(texts.by_ref(), vocab_size);
    texts.finish()?;
    Ok(trained?)
}

/// Builds token caches and reports their progress.
pub(crate) struct Caches<'a, 'm> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) encoding: &'a Encoding,
    pub(crate) signals: &'a Signals,
    pub(crate) monitor: &'m mut dyn Monitor,
    pub(crate) hosts: &'a Hosts,
    /// [`threads_of_all_ranks`]
    pub(crate) pool: Option<&'a ThreadPool>,
}

impl Caches<'_, '_> {
    pub(crate) fn caller(&mut self) -> DataCaller<'_> {
        DataCaller { signals: self.signals, monitor: &mut *self.monitor }
    }

    /// Opens the caches of all sets. Of the ranks of a machine one builds a cache, with the threads of all,
    /// and the others wait. Machines begin at different sets, so that each comes to sets that others have
    /// made where they share a disk.
    pub(crate) fn open_all(
        &mut self,
        sources: BTreeMap<String, DocumentSource>,
    ) -> Result<BTreeMap<String, TokenCache>, TrainError> {
        let (machine, machines) = self.hosts.machine();
        let mut sources: Vec<_> = sources.into_iter().collect();
        let first = first_set(sources.len(), machine, machines);
        sources.rotate_left(first);
        sources
            .into_iter()
            .map(|(name, source)| Ok((name.clone(), self.open(&name, source)?)))
            .collect()
    }

    fn open(&mut self, name: &str, source: DocumentSource) -> Result<TokenCache, TrainError> {
        let monitor = RefCell::new(&mut *self.monitor);
        let what = format!("tokenising {name}");
        let signals = self.signals;
        let cache = TokenCache::open_or_build(&CacheRequest {
            cache_dir: &cache_dir(self.recipe),
            source: &source,
            tokenizer: self.tokenizer,
            encoding: self.encoding,
            interrupted: &|| signals.stop().is_some(),
            progress: &|done, total| monitor.borrow_mut().progress(&what, done, total),
            pool: self.pool,
        });
        let cache = cache.map_err(|error| match signals.stop() {
            Some(stop) => TrainError::Stopped(stop),
            None => error.into(),
        })?;
        for line in cache.report().warnings() {
            self.monitor.message(&format!("{name}: {line}"));
        }
        Ok(cache)
    }
}

/// As many threads as the ranks of this machine have together, on the cores of all of them; `None` where
/// there is one rank.
pub(crate) fn threads_of_all_ranks(hosts: &Hosts) -> Result<Option<ThreadPool>, TrainError> {
    let ranks = hosts.local_world_size();
    if ranks == 1 {
        return Ok(None);
    }
    let cores = hosts.local_cores();
    // A launcher may have bound this rank to some cores, and its new threads with it.
    let pool = ThreadPoolBuilder::new()
        .num_threads(ranks * rayon::current_num_threads())
        .start_handler(move |_| platform::run_on(&cores))
        .build();
    Ok(Some(pool.map_err(std::io::Error::other)?))
}

/// The set whose cache a machine opens first.
fn first_set(sets: usize, machine: usize, machines: usize) -> usize {
    machine * sets / machines
}

/// Identifies the training text of all sets, the tokenizer left aside.
pub(crate) fn fingerprint(sets: &BTreeMap<String, TokenCache>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, cache) in sets {
        hasher.update(name.as_bytes());
        hasher.update(cache.fingerprint().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::{first_set, threads_of_all_ranks};
    use crate::distributed::{Comm, Hosts, in_threads};
    use crate::platform;

    #[test]
    fn one_process_tokenises_with_its_own_threads() {
        let hosts = Hosts::gather(&Comm::single(), platform::cores());
        assert!(threads_of_all_ranks(&hosts).unwrap().is_none());
    }

    #[test]
    fn ranks_that_wait_lend_their_threads_and_cores() {
        in_threads(2, |comm| {
            // As a launcher binds ranks: each to one of the cores there are.
            let all = platform::cores();
            let own = all.iter().copied().skip(comm.rank() % all.len().max(1)).take(1).collect();
            platform::run_on(&own);
            let hosts = Hosts::gather(&comm, platform::cores());
            let pool = threads_of_all_ranks(&hosts).unwrap().unwrap();
            assert_eq!(pool.current_num_threads(), 2 * rayon::current_num_threads());
            assert_eq!(pool.install(platform::cores), hosts.local_cores());
            assert!(hosts.local_cores().is_superset(&own));
        });
    }

    #[test]
    fn machines_share_the_sets_whose_caches_are_not_there() {
        let firsts = |sets, machines| -> Vec<_> {
            (0..machines).map(|machine| first_set(sets, machine, machines)).collect()
        };
        assert_eq!(firsts(5, 1), [0]);
        // With sets enough no two machines begin at the same.
        assert_eq!(firsts(4, 4), [0, 1, 2, 3]);
        assert_eq!(firsts(5, 2), [0, 2]);
        assert_eq!(firsts(2, 4), [0, 0, 1, 1]);
        assert_eq!(firsts(0, 3), [0, 0, 0]);
    }
}
