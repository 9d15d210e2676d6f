//! Low-rank adapters of ternary models, stored as PEFT stores LoRA.
//!
//! An adapter gives some matrices `W [out, in]` two small ones, `A [r, in]` and `B [out, r]`, and
//! all of them one scale `s = alpha / r`. What they mean is its [`AdapterKind`]:
//!
//! * latent: the latents are `W0 + s·(B·A)` ([`merge`]) and are quantised as a whole. The merged
//!   model is an ordinary ternary model.
//! * side: the layer's output is `ternary(x) + s·B·(A·x)`, where `x` is the layer's input before it
//!   is quantised, and after the sub-norm where the layer has one. The ternary codes stay as they
//!   are.
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors` with PEFT's names:
//!
//! ```text
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [r, in]    F32, BF16 or F16
//! base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight   [out, r]
//! ```
//!
//! What PEFT knows no field for stands in the safetensors file's `__metadata__`: `bitnet.kind`
//! (`latent` or `side`; absent: `side`, an adapter of PEFT's own), `bitnet.base_blake3` (the
//! [`model_hash`](crate::model_hash) of the model it was trained on) and `bitnet.version`.

mod config;
pub mod merge;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::AdapterConfig;
pub use config::{LARGEST_RANK, matching_entries, module_of};
pub use merge::MergedModel;
pub use write::write_adapter;

pub use crate::names::{ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE};
use crate::tensors::TensorFile;
use crate::{DType, FormatError, ModelSpec, Shown, TensorEntry, tensor_table};

/// What the low-rank product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// To the latents, before they are quantised.
    Latent,
    /// To the output of the ternary product.
    Side,
}

impl AdapterKind {
    /// The word in files and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latent => "latent",
            Self::Side => "side",
        }
    }

    /// The kind of a word.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Latent, Self::Side].into_iter().find(|kind| kind.name() == name)
    }
}

/// What an adapter says of itself, beside its matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterDescription {
    /// What the product is added to.
    pub kind: AdapterKind,
    /// Rows of each `A`, columns of each `B`; at least 1.
    pub rank: usize,
    /// `rank` times the scale.
    pub alpha: f32,
    /// Where the model it was trained on lay; PEFT's `base_model_name_or_path`.
    pub base_path: String,
    /// That model's [`model_hash`](crate::model_hash). `None` for adapters of PEFT's own, which say
    /// nothing of it.
    pub base_hash: Option<String>,
}

impl AdapterDescription {
    /// What the product of `B` and `A` is multiplied by: `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// One of the two small matrices of an adapted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowRankFactor {
    /// `A [r, in]`
    A,
    /// `B [out, r]`
    B,
}

impl LowRankFactor {
    /// Both, in the order of PEFT's files.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Its shape for a matrix and a rank.
    pub fn shape(self, entry: &TensorEntry, rank: usize) -> [usize; 2] {
        match self {
            Self::A => [rank, entry.shape[1]],
            Self::B => [entry.shape[0], rank],
        }
    }

    /// Its tensor's name in a file of PEFT's layout.
    pub fn tensor_name(self, entry: &TensorEntry) -> String {
        let word = match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
        };
        format!("base_model.model.{}.{word}.weight", module_of(entry))
    }

    /// The rank that a shape has if it is one of this factor.
    fn rank_of(self, shape: &[usize]) -> Option<usize> {
        match (self, shape) {
            (Self::A, [rank, _]) | (Self::B, [_, rank]) => Some(*rank),
            _ => None,
        }
    }
}

/// `A [r, in]` and `B [out, r]` of one matrix, row-major, all values finite.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[r, in]`
    pub a: Vec<f32>,
    /// `[out, r]`
    pub b: Vec<f32>,
    /// The type that the file holds `A` in.
    pub dtype: DType,
}

/// An open adapter: every matrix has both factors in the shapes of the model and of the rank, and
/// all values are finite.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    description: AdapterDescription,
    /// By the name of the adapted matrix.
    matrices: BTreeMap<String, LowRank>,
}

