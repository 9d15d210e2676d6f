//! What does not change from step to step: recipe, tokenizer, architecture, schedule, device, ranks.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use bitnet_eval::Benchmark;
use bitnet_format::adapter::{AdapterDescription, AdapterKind};
use bitnet_format::report::reading_warnings;
use bitnet_format::{ModelSpec, Shown, StoredModel, TensorEntry, model_hash_watched};
use bitnet_text::{ChatTemplate, Message, Role, Tokenizer};
use burn::tensor::Device;

use super::stage::evaluate::batch_of;
use super::step::adamw::{AdamW, AdamWSettings};
use super::step::during::UpdateDuring;
use super::step::guard::Limits;
use super::step::report::StepSettings;
use super::step::update::OptimizerStep;
use super::teacher::RunTeacher;
use crate::checkpoint::FolderParts;
use crate::data::{DataMixture, PackedSequence};
use crate::distributed::{Comm, KeyValue, any_stop};
use crate::error::TrainError;
use crate::estimate::RankWorkload;
use crate::latents::{LatentFormat, MatrixStorage, UpdateTime};
use crate::model::{LanguageModel, NewAdapter, WidthRatio, freeze};
use crate::monitor::{Monitor, Silent};
use crate::ops::{DrawPlace, Lambda, OpBackend};
use crate::platform::Signals;
use crate::recipe::{Guard, Optimizer, Precision, Recipe, Schedule, StageKind, StepRates};

/// An opened run.
pub(crate) struct RunContext<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) spec: ModelSpec,
    /// The folder of the initial weights; `None` draws them at random.
    pub(crate) init: Option<PathBuf>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: ChatTemplate,
    /// The `generation_config.json` of the initial model.
    pub(crate) generation: serde_json::Map<String, serde_json::Value>,
    pub(crate) fingerprint: String,
    /// Rows that new sub-norms are fitted to.
    pub(crate) first_rows: Vec<PackedSequence>,
    /// What each phase draws from.
    pub(crate) mixes: Vec<DataMixture>,
    pub(crate) steps: u64,
    pub(crate) schedule: Schedule,
    pub(crate) device: Device,
    /// How its operations are computed.
    pub(crate) backend: OpBackend,
    pub(crate) signals: &'a Signals,
    pub(crate) comm: &'a Comm,
    /// All parameters, in order: the tensor table, and the factors of an adapter.
    pub(crate) table: Vec<TensorEntry>,
    /// For each parameter whether it is not trained.
    pub(crate) frozen: Vec<bool>,
    /// What is trained in the model's place.
    pub(crate) adapter: Option<RunAdapter>,
    /// What is learned from, where that is a model.
    pub(crate) teacher: Option<RunTeacher>,
    /// Benchmarks with their rows, on rank 0.
    pub(crate) tasks: Option<Benchmark>,
    /// The hash of `init`, once it was asked for.
    pub(super) init_hash: OnceCell<String>,
    /// How this run makes a step: on the host, on a device, or with several ranks.
    pub(crate) stepper: Box<dyn OptimizerStep>,
}

/// The adapter of a run.
pub(crate) struct RunAdapter {
    pub(crate) description: AdapterDescription,
    /// The matrices that it changes.
    pub(crate) adapted: Vec<TensorEntry>,
    /// The model of step 0; its latents are those of every other.
    initial: OnceCell<LanguageModel>,
}

impl RunAdapter {
    pub(crate) fn new(description: AdapterDescription, adapted: Vec<TensorEntry>) -> Self {
        Self { description, adapted, initial: OnceCell::new() }
    }
}

/// Where a pass over a model is computed, with whom, and who may interrupt it.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a> {
    pub(crate) device: &'a Device,
    pub(crate) comm: &'a Comm,
    pub(crate) signals: &'a Signals,
}

