//! Checkpoints: a directory that exists under its final name only when complete and hashed.
//!
//! `step-000200/` holds the model with Hugging Face names and f32 or BF16 latents (a folder that other
//! tools read directly), the optimizer's state (`optimizer`), the state of the run, and last of all
//! `MANIFEST.json` with the size and BLAKE3 hash of every other file. That of an adapter run holds the
//! adapter, as PEFT's folder, in place of the model. The training loop decides what to save and when.

mod optimizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_format::Shown;
use bitnet_format::adapter::{
    ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE, AdapterDescription, write_adapter,
};
use bitnet_format::folder::{CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE};
use bitnet_format::generation_config::{self, GENERATION_CONFIG_FILE};
use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_format::writer::{TensorPlan, TensorWriter};
use bitnet_format::{
    DType, FormatError, HfConfig, ModelSpec, TensorEntry, WeightForm, tensor_table,
};
use bitnet_text::{ChatTemplate, TOKENIZER_CONFIG_FILE, Tokenizer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::to_host;
use crate::latents::Latents;
use crate::model::{LanguageModel, factor_index, is_factor, named_values, values};

pub(crate) use optimizer::{MomentData, WriteMoment, set as set_moment};
pub use optimizer::{Moments, StoredMoments};

/// Moments of the optimizer.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The state of the run.
pub const STATE_FILE: &str = "state.json";
/// The complete recipe.
pub const RECIPE_FILE: &str = "recipe.resolved.toml";
/// Sizes and hashes of the other files.
pub const MANIFEST_FILE: &str = "MANIFEST.json";
/// Far above the size of any state or manifest that we write.
const LARGEST_JSON: u64 = 64 << 20;
/// Version of the layout of a checkpoint.
const LAYOUT_VERSION: u32 = 1;

/// Why a checkpoint cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The chat template does not work with the tokenizer.
    #[error(transparent)]
    Text(#[from] bitnet_text::TextError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The directory is not what its manifest says.
    #[error("{}: {what}", .path.shown())]
    Broken {
        /// The file or directory at fault.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A parameter is NaN or infinite; such a state is never written.
    #[error("parameter {name} holds a value that is not finite; the last good checkpoint stands")]
    NotFinite {
        /// The parameter.
        name: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    layout: u32,
    version: String,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct FileRecord {
    bytes: u64,
    blake3: String,
}

/// Everything of a model that a folder holds beside its tensors.
#[derive(Clone, Copy, Debug)]
pub struct FolderParts<'a> {
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// How conversations are written, if the model is to hold any.
    pub chat: Option<&'a ChatTemplate>,
    /// The `generation_config.json` of the model it was trained from; its ids become the model's.
    pub generation: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// The adapter that is written in place of the model, and the matrices that it changes.
    pub adapter: Option<(&'a AdapterDescription, &'a [TensorEntry])>,
}

/// Writes model, config and tokenizer as a Hugging Face folder into `dir`, with f32 values, or BF16
/// ones where latents are kept in fewer bits. A folder that holds the `same` parameters shares its
/// file of weights, where the file system can: such a file is never written again, only replaced.
///
/// # Errors
/// When a value is not finite or the disk refuses.
pub fn write_model(
    dir: &Path,
    parts: FolderParts,
    model: &LanguageModel,
    same: Option<&Path>,
) -> Result<(), CheckpointError> {
    if let Some((description, adapted)) = parts.adapter {
        write_factors(dir, parts.spec, model, (description, adapted))?;
        return write_tokenizer(dir, parts);
    }
    let weights = dir.join(MODEL_FILE);
    // At the end of a run `step-N`, `best` and `final` may hold the same parameters: one file on
    // disk with three names. Removing one name leaves the others whole.
    let share = |folder: &Path| fs_err::hard_link(folder.join(MODEL_FILE), &weights);
    if same.is_none_or(|folder| share(folder).is_err()) {
        write_weights(&weights, parts.spec, model)?;
    }
    let config = HfConfig { spec: parts.spec.clone(), form: WeightForm::Latent };
    let is_bf16 = |latents: &Option<Latents>| {
        latents.as_ref().is_some_and(|latents| latents.read().dtype() == DType::Bf16)
    };
    let dtype = if model.outside().iter().any(is_bf16) { "bfloat16" } else { "float32" };
    fs_err::write(dir.join(CONFIG_FILE), config.to_json(dtype))?;
    write_tokenizer(dir, parts)
}

/// Writes what a model folder holds for generating text.
fn write_tokenizer(dir: &Path, parts: FolderParts) -> Result<(), CheckpointError> {
    if let Some(keys) = parts.generation {
        let text = generation_config::to_json(keys, parts.spec);
        fs_err::write(dir.join(GENERATION_CONFIG_FILE), text)?;
    }
    if let Some(tokenizer) = parts.tokenizer {
        fs_err::write(dir.join(TOKENIZER_FILE), tokenizer.json())?;
        let config = tokenizer.hf_config(parts.chat, parts.spec.context_length())?;
        fs_err::write(dir.join(TOKENIZER_CONFIG_FILE), config)?;
    }
    Ok(())
}

/// Writes the factors of an adapter as PEFT's folder, in f32.
fn write_factors(
    dir: &Path,
    spec: &ModelSpec,
    model: &LanguageModel,
    (description, adapted): (&AdapterDescription, &[TensorEntry]),
) -> Result<(), CheckpointError> {
    let values = values(model);
    for (entry, value) in model.table().iter().zip(&values).filter(|(entry, _)| is_factor(entry)) {
        if to_host(value.clone()).iter().any(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite { name: entry.name.clone() });
        }
    }
    let place = |entry: &TensorEntry| model.table().iter().position(|known| known == entry);
    Ok(write_adapter(dir, description, spec, adapted, DType::F32, |entry, factor| {
        let matrix = place(entry).expect("an adapted matrix is a parameter");
        Ok(to_host(values[factor_index(matrix, factor)].clone()))
    })?)
}

/// Writes tensor after tensor from where it lies. Latents that are kept in fewer bits are BF16 here.
fn write_weights(
    path: &Path,
    spec: &ModelSpec,
    model: &LanguageModel,
) -> Result<(), CheckpointError> {
    let table = tensor_table(spec);
    let planned = |(entry, outside): (&TensorEntry, &Option<Latents>)| {
        let dtype = outside.as_ref().map_or(DType::F32, |latents| latents.read().dtype());
        TensorPlan::new(&entry.name, dtype, &entry.shape)
    };
    let outside = model.outside();
    let mut file = TensorWriter::create(path, table.iter().zip(outside).map(planned).collect())?;
    for (((name, tensor), entry), outside) in
        named_values(model).into_iter().zip(&table).zip(outside)
    {
        assert_eq!(name, entry.name, "modules are visited in the order of the tensor table");
        if let Some(latents) = outside {
            let latents = latents.read();
            if !latents.is_finite() {
                return Err(CheckpointError::NotFinite { name });
            }
            file.start(&name)?;
            latents.write(&mut |bytes| file.write(bytes))?;
            continue;
        }
        let value = to_host(tensor);
        // Never saved: a run could not go on from it, and it would push a good checkpoint out of
        // `keep`.
        if value.iter().any(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite { name });
        }
        file.write_floats(&name, &value)?;
    }
    Ok(file.finish()?)
}

/// What a checkpoint holds beside the state of the run.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// Architecture and tokenizer.
    pub folder: FolderParts<'a>,
    /// The parameters.
    pub model: &'a LanguageModel,
    /// The moments.
    pub moments: &'a dyn Moments,
    /// The complete recipe that led here.
    pub recipe: &'a str,
    /// A folder with the same parameters.
    pub same: Option<&'a Path>,
}

