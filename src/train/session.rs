//! Everything of a run that does not change from step to step: tokenizer, data, architecture,
//! schedule, device. Opened once, before the loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_format::ModelSpec;
use bitnet_format::folder::{ModelFolder, TOKENIZER_FILE};
use bitnet_text::Tokenizer;
use burn::tensor::Device;

use crate::data::world::{Split, Telling};
use crate::data::{
    self, CacheRequest, Loader, LoaderSettings, Mix, Source, TokenCache, world_documents,
};
use crate::model::LanguageModel;
use crate::monitor::Monitor;
use crate::platform::Signals;
use crate::recipe::{
    self, DataSource, FileSets, Length, ModelSource, Precision, Recipe, Schedule, Stage,
    TokenizerSource,
};
use crate::train::{AdamW, AdamWSettings, Reduction, StepSettings, TrainError};

/// A prepared run.
pub(crate) struct Session<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) spec: ModelSpec,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) fingerprint: String,
    pub(crate) mixes: Vec<Mix>,
    pub(crate) validation: BTreeMap<String, TokenCache>,
    pub(crate) steps: u64,
    pub(crate) schedule: Schedule,
    pub(crate) device: Device,
    pub(crate) signals: &'a Signals,
}

impl<'a> Session<'a> {
    /// Opens everything a recipe names. `kept_tokenizer` is the one of a checkpoint to resume,
    /// which counts instead of training a new one.
    pub(crate) fn prepare(
        recipe: &'a Recipe,
        kept_tokenizer: Option<PathBuf>,
        signals: &'a Signals,
        monitor: &mut dyn Monitor,
    ) -> Result<(Self, Loader), TrainError> {
        let device = crate::device::open(&recipe.device)?;
        let tokenizer = open_tokenizer(recipe, kept_tokenizer, monitor)?;
        let spec = resolve_spec(recipe, &tokenizer)?;
        let mut caches = Caches { recipe, tokenizer: &tokenizer, signals, monitor };
        let sets = caches.open_all(training_sources(recipe)?)?;
        let validation = caches.open_all(validation_sources(recipe)?)?;
        let settings = LoaderSettings {
            seed: recipe.seed,
            seq_len: recipe.data.seq_len,
            policy: policy(recipe.data.long_rows),
        };
        let fingerprint = fingerprint(&sets);
        let names: Vec<String> = sets.keys().cloned().collect();
        let mut loader = Loader::new(sets, settings);
        let steps = total_steps(recipe, &mut loader, &names)?;
        let schedule = Schedule::new(recipe, steps)?;
        let mixes = recipe
            .phases
            .iter()
            .map(|phase| Mix { sets: phase.data.clone().into_iter().collect() })
            .collect();
        let session = Self {
            recipe,
            spec,
            tokenizer,
            fingerprint,
            mixes,
            validation,
            steps,
            schedule,
            device,
            signals,
        };
        Ok((session, loader))
    }

    /// The model of step 0.
    pub(crate) fn initial_model(&self) -> Result<LanguageModel, TrainError> {
        match &self.recipe.model {
            ModelSource::New { .. } => {
                Ok(LanguageModel::initial(&self.spec, self.recipe.seed, &self.device))
            }
            ModelSource::Init(path) => {
                let folder = ModelFolder::open(Path::new(path))?;
                Ok(LanguageModel::read(&folder, &self.device)?)
            }
        }
    }

    /// The optimizer of step 0.
    pub(crate) fn new_optimizer(&self) -> AdamW {
        let optimizer = &self.recipe.optimizer;
        let settings =
            AdamWSettings { beta1: optimizer.beta1, beta2: optimizer.beta2, eps: optimizer.eps };
        AdamW::for_model(&self.spec, settings, &self.device)
    }

    pub(crate) fn step_settings(&self) -> StepSettings {
        StepSettings {
            reduction: match self.recipe.loss.reduction {
                recipe::Reduction::Mean => Reduction::Mean,
                recipe::Reduction::Sum => Reduction::Sum,
            },
            grad_clip: self.recipe.optimizer.grad_clip,
        }
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.signals.stop().is_some()
    }
}

