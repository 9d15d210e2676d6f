//! Everything of a run that does not change from step to step: tokenizer, data, architecture,
//! schedule, device. Put together once, before the loop, of what `inputs` and `sources` open.

use std::path::PathBuf;

use bitnet_format::{ModelSpec, StoredModel, TensorEntry, tensor_table};
use bitnet_text::{ChatTemplate, Message, Speaker, Tokenizer};
use burn::tensor::Device;

use crate::data::{LoaderSettings, LongRows, Mix};
use crate::model::LanguageModel;
use crate::monitor::Monitor;
use crate::ops::Compute;
use crate::platform::Signals;
use crate::ranks::{Hosts, Ranks};
use crate::recipe::{self, Length, Precision, Recipe, Schedule, Stage};
use crate::train::agreement::Term;
use crate::train::curriculum::{Curriculum, Desk, Rows};
use crate::train::guard::Limits;
use crate::train::inputs::{
    TokenizerRequest, contradiction, init_folder, open_chat, open_device, resolve_spec,
};
use crate::train::pairs::Pairs;
use crate::train::sources::{self, Caches};
use crate::train::together::{Together, TogetherSettings};
use crate::train::{AdamW, AdamWSettings, Reduction, StepSettings, TrainError, reference};

/// A prepared run.
pub(crate) struct Session<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) spec: ModelSpec,
    /// The folder of the weights it starts from, if it does not start from new ones.
    init: Option<PathBuf>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat: ChatTemplate,
    pub(crate) fingerprint: String,
    pub(crate) mixes: Vec<Mix>,
    pub(crate) steps: u64,
    pub(crate) schedule: Schedule,
    pub(crate) device: Device,
    pub(crate) signals: &'a Signals,
    pub(crate) ranks: &'a Ranks,
    /// How several ranks make a step; `None` where there is one.
    pub(crate) together: Option<Together>,
}

/// Who trains, and what they know before anything is opened.
#[derive(Clone, Copy)]
pub(crate) struct Crew<'a> {
    pub(crate) signals: &'a Signals,
    pub(crate) ranks: &'a Ranks,
    /// The tokenizer of a checkpoint to resume, which counts instead of training a new one.
    pub(crate) kept_tokenizer: Option<&'a [u8]>,
}

impl<'a> Crew<'a> {
    /// Those who continue nothing.
    pub(crate) fn anew(signals: &'a Signals, ranks: &'a Ranks) -> Self {
        Self { signals, ranks, kept_tokenizer: None }
    }
}

impl<'a> Session<'a> {
    /// Opens everything a recipe names. No rank waits for another here.
    pub(crate) fn prepare(
        recipe: &'a Recipe,
        hosts: &Hosts,
        crew: Crew<'a>,
        monitor: &mut dyn Monitor,
    ) -> Result<(Self, Box<dyn Curriculum>), TrainError> {
        let Crew { signals, ranks, kept_tokenizer } = crew;
        let device = open_device(recipe, hosts, monitor)?;
        let init = init_folder(recipe, signals, monitor)?;
        let chat = open_chat(&recipe.chat)?;
        let encoding = sources::encoding(recipe.stage, &chat);
        let opening = TokenizerRequest { recipe, init: init.as_deref(), encoding: &encoding };
        let tokenizer = opening.open(kept_tokenizer, monitor)?;
        let spec = resolve_spec(recipe, init.as_deref(), &tokenizer)?;
        let encoding = &encoding;
        let mut caches = Caches { recipe, tokenizer: &tokenizer, encoding, signals, monitor };
        let sets = caches.open_all(sources::training(recipe)?)?;
        let validation = caches.open_all(sources::validation(recipe)?)?;
        let fingerprint = sources::fingerprint(&sets);
        let names: Vec<String> = sets.keys().cloned().collect();
        let settings = LoaderSettings {
            seed: recipe.seed,
            seq_len: recipe.data.seq_len,
            policy: policy(recipe.data.long_rows),
        };
        let (beta, pairs) = (recipe.dpo.beta, recipe.train.micro_batch);
        let mut curriculum: Box<dyn Curriculum> = match recipe.stage {
            Stage::Dpo => Box::new(Pairs::new(sets, validation, settings, beta, pairs)),
            Stage::Pretrain | Stage::Sft => Box::new(Rows::new(sets, validation, settings)),
        };
        let steps = total_steps(recipe, curriculum.as_mut(), &names)?;
        let schedule = Schedule::new(recipe, steps)?;
        let mix = |phase: &recipe::Phase| Mix { sets: phase.data.clone().into_iter().collect() };
        let mixes = recipe.phases.iter().map(mix).collect();
        let frozen = frozen(recipe, &spec);
        let how = TogetherSettings {
            sharded: recipe.train.shard_optimizer,
            wire: recipe.train.reduce_precision.wire(),
        };
        let together = Together::new(ranks, &spec, frozen, how);
        let session = Self {
            recipe,
            spec,
            init,
            tokenizer,
            chat,
            fingerprint,
            mixes,
            steps,
            schedule,
            device,
            signals,
            ranks,
            together,
        };
        session.check_frozen(monitor)?;
        Ok((session, curriculum))
    }

    /// What ranks must agree on once everything is open.
    pub(crate) fn terms(&self) -> Vec<Term> {
        let tokenizer = blake3::hash(self.tokenizer.json()).to_hex().to_string();
        let term = |name: &str, value: String| (name.to_owned(), value);
        vec![
            term("fingerprint of the training data", self.fingerprint.clone()),
            term("hash of the tokenizer", tokenizer),
            term("chat template", self.chat.identity()),
            term("shape of the model", format!("{:?}", self.spec)),
        ]
    }

