//! A model folder as Hugging Face lays it out: `config.json` and `model.safetensors`, or shards
//! of it with an index.
//!
//! One reader serves every storage form; [`crate::convert::hf`] writes them. The tokenizer is in
//! the same folder, but this crate does not read it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::Shown;
use crate::blocks::dequantise;
use crate::foreign::{missing_model, missing_weights};
use crate::generation_config;
use crate::grouped::GroupedTernary;
pub use crate::names::{CONFIG_FILE, INDEX_FILE, MODEL_FILE, TOKENIZER_FILE};
use crate::packed::PackError;
use crate::quant::{WeightScale, first_not_finite};
use crate::tensors::TensorFile;
use crate::{
    DType, FormatError, HfConfig, ModelSpec, TensorEntry, TensorSource, TensorView, WeightForm,
    tensor_table,
};

/// An open model folder; its config and tensor header have been checked against each other.
#[derive(Debug)]
pub struct ModelFolder {
    config: HfConfig,
    tensors: TensorFile,
    /// Whether the files hold other names, or tensors that belong to no model.
    renamed: bool,
}

impl ModelFolder {
    /// Opens a folder and checks that exactly the model's tensors are there. As in transformers,
    /// a `model.safetensors` is preferred to an index beside it.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        refuse_run_directory(dir)?;
        if !dir.join(CONFIG_FILE).exists() {
            return Err(missing_model(dir));
        }
        let mut config = HfConfig::read(&dir.join(CONFIG_FILE))?;
        generation_config::apply(dir, &mut config.spec)?;
        let (model, index) = (dir.join(MODEL_FILE), dir.join(INDEX_FILE));
        if !model.exists() && !index.exists() {
            return Err(missing_weights(dir));
        }
        let tensors = if index.exists() && !model.exists() {
            TensorFile::open_sharded(&index)?
        } else {
            TensorFile::open(&model)?
        };
        Self::checked(config, tensors)
    }

    /// The same for a `config.json` and a `model.safetensors` in memory; `name` is for messages.
    pub fn from_bytes(name: &Path, config: &[u8], tensors: Vec<u8>) -> Result<Self, FormatError> {
        let config = HfConfig::from_bytes(&name.join(CONFIG_FILE), config)?;
        Self::checked(config, TensorFile::from_bytes(&name.join(MODEL_FILE), tensors)?)
    }

    fn checked(config: HfConfig, mut tensors: TensorFile) -> Result<Self, FormatError> {
        // Before the names are compared: wrappers of torch are no part of them.
        let renamed = tensors.rename(plain_name)?;
        let folder = Self { config, tensors, renamed };
        folder.check_names()?;
        Ok(folder)
    }

    /// How its matrices are stored.
    pub fn form(&self) -> WeightForm {
        self.config.form
    }

    /// The files that hold the weights, in order of their names, for hashing. An index is not
    /// among them: it says nothing that they do not.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        self.tensors.paths()
    }

    /// Files named like weights of this model beside those that were opened.
    pub(crate) fn unread_files(&self) -> Vec<PathBuf> {
        let read = self.weight_files();
        let Some(dir) = read.first().and_then(|path| path.parent()) else { return Vec::new() };
        let Ok(entries) = fs_err::read_dir(dir) else { return Vec::new() };
        let mut found: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|path| is_weight_file(path) && !read.contains(path));
        found.sort();
        found
    }

    /// Whether every tensor is stored in BF16 under its plain name, so that the folder is a BF16
    /// master already.
    pub fn is_bf16(&self) -> bool {
        let is_bf16 = |name: &String| self.tensors.info(name).is_ok_and(|t| t.dtype == DType::Bf16);
        !self.renamed && self.tensors.names().iter().all(is_bf16)
    }

    /// Where a tensor lies, if it is stored as BF16 in this shape.
    pub(crate) fn bf16_place(&self, entry: &TensorEntry) -> Option<(PathBuf, Range<u64>)> {
        self.tensors.bf16_place(&entry.name, &entry.shape)
    }

    fn is_packed(&self, entry: &TensorEntry) -> bool {
        self.config.form != WeightForm::Latent && entry.is_ternary(&self.config.spec)
    }

    /// The scale of a packed matrix, whichever way the folder stores it.
    fn scale(&self, entry: &TensorEntry) -> Result<WeightScale, FormatError> {
        let stored = self.tensors.floats(&scale_name(&entry.name), &[1])?[0];
        let multiplier = match self.config.form {
            // Everywhere else a scale multiplies; here alone the other meaning is known.
            WeightForm::PackedDividing => 1.0 / stored,
            WeightForm::Latent | WeightForm::PackedMultiplying => stored,
        };
        WeightScale::from_stored(multiplier).ok_or_else(|| {
            let what = format!("has weight_scale {stored}; expected a positive finite number");
            self.tensors.error(&entry.name, what)
        })
    }

    /// The scales of some rows of a packed matrix `[N, K / width]`.
    fn group_scales(
        &self,
        entry: &TensorEntry,
        width: usize,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, FormatError> {
        let (name, groups) = (scale_name(&entry.name), entry.shape[1] / width);
        if self.config.form == WeightForm::PackedDividing {
            let what =
                "has scales of groups that divide; expected autobitlinear, where they multiply";
            return Err(self.tensors.error(&entry.name, what));
        }
        let count = rows.len() * groups;
        let (dtype, bytes) = self.tensors.float_rows(&name, &[entry.shape[0], groups], rows)?;
        let scales = dequantise(dtype, &bytes, count);
        let scales = scales.map_err(|error| self.tensors.error(&name, error.to_string()))?;
        match first_not_finite(&scales) {
            None => Ok(scales),
            Some(at) => {
                Err(self.tensors.error(&name, format!("holds {}; expected finite", scales[at])))
            }
        }
    }

    /// The codes of some rows of a packed matrix, each in -1..=2.
    fn packed_rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<i8>, FormatError> {
        let [all, columns] = [entry.shape[0], entry.shape[1]];
        if !all.is_multiple_of(4) {
            let error = PackError::UnevenRows { rows: all };
            return Err(self.tensors.error(&entry.name, error.to_string()));
        }
        // Rows of one quarter share a field and lie one after the other, so a part is read up to
        // the end of its quarter: of 8 rows, 1..5 are row 1 of the first field, then rows 2 and 3
        // of the second, then row 4 of the third.
        let quarter = all / 4;
        let (mut codes, mut row) = (Vec::with_capacity(rows.len() * columns), rows.start);
        while row < rows.end {
            let end = rows.end.min((row / quarter + 1) * quarter);
            let (first, shift) = (row % quarter, 2 * (row / quarter));
            let part = first..first + end - row;
            let bytes = self.tensors.raw_rows(&entry.name, &[quarter, columns], DType::U8, part)?;
            codes.extend(bytes.iter().map(|byte| ((byte >> shift) & 3) as i8 - 1));
            row = end;
        }
        Ok(codes)
    }

    fn check_names(&self) -> Result<(), FormatError> {
        let mut expected = Vec::new();
        for entry in tensor_table(&self.config.spec) {
            if self.is_packed(&entry) {
                expected.push(scale_name(&entry.name));
            }
            expected.push(entry.name);
        }
        // Before what is missing: a fused matrix explains why its parts are not there.
        if let Some((name, what)) = self.tensors.names().iter().find_map(|name| foreign(name)) {
            return Err(self.tensors.error(&name, what));
        }
        if let Some(name) = expected.iter().find(|name| !self.tensors.contains(name)) {
            return Err(self.tensors.error(name, "is missing"));
        }
        // A tied model may still carry a copy of its head; everything else unknown is a mistake.
        let known = |name: &String| expected.contains(name) || self.is_tied_head(name);
        match self.tensors.names().iter().find(|name| !known(name)) {
            Some(name) if name.strip_suffix(".bias").is_some() => {
                let what =
                    "is a bias where the config has none; expected the model_type that has it";
                Err(self.tensors.error(name, what))
            }
            Some(name) => Err(self.tensors.error(name, "is not a tensor of this model")),
            None => Ok(()),
        }
    }

    fn is_tied_head(&self, name: &str) -> bool {
        self.config.spec.tie_word_embeddings && name == "lm_head.weight"
    }
}