impl StepContext<'_> {
    pub(crate) fn interrupted(self) -> bool {
        self.signals.stop().is_some()
    }

    /// This rank's result, unless any rank was interrupted; `own` is `None` where this rank was. A
    /// step that one rank did not finish is finished by none.
    pub(crate) fn finish<T>(self, own: Option<T>) -> Result<T, TrainError> {
        let stop = if own.is_none() { self.signals.stop() } else { None };
        match (any_stop(self.comm, stop), own) {
            (None, Some(result)) => Ok(result),
            (stop, _) => Err(TrainError::Stopped(stop.expect("only a signal interrupts"))),
        }
    }
}

impl RunContext<'_> {
    /// What must be equal on all ranks once everything is open.
    pub(crate) fn key_values(&self) -> Vec<KeyValue> {
        let pair = |key: &str, value: String| (key.to_owned(), value);
        vec![
            pair("fingerprint of the training data", self.fingerprint.clone()),
            pair("hash of the tokenizer", self.tokenizer_hash()),
            pair("chat template", self.chat.identity()),
            pair("shape of the model", format!("{:?}", self.spec)),
            pair("hash of the model under the adapter", format!("{:?}", self.base_hash())),
        ]
    }

    pub(crate) fn tokenizer_hash(&self) -> String {
        blake3::hash(self.tokenizer.json()).to_hex().to_string()
    }

    /// The model of step 0.
    pub(crate) fn initial_model(
        &self,
        monitor: &mut dyn Monitor,
    ) -> Result<LanguageModel, TrainError> {
        let Some(init) = &self.init else {
            return Ok(self.blank_model());
        };
        if let Some(adapter) = &self.adapter {
            return self.initial_adapted(init, adapter, monitor);
        }
        let folder = StoredModel::open(init)?;
        let (storage, mut watch) = (self.storage(), reading(init, monitor));
        let read = LanguageModel::read_to_start;
        let start = read(&folder, &self.spec, &self.device, storage, &mut watch)?;
        drop(watch);
        for line in reading_warnings(&folder, &start.all_zero) {
            monitor.message(&line);
        }
        let (mut model, kept) = (start.model, start.kept_codes);
        if kept > 0 {
            monitor.message(&format!(
                "{}: {kept} matrices hold ternary values already; their codes and scales are kept",
                init.shown()
            ));
        }
        // A model that was made without sub-norms would start far from itself with gains of one.
        if self.spec.sub_norms && !folder.spec().sub_norms {
            model = self.with_sub_norms(model);
        }
        Ok(self.prepared(model))
    }

    /// `model` with gains of its new sub-norms that change its function least over the first rows.
    fn with_sub_norms(&self, model: LanguageModel) -> LanguageModel {
        let rows = batch_of(&self.first_rows);
        let is_filled = |row: &PackedSequence| {
            let filled = row.filled();
            (0..row.tokens.len()).map(move |at| at < filled)
        };
        let counted: Vec<bool> = self.first_rows.iter().flat_map(is_filled).collect();
        let device = model.device();
        model.with_fitted_sub_norms(rows.inputs(&device), &rows.documents, &counted)
    }

    /// The model of step 0 with an adapter that changes nothing yet. It is read once: all that ask for
    /// it share its latents.
    fn initial_adapted(
        &self,
        init: &Path,
        adapter: &RunAdapter,
        monitor: &mut dyn Monitor,
    ) -> Result<LanguageModel, TrainError> {
        if let Some(initial) = adapter.initial.get() {
            return Ok(initial.clone());
        }
        let RunAdapter { description, adapted, .. } = adapter;
        let AdapterDescription { kind, rank, .. } = *description;
        let (scale, seed) = (description.scale(), self.recipe.seed);
        let new = NewAdapter { adapted, kind, rank, scale, seed };
        let (folder, mut watch) = (StoredModel::open(init)?, reading(init, monitor));
        let model = LanguageModel::read_adapted(&folder, &self.device, new, &mut watch)?;
        Ok(adapter.initial.get_or_init(|| self.prepared(model)).clone())
    }

    /// A model of this run's shape with random weights.
    pub(crate) fn blank_model(&self) -> LanguageModel {
        let (seed, storage) = (self.recipe.seed, self.storage());
        let model = LanguageModel::initial_with(&self.spec, seed, &self.device, storage);
        self.prepared(self.width().with_output_gain(model))
    }

    /// How this run keeps the matrices of a model without an adapter.
    pub(crate) fn storage(&self) -> MatrixStorage<'_> {
        let storage = self.recipe.lean().storage(&self.frozen);
        // The other ranks of a run that is resumed get rank 0's matrices, and need memory to put them.
        MatrixStorage { mapped: self.comm.world_size() == 1, ..storage }
    }

    /// What the width of this run's model asks of initial values and rates.
    fn width(&self) -> WidthRatio {
        self.recipe.parametrisation.ratio(self.spec.hidden_size)
    }

    /// `model`, set to compute as the recipe says.
    pub(crate) fn prepared(&self, model: LanguageModel) -> LanguageModel {
        let model = freeze(model, &self.frozen);
        model.with_backend(self.backend).with_activations(self.recipe.train.activations())
    }

    /// The share of what is quantised in the ternary layers of a step.
    pub(crate) fn lambda(&self, step: u64) -> Lambda {
        let warmup = self.recipe.ternary_warmup;
        warmup.map_or(Lambda::ONE, |warmup| Lambda::new(warmup.lambda(step, self.steps)))
    }

    /// `model`, set to make an optimizer step: with that step's random bits and blend.
    pub(crate) fn at_step(&self, model: LanguageModel, step: u64) -> LanguageModel {
        // A draw is a function of seed, step, rank and place: a resumed step draws the bits that it
        // would have drawn, and no state of a generator has to be saved.
        let (seed, rank) = (self.recipe.seed, self.comm.rank() as u64);
        let backend = model.backend().drawing(|place| DrawPlace { seed, step, rank, ..place });
        model.with_backend(backend.blending(self.lambda(step)))
    }

    /// Identifies the model that `model.init` names; its files are read once.
    pub(crate) fn hash_init(&self) -> Result<Option<String>, TrainError> {
        self.hash_init_with_progress(&mut Silent)
    }

    /// The same, with its progress shown by `monitor`.
    pub(super) fn hash_init_with_progress(
        &self,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<String>, TrainError> {
        if let Some(adapter) = &self.adapter {
            return Ok(adapter.description.base_hash.clone());
        }
        let Some(init) = &self.init else { return Ok(None) };
        if let Some(hash) = self.init_hash.get() {
            return Ok(Some(hash.clone()));
        }
        let hash = hash_model(init, monitor)?;
        Ok(Some(self.init_hash.get_or_init(|| hash).clone()))
    }

    /// Identifies the model of step 0 and how it is computed.
    pub(crate) fn hash_initial_model(&self) -> Result<String, TrainError> {
        let recipe = self.recipe;
        // Random weights have no file to hash: what they follow from identifies them.
        let Some(hash) = self.hash_init()? else {
            return Ok(format!("seed {} {}", recipe.seed, recipe.resolved_toml()));
        };
        let hash = match recipe.train.precision {
            Precision::F32 => hash,
            Precision::Bf16 => format!("{hash} bf16"),
            Precision::Int8 => format!("{hash} int8"),
        };
        // Latents in fewer bits are other weights.
        Ok(match recipe.train.latents {
            LatentFormat::F32 => hash,
            format => format!("{hash} {format:?}"),
        })
    }

    /// The teacher's model, to compute as the run does, outside of any graph.
    pub(crate) fn read_teacher(
        &self,
        teacher: &RunTeacher,
        monitor: &mut dyn Monitor,
    ) -> Result<LanguageModel, TrainError> {
        let (folder, device) = (StoredModel::open(&teacher.path)?, self.device.clone().inner());
        let mut watch = reading(&teacher.path, monitor);
        let model = LanguageModel::read_frozen(&folder, &device, &mut watch)?;
        Ok(model.with_backend(self.backend))
    }

    /// The work of the rank with the largest share.
    pub(crate) fn workload(&self) -> RankWorkload {
        let teacher = self.teacher.as_ref().map(|teacher| &teacher.spec);
        RankWorkload::of(self.recipe, self.comm.world_size()).taught(self.recipe, teacher)
    }

    /// The optimizer of step 0.
    pub(crate) fn new_optimizer(&self) -> AdamW {
        let optimizer = &self.recipe.optimizer;
        let Optimizer { beta1, beta2, eps, muon, .. } = *optimizer;
        let width = self.width();
        let settings = AdamWSettings { beta1, beta2, eps, muon, width };
        self.stepper.new_optimizer(&self.table, settings, &self.device)
    }

    /// The context of a pass on `device`.
    pub(crate) fn step_context<'b>(&'b self, device: &'b Device) -> StepContext<'b> {
        StepContext { device, comm: self.comm, signals: self.signals }
    }

    pub(crate) fn step_settings(&self, limits: Limits) -> StepSettings {
        StepSettings {
            reduction: self.recipe.loss.reduction,
            grad_clip: self.recipe.optimizer.grad_clip,
            limits,
        }
    }

    /// What updates parameters during the backward pass, in a run that does.
    pub(crate) fn updates_during<'b>(
        &self,
        optimizer: &'b mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> Option<UpdateDuring<'b>> {
        let during = self.recipe.train.update == UpdateTime::During;
        during.then(|| UpdateDuring::new(optimizer, settings, rates))
    }

    /// The hash of the model that an adapter changes.
    fn base_hash(&self) -> Option<&str> {
        self.adapter.as_ref().and_then(|one| one.description.base_hash.as_deref())
    }

    /// Whether it trains a side adapter, beside codes that never change.
    pub(crate) fn is_beside_codes(&self) -> bool {
        self.adapter.as_ref().is_some_and(|one| one.description.kind == AdapterKind::Side)
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.recipe.guard
    }

    /// What a model folder of this run holds beside the tensors.
    pub(crate) fn folder_parts(&self) -> FolderParts<'_> {
        FolderParts {
            spec: &self.spec,
            tokenizer: Some(&self.tokenizer),
            chat: Some(&self.chat),
            generation: Some(&self.generation),
            adapter: self.adapter.as_ref().map(|one| (&one.description, &*one.adapted)),
        }
    }

    /// The tokens to generate from: a text to continue, or a user's message to answer.
    pub(crate) fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>, TrainError> {
        if self.recipe.stage == StageKind::Pretrain {
            let body = self.tokenizer.encode(prompt)?;
            return Ok(self.tokenizer.first().into_iter().chain(body).collect());
        }
        let conversation = vec![Message::new(Role::User, prompt)].into();
        Ok(self.chat.prompt(&self.tokenizer, &conversation)?)
    }
}