impl Adapter {
    /// Opens an adapter folder for a model of this shape.
    ///
    /// # Errors
    /// Files that are missing or hold something else, settings that change the arithmetic in a way
    /// that is not followed, targets that match no matrix, a factor that is missing or of another
    /// rank or shape, a tensor of something else, NaN and infinity.
    pub fn open(path: &Path, spec: &ModelSpec) -> Result<Self, FormatError> {
        // The folder, the config and the names are checked before the factors, which may be large,
        // are read.
        refuse_other_contents(path)?;
        let config_path = path.join(ADAPTER_CONFIG_FILE);
        let config = AdapterConfig::read(&config_path)?;
        let file = TensorFile::open(&path.join(ADAPTER_MODEL_FILE))?;
        let adapted = config.adapted(&config_path, spec, &file)?;
        check_names(&file, &adapted)?;
        let matrices = adapted
            .iter()
            .map(|entry| Ok((entry.name.clone(), read_matrix(&file, entry, config.rank)?)));
        let matrices = matrices.collect::<Result<_, FormatError>>()?;
        let description = AdapterDescription {
            kind: kind_of(&file)?,
            rank: config.rank,
            alpha: config.alpha,
            base_path: config.base_path,
            base_hash: file.fact(HASH_KEY).map(str::to_owned),
        };
        let adapter = Self { path: path.to_owned(), description, matrices };
        // Last, since it needs the kind.
        adapter.check_hash()?;
        Ok(adapter)
    }

    /// An adapter in memory, of a model of this shape: `factor` gives the values of each factor of each of
    /// the `adapted` matrices.
    ///
    /// # Panics
    /// If a factor has another number of values.
    pub fn from_factors(
        description: AdapterDescription,
        adapted: &[TensorEntry],
        factor: impl Fn(&TensorEntry, LowRankFactor) -> Vec<f32>,
    ) -> Self {
        let values = |entry: &TensorEntry, which: LowRankFactor| {
            let (values, [rows, columns]) =
                (factor(entry, which), which.shape(entry, description.rank));
            assert_eq!(
                values.len(),
                rows * columns,
                "{} of {}",
                which.tensor_name(entry),
                entry.name
            );
            values
        };
        let matrix = |entry: &TensorEntry| LowRank {
            a: values(entry, LowRankFactor::A),
            b: values(entry, LowRankFactor::B),
            dtype: DType::F32,
        };
        let matrices = adapted.iter().map(|entry| (entry.name.clone(), matrix(entry))).collect();
        Self { path: PathBuf::from("the adapter in memory"), description, matrices }
    }

    /// What it says of itself.
    pub fn description(&self) -> &AdapterDescription {
        &self.description
    }

    /// Its folder, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The factors of a matrix; `None` for one that is not adapted.
    pub fn of(&self, entry: &TensorEntry) -> Option<&LowRank> {
        self.matrices.get(&entry.name)
    }

    /// The adapted matrices of a model, in the order of its table.
    pub fn entries(&self, spec: &ModelSpec) -> Vec<TensorEntry> {
        tensor_table(spec).into_iter().filter(|entry| self.of(entry).is_some()).collect()
    }

    /// Number of values of all factors.
    pub fn parameters(&self) -> usize {
        self.matrices.values().map(|matrix| matrix.a.len() + matrix.b.len()).sum()
    }

    /// Whether it may have been trained on the model with this hash: it was, or does not say.
    pub fn may_be_of(&self, base_hash: &str) -> bool {
        self.description.base_hash.as_deref().is_none_or(|hash| hash == base_hash)
    }