impl TensorSource for ModelFolder {
    fn spec(&self) -> &ModelSpec {
        &self.config.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        if !self.is_packed(entry) {
            let (dtype, bytes) = self.tensors.float_rows(&entry.name, &entry.shape, rows)?;
            return Ok(TensorView::stored(dtype, bytes));
        }
        assert_eq!(rows, 0..entry.shape[0], "a packed matrix is read whole");
        let shape = [entry.shape[0].div_ceil(4), entry.shape[1]];
        let bytes = self.tensors.raw(&entry.name, &shape, DType::U8)?;
        Ok(TensorView::packed(bytes, self.scale(entry)?))
    }

    fn grouped(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<GroupedTernary, FormatError> {
        let (columns, width) = (entry.shape[1], entry.group_width(self.spec()));
        let width = width.expect("a model with a scale a group");
        if self.is_packed(entry) {
            let scales = self.group_scales(entry, width, rows.clone())?;
            let codes = self.packed_rows(entry, rows)?;
            return Ok(GroupedTernary::new(columns, width, codes, scales));
        }
        let values = self.rows(entry, rows)?;
        Ok(GroupedTernary::of_floats(columns, self.spec().quantiser.group, &values))
    }

    fn error(&self, entry: &TensorEntry, what: String) -> FormatError {
        self.tensors.error(&entry.name, what)
    }
}

/// A tensor's name without the wrappers that torch leaves in it (`module.`, `_orig_mod.`). `None`
/// for the rotary frequencies that old versions of transformers stored: they follow from the
/// config.
fn plain_name(stored: &str) -> Option<String> {
    let parts: Vec<_> = stored.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    (!parts.ends_with(&["rotary_emb", "inv_freq"])).then(|| parts.join("."))
}

/// A tensor of several matrices in one, as some programs store them, and what is expected in its
/// place.
fn foreign(name: &str) -> Option<(String, String)> {
    let (_, apart) = FUSED.iter().find(|(part, _)| name.split('.').any(|one| one == *part))?;
    Some((name.to_owned(), format!("holds several matrices in one; expected {apart} apart")))
}

const FUSED: [(&str, &str); 6] = [
    ("qkv_proj", "q_proj, k_proj and v_proj"),
    ("query_key_value", "q_proj, k_proj and v_proj"),
    ("W_pack", "q_proj, k_proj and v_proj"),
    ("c_attn", "q_proj, k_proj and v_proj"),
    ("gate_up_proj", "gate_proj and up_proj"),
    ("dense_h_to_4h", "gate_proj and up_proj"),
];

/// `DataParallel`, `torch.compile`, FSDP and activation checkpointing wrap a module in a field.
const WRAPPERS: [&str; 4] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// `model.safetensors`, or a shard such as `model-00001-of-00002.safetensors`.
fn is_weight_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == MODEL_FILE
        || name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors")
}