/// Models with fewer parameters are read before a line about it could be.
const WORTH_A_LINE: usize = 100_000_000;

/// Bytes of a model that is hashed in a fraction of a second.
const HASH_WORTH_A_LINE: u64 = 500_000_000;

/// What reports how much of a model has been read.
pub(crate) fn reading<'a>(
    folder: &Path,
    monitor: &'a mut dyn Monitor,
) -> impl FnMut(usize, usize) + use<'a> {
    let what = format!("reading {}", folder.shown());
    move |done, all| {
        // Small models are read faster than a line could be.
        if all >= WORTH_A_LINE {
            monitor.progress(&what, done as u64, all as u64);
        }
    }
}

/// Identifies the model at `path`; a large one with lines about it.
pub(crate) fn hash_model(path: &Path, monitor: &mut dyn Monitor) -> Result<String, TrainError> {
    let what = format!("hashing {}", path.shown());
    let mut watch = |done, all| {
        if all >= HASH_WORTH_A_LINE {
            monitor.progress(&what, done, all);
        }
    };
    Ok(model_hash_watched(path, &StoredModel::open(path)?, &mut watch)?)
}

/// Where token caches and reference log-probabilities are kept.
pub(crate) fn cache_dir(recipe: &Recipe) -> PathBuf {
    let home = || {
        let xdg = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        xdg.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
    };
    let default = || home().unwrap_or_else(std::env::temp_dir).join("bitnet-train");
    recipe.data.cache.clone().unwrap_or_else(default)
}
