//! Where the text of a run comes from, by stage, and its token caches. `data` packs the rows.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bitnet_stories::{Split, StoryStyle};
use bitnet_text::{ChatTemplate, Tokenizer};

use super::super::context::cache_dir;
use crate::data::{
    CacheRequest, DocumentSource, Encoding, ReadingRules, SplitSide, TokenCache, TrainingTexts,
    generated_dialogues, generated_preferences, generated_stories,
};
use crate::data_files::DataCaller;
use crate::distributed::Comm;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::Signals;
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
    pub(crate) comm: &'a Comm,
}

impl Caches<'_, '_> {
    pub(crate) fn caller(&mut self) -> DataCaller<'_> {
        DataCaller { signals: self.signals, monitor: &mut *self.monitor }
    }

    /// Opens the caches of all sets. Ranks begin at different ones: of a set that two of them want
    /// one builds the cache and the other waits, so that each comes to sets that others have made.
    pub(crate) fn open_all(
        &mut self,
        sources: BTreeMap<String, DocumentSource>,
    ) -> Result<BTreeMap<String, TokenCache>, TrainError> {
        let first = first_set(sources.len(), self.comm.rank(), self.comm.world_size());
        let mut sources: Vec<_> = sources.into_iter().collect();
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

/// The set whose cache a rank opens first.
fn first_set(sets: usize, rank: usize, ranks: usize) -> usize {
    rank * sets / ranks
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
    use super::first_set;

    #[test]
    fn ranks_share_the_sets_whose_caches_are_not_there() {
        let firsts = |sets, ranks| -> Vec<_> {
            (0..ranks).map(|rank| first_set(sets, rank, ranks)).collect()
        };
        assert_eq!(firsts(5, 1), [0]);
        // With sets enough no two ranks begin at the same.
        assert_eq!(firsts(4, 4), [0, 1, 2, 3]);
        assert_eq!(firsts(5, 2), [0, 2]);
        assert_eq!(firsts(2, 4), [0, 0, 1, 1]);
        assert_eq!(firsts(0, 3), [0, 0, 0]);
    }
}