/// Publishes a whole checkpoint as `target`.
///
/// # Errors
/// As [`write_model`]; whatever stood at `target` is then untouched.
pub fn save<S: Serialize>(
    target: &Path,
    contents: Contents,
    state: &S,
) -> Result<(), CheckpointError> {
    // The order matters for readers of a half-written folder only up to `publish`: until then
    // everything lies under a temporary name. A kill at any line leaves either no checkpoint of
    // this step or the complete old one, and `leftovers` removes the temporary folder at the next
    // start.
    let staged = StagedDir::beside(target, OnExisting::Replace)?;
    write_model(staged.path(), contents.folder, contents.model, contents.same)?;
    let optimizer_file = &staged.path().join(OPTIMIZER_FILE);
    optimizer::write(optimizer_file, contents.model, contents.moments)?;
    write_json(&staged.path().join(STATE_FILE), state)?;
    fs_err::write(staged.path().join(RECIPE_FILE), contents.recipe)?;
    // Last, over all files that are there: one that is added later must be written above this line.
    write_manifest(staged.path())?;
    Ok(staged.publish()?)
}

/// Reads the state of a checkpoint.
///
/// # Errors
/// When the file is missing or does not parse.
pub fn read_state<S: DeserializeOwned>(dir: &Path) -> Result<S, CheckpointError> {
    read_json(&dir.join(STATE_FILE))
}

/// Checks every file of a checkpoint against its manifest.
///
/// # Errors
/// Names the first file that is missing, has another size or another hash, or that every checkpoint
/// lists and this one does not; and a state of another step than the directory's name says.
pub fn verify(dir: &Path) -> Result<(), CheckpointError> {
    verify_files(dir)?;
    verify_step(dir)
}