    /// Refuses another model than the one it was trained on; `base` is that model's path.
    ///
    /// # Errors
    /// When the hashes differ.
    pub fn require_base(&self, base: &Path, base_hash: &str) -> Result<(), FormatError> {
        if self.may_be_of(base_hash) {
            return Ok(());
        }
        let what = format!(
            "was trained on the model {} with the hash {}; expected that one, got {} with {}",
            self.description.base_path,
            short(self.description.base_hash.as_deref().unwrap_or_default()),
            base.shown(),
            short(base_hash)
        );
        Err(FormatError::config(&self.path.join(ADAPTER_MODEL_FILE), HASH_KEY, what))
    }

    /// Latents are merged into one model only, so a latent adapter says which.
    fn check_hash(&self) -> Result<(), FormatError> {
        let AdapterDescription { kind, base_hash, .. } = &self.description;
        let path = self.path.join(ADAPTER_MODEL_FILE);
        let is_hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit());
        match base_hash {
            Some(hash) if !is_hash(hash) => {
                let what = "is no BLAKE3 hash; expected 64 hexadecimal digits";
                Err(FormatError::config(&path, HASH_KEY, what))
            }
            None if *kind == AdapterKind::Latent => {
                let what = "is missing; expected the hash of the model that it was trained on";
                Err(FormatError::config(&path, HASH_KEY, what))
            }
            _ => Ok(()),
        }
    }
}

const KIND_KEY: &str = "bitnet.kind";
const HASH_KEY: &str = "bitnet.base_blake3";
const VERSION_KEY: &str = "bitnet.version";

/// Enough digits of a hash to tell two apart.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn kind_of(file: &TensorFile) -> Result<AdapterKind, FormatError> {
    // PEFT's own files name no kind: LoRA adds to the output, which is what we call a side adapter.
    let Some(word) = file.fact(KIND_KEY) else { return Ok(AdapterKind::Side) };
    AdapterKind::named(word).ok_or_else(|| {
        let what = format!("is {word:?}; expected \"latent\" or \"side\"");
        FormatError::config(&file.source, KIND_KEY, what)
    })
}

fn read_matrix(
    file: &TensorFile,
    entry: &TensorEntry,
    rank: usize,
) -> Result<LowRank, FormatError> {
    let read = |factor: LowRankFactor| {
        let name = factor.tensor_name(entry);
        // Before the shape is compared: "another rank" tells the user more than "another shape".
        let found = factor.rank_of(&file.info(&name)?.shape);
        if let Some(found) = found.filter(|&found| found != rank) {
            let what = format!("has rank {found}; {ADAPTER_CONFIG_FILE} says r = {rank}");
            return Err(file.error(&name, what));
        }
        file.finite_floats(&name, &factor.shape(entry, rank))
    };
    let dtype = file.info(&LowRankFactor::A.tensor_name(entry))?.dtype;
    Ok(LowRank { a: read(LowRankFactor::A)?, b: read(LowRankFactor::B)?, dtype })
}

/// Refuses tensors that belong to no adapted matrix: they would be left out silently.
fn check_names(file: &TensorFile, adapted: &[TensorEntry]) -> Result<(), FormatError> {
    let names = |entry| LowRankFactor::BOTH.map(|factor| factor.tensor_name(entry));
    let known: std::collections::HashSet<_> = adapted.iter().flat_map(names).collect();
    match file.names().iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(file.error(name, "belongs to no matrix that target_modules names")),
        None => Ok(()),
    }
}

/// Says what a path holds instead of an adapter.
fn refuse_other_contents(path: &Path) -> Result<(), FormatError> {
    let missing = [ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE]
        .into_iter()
        .find(|name| !path.join(name).exists());
    let Some(missing) = missing else { return Ok(()) };
    let hint = if path.join("adapter_model.bin").exists() {
        "\nhint: there is adapter_model.bin; write safetensors with peft: \
         model.save_pretrained(\"OUT\")"
    } else {
        ""
    };
    let what = format!(
        "no adapter; expected a folder with {ADAPTER_CONFIG_FILE} and {ADAPTER_MODEL_FILE}, got no \
         {missing}{hint}"
    );
    Err(FormatError::container(path, what))
}