/// Refuses what a recipe may say and this version does not do, before anything is written.
pub(crate) fn refuse_unbuilt(recipe: &Recipe) -> Result<(), TrainError> {
    let train = &recipe.train;
    let hub = matches!(&recipe.model, ModelSource::Init(source) if source.starts_with("hf:"));
    let unbuilt = [
        ("stage", recipe.stage != Stage::Pretrain, "\"pretrain\""),
        ("train.precision", train.precision != Precision::F32, "\"f32\""),
        ("train.recompute", train.recompute, "false"),
        ("train.shard_optimizer", train.shard_optimizer, "false"),
        ("model.init", hub, "a local folder"),
    ];
    match unbuilt.into_iter().find(|(_, asked, _)| *asked) {
        None => Ok(()),
        Some((field, _, expected)) => {
            let what = format!("is not in this version yet; expected {expected}");
            Err(contradiction(recipe, field, what))
        }
    }
}

/// Builds token caches and reports their progress.
struct Caches<'a, 'm> {
    recipe: &'a Recipe,
    tokenizer: &'a Tokenizer,
    signals: &'a Signals,
    monitor: &'m mut dyn Monitor,
}

impl Caches<'_, '_> {
    fn open_all(
        &mut self,
        sources: BTreeMap<String, Source>,
    ) -> Result<BTreeMap<String, TokenCache>, TrainError> {
        sources
            .into_iter()
            .map(|(name, source)| Ok((name.clone(), self.open(&name, source)?)))
            .collect()
    }

    fn open(&mut self, name: &str, source: Source) -> Result<TokenCache, TrainError> {
        let monitor = std::cell::RefCell::new(&mut *self.monitor);
        let what = format!("tokenising {name}");
        let signals = self.signals;
        let cache = TokenCache::open_or_build(&CacheRequest {
            cache_dir: &self.recipe.data.cache.clone().unwrap_or_else(default_cache_dir),
            source: &source,
            tokenizer: self.tokenizer,
            interrupted: &|| signals.stop().is_some(),
            progress: &|done, total| monitor.borrow_mut().progress(&what, done, total),
        });
        cache.map_err(|error| match signals.stop() {
            Some(stop) => TrainError::Stopped(stop),
            None => error.into(),
        })
    }
}

/// Where tokenised text is kept unless the recipe says otherwise.
fn default_cache_dir() -> PathBuf {
    let home = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    home.unwrap_or_else(std::env::temp_dir).join("bitnet-train")
}

fn open_tokenizer(
    recipe: &Recipe,
    kept: Option<PathBuf>,
    monitor: &mut dyn Monitor,
) -> Result<Tokenizer, TrainError> {
    let path = match (&recipe.tokenizer, kept) {
        (TokenizerSource::Train { .. }, Some(kept)) => kept,
        (TokenizerSource::Train { vocab_size }, None) => {
            return train_tokenizer(recipe, *vocab_size, monitor);
        }
        (TokenizerSource::Path(path), _) => path.clone(),
        (TokenizerSource::FromInit, _) => match &recipe.model {
            ModelSource::Init(folder) => Path::new(folder).join(TOKENIZER_FILE),
            ModelSource::New { .. } => {
                let what = "is missing; expected path = \"…\" or train = { vocab_size = … }";
                return Err(contradiction(recipe, "tokenizer", what.to_owned()));
            }
        },
    };
    Ok(Tokenizer::from_file(&path)?)
}

fn train_tokenizer(
    recipe: &Recipe,
    vocab_size: usize,
    monitor: &mut dyn Monitor,
) -> Result<Tokenizer, TrainError> {
    monitor.message(&format!("training a tokenizer of {vocab_size} entries"));
    let mut texts = Vec::new();
    for source in training_sources(recipe)?.values() {
        for document in source.documents()? {
            texts.push(document?.text);
        }
    }
    let json = bitnet_text::train_bpe(texts.into_iter(), vocab_size)?;
    Ok(Tokenizer::from_bytes(Path::new(TOKENIZER_FILE), &json)?)
}