    /// The model of step 0.
    pub(crate) fn initial_model(
        &self,
        monitor: &mut dyn Monitor,
    ) -> Result<LanguageModel, TrainError> {
        let Some(init) = &self.init else {
            let model = LanguageModel::initial(&self.spec, self.recipe.seed, &self.device);
            return Ok(self.prepared(model));
        };
        let folder = StoredModel::open(init)?;
        let (model, kept) = LanguageModel::read_for_training(&folder, &self.device)?;
        if kept > 0 {
            monitor.message(&format!(
                "{}: {kept} matrices hold ternary values already; their codes and scales are kept",
                init.display()
            ));
        }
        Ok(self.prepared(model))
    }

    /// A model as this run computes it.
    pub(crate) fn prepared(&self, model: LanguageModel) -> LanguageModel {
        let train = &self.recipe.train;
        model
            .computed_by(Compute::of(train.precision.operands()))
            .with_activations(train.activations())
    }

    /// Identifies the model of step 0 and how it is computed.
    pub(crate) fn hash_initial_model(&self) -> Result<String, TrainError> {
        let Some(init) = &self.init else {
            return Ok(format!("seed {} {}", self.recipe.seed, self.recipe.resolved_toml()));
        };
        let hash = reference::hash_model(init)?;
        Ok(match self.recipe.train.precision {
            Precision::F32 => hash,
            Precision::Bf16 => format!("{hash} bf16"),
        })
    }

    /// The optimizer of step 0.
    pub(crate) fn new_optimizer(&self) -> AdamW {
        let optimizer = &self.recipe.optimizer;
        let settings =
            AdamWSettings { beta1: optimizer.beta1, beta2: optimizer.beta2, eps: optimizer.eps };
        let together = self.together.as_ref();
        let own = together.and_then(|together| together.own_optimizer(settings, &self.device));
        own.unwrap_or_else(|| {
            let whole = AdamW::for_model(&self.spec, settings, &self.device);
            whole.with_frozen(frozen(self.recipe, &self.spec))
        })
    }

    /// Where this run computes on `device`.
    pub(crate) fn desk<'b>(&'b self, device: &'b Device) -> Desk<'b> {
        Desk { device, ranks: self.ranks, signals: self.signals }
    }

    /// How many parameters `train.freeze` keeps as they are.
    fn check_frozen(&self, monitor: &mut dyn Monitor) -> Result<(), TrainError> {
        if self.recipe.train.freeze.is_empty() {
            return Ok(());
        }
        let table = tensor_table(&self.spec);
        let pairs = table.iter().zip(frozen(self.recipe, &self.spec));
        let kept: usize =
            pairs.filter(|(_, frozen)| *frozen).map(|(entry, _)| entry.elements()).sum();
        let all = self.spec.parameters();
        if kept == 0 || kept == all {
            let what = format!("names {kept} of {all} parameters; expected some and not all");
            return Err(contradiction(self.recipe, "train.freeze", what));
        }
        monitor.message(&format!("frozen: {kept} of {all} parameters"));
        Ok(())
    }

    pub(crate) fn step_settings(&self, limits: Limits) -> StepSettings {
        StepSettings {
            reduction: match self.recipe.loss.reduction {
                recipe::Reduction::Mean => Reduction::Mean,
                recipe::Reduction::Sum => Reduction::Sum,
            },
            grad_clip: self.recipe.optimizer.grad_clip,
            limits,
        }
    }

    /// The tokens after which the model speaks: a text to go on with, or a user's turn to answer.
    pub(crate) fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>, TrainError> {
        if self.recipe.stage == Stage::Pretrain {
            let body = self.tokenizer.encode(prompt)?;
            return Ok(self.tokenizer.bos().into_iter().chain(body).collect());
        }
        let turn = Message { speaker: Speaker::User, content: prompt.to_owned() };
        Ok(self.chat.prompt(&self.tokenizer, &[turn])?)
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.signals.stop().is_some()
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        sources::cache_dir(self.recipe)
    }
}

/// For each tensor of the table whether `train.freeze` names it.
fn frozen(recipe: &Recipe, spec: &ModelSpec) -> Vec<bool> {
    let pattern = |text: &String| glob::Pattern::new(text).expect("a recipe's are well formed");
    let patterns: Vec<_> = recipe.train.freeze.iter().map(pattern).collect();
    let named = |entry: TensorEntry| patterns.iter().any(|one| one.matches(&entry.name));
    tensor_table(spec).into_iter().map(named).collect()
}

fn policy(long_rows: recipe::LongRows) -> LongRows {
    match long_rows {
        recipe::LongRows::Truncate => LongRows::Truncate,
        recipe::LongRows::Drop => LongRows::Drop,
        recipe::LongRows::Split => LongRows::Split,
    }
}

fn total_steps(
    recipe: &Recipe,
    curriculum: &mut dyn Curriculum,
    sets: &[String],
) -> Result<u64, TrainError> {
    let (Length::Epochs(epochs), None) = (recipe.train.length, known_steps(recipe)) else {
        return Ok(known_steps(recipe).expect("only epochs need the data"));
    };
    let mut items = 0;
    for set in sets {
        items += curriculum.items(set)?;
    }
    Ok((items as f64 * epochs / recipe.train.batch as f64).ceil().max(1.0) as u64)
}

/// The number of steps, unless epochs are counted.
pub(crate) fn known_steps(recipe: &Recipe) -> Option<u64> {
    let batch = recipe.train.batch as u64;
    match recipe.train.length {
        Length::Steps(steps) => Some(steps),
        Length::Tokens(tokens) => Some(tokens.div_ceil(batch * recipe.data.seq_len as u64).max(1)),
        Length::Epochs(_) => None,
    }
}
