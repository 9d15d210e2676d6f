//! Every setting of a run with its meaning, as the rest of the program sees it.
//!
//! These types are complete and checked. `read` reads them from TOML, `resolved` writes them back.
//! A phase's rates are in `rate`, data sources in `data`, the model in `model`.

use crate::monitor::TrackerKind;
use crate::train::step::accumulate::BatchCut;
use crate::train::step::muon::MuonSettings;
use bitnet_format::adapter::AdapterKind;
use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use bitnet_kernels::Operands;
use burn::tensor::Device;
use std::path::PathBuf;

use super::batch_size::{BatchSizes, BatchWarmup};
use super::data::Data;
use super::distill::DistillSettings;
use super::export_format::ExportFormat;
use super::item::word;
use super::model::ModelSource;
use super::parametrisation::Parametrisation;
use super::stage::{LossReduction, StageKind};
use super::ternary_warmup::TernaryWarmup;
use crate::distributed::CommDType;
use crate::latents::{LatentFormat, LeanSettings, MomentFormat, UpdateTime};
use crate::model::ActivationMemory;
use crate::ops::{DrawPlace, GradientFormat, GradientRounding, OpBackend};

/// A run, complete: every default filled in, every path absolute, every rule of the recipe held.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The file it was read from, absolute.
    pub path: PathBuf,
    /// What the run is called: the file's stem unless the recipe says otherwise.
    pub name: String,
    /// What is learned.
    pub stage: StageKind,
    /// The seed of every random choice.
    pub seed: u64,
    /// Where the run computes.
    pub device: String,
    /// The model it starts from.
    pub model: ModelSource,
    /// How initial values and rates depend on its width.
    pub parametrisation: Parametrisation,
    /// How text becomes token ids.
    pub tokenizer: TokenizerSource,
    /// How a conversation becomes text.
    pub chat: ChatFormat,
    /// What it is trained and evaluated on.
    pub data: Data,
    /// How long, and in what pieces.
    pub train: Train,
    /// What is trained in the model's place, if anything is.
    pub adapter: Option<AdapterSettings>,
    /// How its model becomes ternary, where not at once.
    pub ternary_warmup: Option<TernaryWarmup>,
    /// The run's parts in order; never empty, shares sum to 1, names are unique.
    pub phases: Vec<super::Phase>,
    /// `AdamW` and what surrounds it.
    pub optimizer: Optimizer,
    /// What is minimised.
    pub loss: LossSettings,
    /// What is learned from a teacher, if there is one.
    pub distill: Option<DistillSettings>,
    /// Settings of preference training.
    pub dpo: DpoSettings,
    /// Evaluation while training.
    pub eval: Eval,
    /// Checkpoints while training.
    pub checkpoint: Checkpoint,
    /// Text generated while training.
    pub sample: Sample,
    /// How it is shown.
    pub report: ReportSettings,
    /// What is written beside the final checkpoint.
    pub export: Export,
    /// When a step is left out, and when the run gives up.
    pub guard: Guard,
    /// Reports about the ternary weights.
    pub telemetry: TelemetrySettings,
}

/// A low-rank adapter that is trained in the model's place.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// What the product is added to.
    pub kind: AdapterKind,
    /// Rows of each `A`, columns of each `B`.
    pub rank: usize,
    /// `rank` times the scale of the product.
    pub alpha: f64,
    /// The adapted matrices: names of modules, or ends of their paths.
    pub targets: Vec<String>,
}

impl AdapterSettings {
    pub(super) const KINDS: &[(&str, AdapterKind)] =
        &[("latent", AdapterKind::Latent), ("side", AdapterKind::Side)];
    /// The matrices of a block.
    pub(super) const ALL_TARGETS: [&str; 7] =
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// A `tokenizer.json`, absolute.
    Path(PathBuf),
    /// Trained on the training text before step 1.
    Train {
        /// Tokens to learn at most.
        vocab_size: usize,
    },
    /// The one beside the weights the run starts from.
    FromInit,
}

/// How a conversation becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// The format of the model the run starts from, else [`ChatFormat::B158`].
    Model,
    /// The template of `BitNet` b1.58 2B4T, each turn encoded as one string.
    B158,
    /// The same, headers and contents encoded apart.
    B158Apart,
    /// A Jinja template in a file, absolute.
    Jinja(PathBuf),
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// After n optimizer steps.
    Steps(u64),
    /// After n trained targets.
    Tokens(u64),
    /// After n passes over the training data.
    Epochs(f64),
}