/// The architecture with what only the tokenizer knows filled in.
fn resolve_spec(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<ModelSpec, TrainError> {
    let spec = match &recipe.model {
        ModelSource::Init(path) => ModelFolder::open(Path::new(path))?.spec().clone(),
        ModelSource::New { spec: table } => {
            let mut spec = table
                .complete(tokenizer.vocab_size())
                .map_err(|what| contradiction(recipe, "model", what))?;
            if spec.bos_token_id.is_none() {
                spec.bos_token_id = tokenizer.bos();
            }
            if spec.eos_token_id.is_empty() {
                spec.eos_token_id = tokenizer.eos().into_iter().chain(tokenizer.eot()).collect();
            }
            spec
        }
    };
    if tokenizer.vocab_size() > spec.vocab_size {
        let what = format!(
            "is {}; expected at least the tokenizer's {}",
            spec.vocab_size,
            tokenizer.vocab_size()
        );
        return Err(contradiction(recipe, "model.vocab_size", what));
    }
    if recipe.data.seq_len > spec.max_position_embeddings {
        let what = format!(
            "is {}; expected at most the model's max_position_embeddings, {}",
            recipe.data.seq_len, spec.max_position_embeddings
        );
        return Err(contradiction(recipe, "data.seq_len", what));
    }
    Ok(spec)
}

fn training_sources(recipe: &Recipe) -> Result<BTreeMap<String, Source>, TrainError> {
    match &recipe.data.source {
        DataSource::Files { sets, .. } => file_sources(sets),
        DataSource::Generate(world) => {
            Ok(world_sources(recipe.seed, Split::Train, world.stories as u64))
        }
    }
}

fn validation_sources(recipe: &Recipe) -> Result<BTreeMap<String, Source>, TrainError> {
    match &recipe.data.source {
        DataSource::Files { validation, .. } => file_sources(validation),
        DataSource::Generate(world) => {
            Ok(world_sources(recipe.seed, Split::HeldOut, world.held_out as u64))
        }
    }
}

fn world_sources(seed: u64, split: Split, count: u64) -> BTreeMap<String, Source> {
    let [general, hq] = recipe::GENERATED;
    let source = |telling| world_documents(seed, split, telling, count);
    BTreeMap::from([
        (general.to_owned(), source(Telling::General)),
        (hq.to_owned(), source(Telling::Hq)),
    ])
}

fn file_sources(sets: &FileSets) -> Result<BTreeMap<String, Source>, TrainError> {
    let expand = |patterns: &[recipe::PathPattern]| -> Result<Source, TrainError> {
        let mut files = Vec::new();
        for pattern in patterns {
            files.extend(pattern.expand()?);
        }
        Ok(Source::Files(files))
    };
    sets.iter().map(|(name, patterns)| Ok((name.clone(), expand(patterns)?))).collect()
}

fn policy(long_rows: recipe::LongRows) -> data::LongRows {
    match long_rows {
        recipe::LongRows::Truncate => data::LongRows::Truncate,
        recipe::LongRows::Drop => data::LongRows::Drop,
        recipe::LongRows::Split => data::LongRows::Split,
    }
}

fn total_steps(recipe: &Recipe, loader: &mut Loader, sets: &[String]) -> Result<u64, TrainError> {
    let batch = recipe.train.batch as u64;
    Ok(match recipe.train.length {
        Length::Steps(steps) => steps,
        Length::Tokens(tokens) => tokens.div_ceil(batch * recipe.data.seq_len as u64).max(1),
        Length::Epochs(epochs) => {
            let mut rows = 0;
            for set in sets {
                rows += loader.plan(set, 0)?.rows();
            }
            (rows as f64 * epochs / batch as f64).ceil().max(1.0) as u64
        }
    })
}

/// Identifies the training text of all sets, the tokenizer left aside.
fn fingerprint(sets: &BTreeMap<String, TokenCache>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, cache) in sets {
        hasher.update(name.as_bytes());
        hasher.update(cache.fingerprint().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn contradiction(recipe: &Recipe, field: &'static str, what: String) -> TrainError {
    TrainError::Contradiction { path: recipe.path.clone(), field, what }
}