/// Checks that the state is of the step that the directory's name says.
pub(crate) fn verify_step(dir: &Path) -> Result<(), CheckpointError> {
    let named = dir.file_name().and_then(|name| step_of(name.to_str()?));
    let state: serde_json::Value = read_state(dir)?;
    // A folder that was renamed or copied under another number would else be taken for the newest
    // one.
    let what = match (named, state["step"].as_u64()) {
        (Some(named), Some(step)) if named != step => {
            format!("is of step {step}; expected step {named}, as its directory says")
        }
        (_, Some(_)) => return Ok(()),
        (_, None) => "holds no step".to_owned(),
    };
    Err(CheckpointError::Broken { path: dir.join(STATE_FILE), what })
}

/// Checks every file that the manifest of a checkpoint lists; files beside them are let be.
pub(crate) fn verify_files(dir: &Path) -> Result<(), CheckpointError> {
    let manifest: Manifest = read_json(&dir.join(MANIFEST_FILE))?;
    let broken = |name: &str, what: String| CheckpointError::Broken { path: dir.join(name), what };
    if manifest.layout != LAYOUT_VERSION {
        let what = format!("has layout version {}; expected {LAYOUT_VERSION}", manifest.layout);
        return Err(broken(MANIFEST_FILE, what));
    }
    let weights = if manifest.files.contains_key(ADAPTER_MODEL_FILE) {
        [ADAPTER_MODEL_FILE, ADAPTER_CONFIG_FILE]
    } else {
        [MODEL_FILE, CONFIG_FILE]
    };
    for required in weights.into_iter().chain([OPTIMIZER_FILE, STATE_FILE, RECIPE_FILE]) {
        if !manifest.files.contains_key(required) {
            return Err(broken(MANIFEST_FILE, format!("does not list {required}")));
        }
    }
    for (name, expected) in &manifest.files {
        // A manifest is input like any other: it must not lead the hash out of its folder.
        if name.contains(['/', '\\']) || name == ".." {
            return Err(broken(MANIFEST_FILE, format!("lists {name:?}; expected plain names")));
        }
        let found = record(&dir.join(name))?;
        // The size first: it names a torn copy more plainly than two different hashes do.
        if found.bytes != expected.bytes {
            let what = format!("has {} bytes; expected {}", found.bytes, expected.bytes);
            return Err(broken(name, what));
        }
        if found.blake3 != expected.blake3 {
            return Err(broken(name, "does not have the hash that MANIFEST.json lists".to_owned()));
        }
    }
    Ok(())
}

/// Bytes of a checkpoint's files, by its manifest.
pub(crate) fn size(dir: &Path) -> Result<u64, CheckpointError> {
    let manifest: Manifest = read_json(&dir.join(MANIFEST_FILE))?;
    Ok(manifest.files.values().map(|file| file.bytes).sum())
}

fn write_manifest(dir: &Path) -> Result<(), CheckpointError> {
    let mut files = BTreeMap::new();
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, record(&entry.path())?);
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    write_json(&dir.join(MANIFEST_FILE), &Manifest { layout: LAYOUT_VERSION, version, files })
}

fn record(path: &Path) -> Result<FileRecord, CheckpointError> {
    require_file(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs_err::File::open(path)?)?;
    let bytes = hasher.count();
    Ok(FileRecord { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// The size of a file; a device or a pipe would be read without end.
fn require_file(path: &Path) -> Result<u64, CheckpointError> {
    let meta = fs_err::metadata(path)?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    let what = "is not a file".to_owned();
    Err(CheckpointError::Broken { path: path.to_owned(), what })
}

fn write_json<S: Serialize>(path: &Path, value: &S) -> Result<(), CheckpointError> {
    let mut text = serde_json::to_string_pretty(value).expect("our own types serialise");
    text.push('\n');
    Ok(fs_err::write(path, text)?)
}

fn read_json<S: DeserializeOwned>(path: &Path) -> Result<S, CheckpointError> {
    let bytes = require_file(path)?;
    if bytes > LARGEST_JSON {
        let what = format!("has {bytes} bytes; expected at most {LARGEST_JSON}");
        return Err(CheckpointError::Broken { path: path.to_owned(), what });
    }
    let text = fs_err::read_to_string(path)?;
    serde_json::from_str(&text)
        .map_err(|error| CheckpointError::Broken { path: path.to_owned(), what: error.to_string() })
}

/// The checkpoints of a run directory, oldest first, sorted by number.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(run_dir)? {
        let entry = entry?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The directory of the checkpoint of a step.
pub fn path_of(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(name_of(step))
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// The step that the name of a checkpoint says; `None` for any other name.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    // `step-5` and `step-+00005` parse too; only the name that we write counts.
    (name_of(step) == name).then_some(step)
}