impl Length {
    /// The steps of the run, where no text has to be counted for it.
    pub(super) fn known_steps(self) -> Option<u64> {
        match self {
            Self::Steps(steps) => Some(steps),
            Self::Tokens(_) | Self::Epochs(_) => None,
        }
    }
}

/// What the arithmetic of a step is done in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single precision throughout.
    F32,
    /// `bf16` operands, `f32` accumulation, master weights and moments.
    Bf16,
    /// The same, and both backward products of the ternary layers in 8-bit integers.
    Int8,
}

impl Precision {
    /// All, each with the word for it in a recipe.
    pub const WORDS: &[(&str, Self)] =
        &[("f32", Self::F32), ("bf16", Self::Bf16), ("int8", Self::Int8)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }

    /// What the float products multiply, and in which order they add.
    pub fn operands(self, sums: Bf16Sums) -> Operands {
        match (self, sums) {
            (Self::F32, _) => Operands::F32,
            (Self::Bf16 | Self::Int8, Bf16Sums::Chain) => Operands::Bf16,
            (Self::Bf16 | Self::Int8, Bf16Sums::Tiles) => Operands::Bf16Tiles,
        }
    }

    /// The format of gradients in the backward products of ternary layers, with this rounding.
    pub fn gradients(self, rounding: GradientRounding) -> GradientFormat {
        match self {
            Self::F32 | Self::Bf16 => GradientFormat::Operands,
            Self::Int8 => GradientFormat::Int8(rounding),
        }
    }
}

/// How gradients are rounded to eight bits.
pub const GRADIENT_ROUNDING_WORDS: &[(&str, GradientRounding)] = &[
    // A stand-in for the place: seed and step are put in when a step is made.
    ("stochastic", GradientRounding::Stochastic(DrawPlace::ORIGIN)),
    ("nearest", GradientRounding::Nearest),
];

/// The order in which products in bf16 are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Sums {
    /// One after the other, as an instruction for pairs adds them.
    Chain,
    /// As an instruction for tiles adds them, see [`Operands::Bf16Tiles`].
    Tiles,
}

impl Bf16Sums {
    /// All, each with the word for it in a recipe.
    pub const WORDS: &[(&str, Self)] = &[("chain", Self::Chain), ("tiles", Self::Tiles)];
}

/// Number formats of gradients between ranks.
pub const REDUCE_PRECISION_WORDS: &[(&str, CommDType)] =
    &[("f32", CommDType::F32), ("bf16", CommDType::Bf16)];

/// How long a run is, and in what pieces it computes.
///
/// Invariant: `micro_batch` divides `batch`.
#[derive(Clone, Debug, PartialEq)]
pub struct Train {
    /// When it is over.
    pub length: Length,
    /// Sequences (dpo: pairs) an optimizer step, over all ranks.
    pub batch: usize,
    /// Fewer sequences in the first steps.
    pub batch_warmup: Option<BatchWarmup>,
    /// Sequences a forward pass.
    pub micro_batch: usize,
    /// Into how many parts a micro-batch is cut, each with gradients of its own.
    pub gradient_copies: usize,
    /// What a forward pass computes in.
    pub precision: Precision,
    /// The order of its sums in bf16.
    pub bf16_sums: Bf16Sums,
    /// How its 8-bit gradients are rounded.
    pub gradient_rounding: GradientRounding,
    /// Whether a block's activations are computed again for the backward pass.
    pub recompute: bool,
    /// How latents are kept.
    pub latents: LatentFormat,
    /// When parameters are updated.
    pub update: UpdateTime,
    /// Whether each rank holds only its part of the moments.
    pub shard_optimizer: bool,
    /// Number format of gradients between ranks; they are added in f32.
    pub reduce_precision: CommDType,
    /// Minutes after which the run saves and stops.
    pub max_minutes: Option<f64>,
    /// Names of the tensors that stay as they are, with `*` and `?`.
    pub freeze: Vec<String>,
}

impl Train {
    /// How many items each step takes.
    pub fn batches(&self) -> BatchSizes {
        BatchSizes { batch: self.batch, warmup: self.batch_warmup }
    }

    /// How the items of a step are cut.
    pub fn cut(&self) -> BatchCut {
        BatchCut { micro_batch: self.micro_batch, copies: self.gradient_copies }
    }

    /// How a model's operations are computed on `device`.
    pub fn backend(&self, device: &Device) -> OpBackend {
        let gradients = self.precision.gradients(self.gradient_rounding);
        OpBackend::of(device, self.precision.operands(self.bf16_sums)).with_gradients(gradients)
    }
}