/// The tensor that holds a packed matrix's scale: `….weight` → `….weight_scale`.
pub(crate) fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

/// A directory of a run holds no model, but a folder in it may.
fn refuse_run_directory(dir: &Path) -> Result<(), FormatError> {
    if dir.join(CONFIG_FILE).exists() {
        return Ok(());
    }
    let Some(model) = model_of_run(dir) else { return Ok(()) };
    let what = format!("is the directory of a run; its model is {}", model.shown());
    Err(FormatError::container(dir, what))
}

/// The model in the directory of a run, or of the last stage of several, that is best to run.
fn model_of_run(dir: &Path) -> Option<PathBuf> {
    let of_run = |dir: &Path| {
        // The smallest and fastest first; a checkpoint only of a run that published nothing.
        let places = ["export/hf-packed", "final"].map(|place| dir.join(place));
        let checkpoints = numbered(dir, |name| name.strip_prefix("step-"));
        let mut all = places.into_iter().chain(checkpoints);
        all.find(|model| model.join(CONFIG_FILE).is_file())
    };
    let stages = || numbered(dir, |name| name.split_once('-').map(|(number, _)| number));
    of_run(dir).or_else(|| stages().iter().find_map(|stage| of_run(stage)))
}

/// The folders in `dir` whose name holds a number, the largest first.
fn numbered(dir: &Path, number: impl Fn(&str) -> Option<&str>) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(dir).into_iter().flatten().flatten();
    let number_of = |path: PathBuf| {
        let found: u64 = number(path.file_name()?.to_str()?)?.parse().ok()?;
        Some((found, path))
    };
    let mut found: Vec<_> = entries.filter_map(|entry| number_of(entry.path())).collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests;