impl Recipe {
    /// Where the run keeps fewer bits than f32.
    pub fn lean(&self) -> LeanSettings {
        let Train { latents, update, .. } = self.train;
        // Tensors of Burn's own cannot change while a backward pass reads the model.
        let outside = latents != LatentFormat::F32 || update == UpdateTime::During;
        LeanSettings {
            latents: outside.then_some(latents),
            moments: self.optimizer.moments,
            seed: self.seed,
        }
    }
}

impl Train {
    /// What a forward pass leaves in memory.
    pub fn activations(&self) -> ActivationMemory {
        if self.recompute { ActivationMemory::Recomputed } else { ActivationMemory::Kept }
    }

    /// For each tensor of the table whether `freeze` names it.
    pub fn frozen(&self, spec: &ModelSpec) -> Vec<bool> {
        let pattern = |text: &String| glob::Pattern::new(text).expect("the recipe was checked");
        let patterns: Vec<_> = self.freeze.iter().map(pattern).collect();
        // Names have dots and no slash, so `*` goes across all of their parts.
        let named = |entry: TensorEntry| patterns.iter().any(|one| one.matches(&entry.name));
        tensor_table(spec).into_iter().map(named).collect()
    }
}

/// What updates the matrices of blocks, `optimizer.kind`. Everything else is AdamW's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptimizerKind {
    AdamW,
    Muon,
}

impl OptimizerKind {
    pub(super) const WORDS: &[(&str, Self)] = &[("adamw", Self::AdamW), ("muon", Self::Muon)];
}

/// The optimizer, clipping and warm-up.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// What updates the matrices of blocks in AdamW's place.
    pub muon: Option<MuonSettings>,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub grad_clip: f64,
    /// How the moments of matrices are kept.
    pub moments: MomentFormat,
    /// Steps of warm-up. `None`, possible only while the number of steps is unknown, means
    /// [`default_warmup`](super::default_warmup).
    pub warmup_steps: Option<u64>,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossSettings {
    /// How the losses of one step's tokens become one number.
    pub reduction: LossReduction,
}

/// Settings of preference training.
#[derive(Clone, Debug, PartialEq)]
pub struct DpoSettings {
    /// How closely the model is held to its reference.
    pub beta: f64,
}

/// Evaluation while training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eval {
    /// Steps between two evaluations.
    pub every: Option<u64>,
    /// Benchmarks.
    pub tasks: EvalTasks,
}

/// Benchmarks that the packed model is asked after the last step, and in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalTasks {
    /// Tasks, groups and task files; often none.
    pub names: Vec<String>,
    /// The folder of their rows, where there are any.
    pub data: Option<PathBuf>,
    /// Rows of each task that are asked.
    pub limit: Option<usize>,
    /// Steps between.
    pub every: Option<u64>,
}

/// Checkpoints while training.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps between two checkpoints; `None`: not by steps.
    pub every: Option<u64>,
    /// Minutes between two checkpoints; `None`: not by the clock.
    pub every_minutes: Option<f64>,
    /// How many stay on disk, at least 1.
    pub keep: usize,
    /// Whether the model with the lowest held-out loss is kept beside them.
    pub best: bool,
}

/// When a step is left out, and when the run gives up.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Steps left out in a row, loss or gradient norm not being finite, that end the run.
    pub max_skipped_in_a_row: u32,
    /// Such steps of the whole run that end it.
    pub max_skipped: u32,
    /// A step is left out when its loss or gradient norm lies more than this many standard
    /// deviations above the mean of the window; 0 switches it off.
    pub spike_sigma: f64,
    /// Steps in the window; before it is full, nothing is a spike.
    pub spike_window: usize,
}

/// Reports about the ternary weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Steps between two reports.
    pub every: Option<u64>,
}

/// How a run is shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSettings {
    /// Whether a page is written when it has ended.
    pub html: bool,
    /// Programs in whose form the curves are written too.
    pub track: Vec<TrackerKind>,
    /// A command that reads every line of the metrics.
    pub command: Option<String>,
}

/// Text generated while training.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Steps between two rounds.
    pub every: Option<u64>,
    /// The beginning of each sample.
    pub prompts: Vec<String>,
    /// Tokens a sample at most.
    pub max_tokens: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
}

/// What is written beside the final checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The formats, none by default.
    pub formats: Vec<ExportFormat>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_has_the_word_of_the_interface() {
        assert_eq!(
            [StageKind::Pretrain, StageKind::Sft, StageKind::Dpo].map(StageKind::name).join(" "),
            "pretrain sft dpo"
        );
        assert_eq!(Precision::Bf16.name(), "bf16");
        assert_eq!(Precision::Int8.name(), "int8");
        assert_eq!(LossReduction::Sum.name(), "sum");
    }
}
