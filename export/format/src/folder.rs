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

    /// Where a tensor lies, if it is stored as BF16.
    pub(crate) fn bf16_place(&self, entry: &TensorEntry) -> Option<(PathBuf, Range<u64>)> {
        self.tensors.bf16_place(&entry.name)
    }

    fn is_packed(&self, entry: &TensorEntry) -> bool {
        self.config.form != WeightForm::Latent && entry.is_ternary(&self.config.spec)
    }

    /// The scale of a packed matrix, whichever way the folder stores it.
    fn scale(&self, entry: &TensorEntry) -> Result<WeightScale, FormatError> {
        let stored = self.tensors.floats(&scale_name(&entry.name), &[1])?[0];
        let multiplier = match self.config.form {
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

/// A tensor's name without the wrappers that torch leaves in it (`module.`, `_orig_mod.`). `None` for
/// the rotary frequencies that old versions of transformers stored: they follow from the config.
fn plain_name(stored: &str) -> Option<String> {
    let parts: Vec<_> = stored.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    (!parts.ends_with(&["rotary_emb", "inv_freq"])).then(|| parts.join("."))
}

/// A tensor of several matrices in one, as some programs store them, and what is expected in its place.
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
mod tests {
    use super::*;

    #[test]
    fn names_are_read_without_the_wrappers_of_torch() {
        for stored in ["module._orig_mod.model.norm.weight", "model._orig_mod.norm.weight"] {
            assert_eq!(plain_name(stored).as_deref(), Some("model.norm.weight"), "{stored}");
        }
        for stored in ["model.layers.0.self_attn.rotary_emb.inv_freq", "module.rotary_emb.inv_freq"]
        {
            assert_eq!(plain_name(stored), None, "{stored}");
        }
    }

    use crate::convert::hf::write_packed;
    use crate::matrix::Matrix;
    use crate::packed::PackedTernary;
    use crate::writer::{TensorData, write_tensors};

    fn spec(extra: &str) -> ModelSpec {
        toml::from_str(&format!(
            "hidden_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
             num_key_value_heads = 1\nvocab_size = 10\n{extra}"
        ))
        .unwrap()
    }

    fn latents(entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
        Ok((0..entry.elements()).map(|i| (i % 7) as f32 - 3.0).collect())
    }

    #[test]
    fn a_packed_folder_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec("intermediate_size = 12");
        write_packed(dir.path(), &spec, latents).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(folder.form(), WeightForm::PackedMultiplying);
        for entry in tensor_table(&spec) {
            let values = latents(&entry).unwrap();
            if entry.is_ternary(&spec) {
                let (packed, scale) = folder.ternary(&entry).unwrap();
                let shape = (entry.shape[0], entry.shape[1]);
                let expected = PackedTernary::from_latents(shape.0, shape.1, &values).unwrap();
                assert_eq!((packed, scale), expected);
            } else {
                assert_eq!(folder.floats(&entry).unwrap(), values);
            }
        }
    }

    #[test]
    fn a_shape_that_cannot_be_packed_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_packed(dir.path(), &spec("intermediate_size = 10"), latents);
        let message = error.unwrap_err().to_string();
        assert!(
            message.ends_with(
                "[model.layers.0.mlp.gate_proj.weight]: has 10 rows; packing needs a multiple of 4"
            ),
            "{message}"
        );
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
        let dense = spec("intermediate_size = 12\nquantise = false");
        assert!(write_packed(dir.path(), &dense, latents).is_err());
    }

    /// A folder of float matrices: BF16 where `dtype` says so, else F32.
    fn write_floats(dir: &Path, spec: &ModelSpec, dtype: &str, values: &[(String, Vec<f32>)]) {
        let shapes = tensor_table(spec).into_iter().map(|entry| entry.shape);
        let tensors = values.iter().zip(shapes).map(|((name, values), shape)| {
            let data = match dtype {
                "bfloat16" => TensorData::bf16(&shape, values),
                _ => TensorData::f32_owned(&shape, values),
            };
            (name.clone(), data)
        });
        write_tensors(&dir.join(MODEL_FILE), tensors).unwrap();
        let config = HfConfig { spec: spec.clone(), form: WeightForm::Latent };
        fs_err::write(dir.join(CONFIG_FILE), config.to_json(dtype)).unwrap();
    }

    /// Every tensor of a packed folder as the float values it stands for: codes · scale.
    fn dequantised(folder: &ModelFolder) -> Vec<(String, Vec<f32>)> {
        let values = |entry: &TensorEntry| match folder.matrix(entry).unwrap() {
            Matrix::Latent(values) => values,
            ternary => {
                let (codes, scale) = ternary.quantised();
                codes.iter().map(|&code| f32::from(code) * scale.multiplier()).collect()
            }
        };
        let table = tensor_table(folder.spec());
        table.into_iter().map(|entry| (entry.name.clone(), values(&entry))).collect()
    }

    /// Opens a folder of f32 tensors, those of `spec` and one more, whose config says `config`.
    fn opened(spec: &ModelSpec, config: &ModelSpec, more: Option<&str>) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let own = tensor_table(spec).into_iter().map(|entry| {
            let values = latents(&entry).unwrap();
            (entry.name, TensorData::f32_owned(&entry.shape, &values))
        });
        let more = more.map(|name| (name.to_owned(), TensorData::f32_owned(&[8], &[1.0; 8])));
        write_tensors(&dir.path().join(MODEL_FILE), own.chain(more)).unwrap();
        let config = HfConfig { spec: config.clone(), form: WeightForm::Latent };
        fs_err::write(dir.path().join(CONFIG_FILE), config.to_json("float32")).unwrap();
        ModelFolder::open(dir.path()).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn tensors_of_another_kind_of_model_are_refused_by_name() {
        let llama = spec("intermediate_size = 12\nsub_norms = false\nquantise = false");
        assert_eq!(opened(&llama, &llama, None), Ok(()));
        for (part, what) in [
            ("self_attn.q_proj.bias", "is a bias where the config has none"),
            ("self_attn.qkv_proj.weight", "expected q_proj, k_proj and v_proj apart"),
            ("mlp.gate_up_proj.weight", "expected gate_proj and up_proj apart"),
            ("self_attn.q_norm.weight", "is not a tensor of this model"),
        ] {
            let name = format!("model.layers.0.{part}");
            let error = opened(&llama, &llama, Some(&name)).unwrap_err();
            assert!(error.contains(&format!("[{name}]: ")) && error.contains(what), "{error}");
        }
        let qwen2 = ModelSpec { attention_bias: true, ..llama.clone() };
        let qwen3 = ModelSpec { qk_norm: true, ..llama.clone() };
        for (config, part) in [(qwen2, "q_proj.bias"), (qwen3, "q_norm.weight")] {
            assert_eq!(opened(&config, &config, None), Ok(()));
            let error = opened(&llama, &config, None).unwrap_err();
            let missing = format!("[model.layers.0.self_attn.{part}]: is missing");
            assert!(error.ends_with(&missing), "{error}");
        }
    }

    #[test]
    fn packing_a_dequantised_folder_gives_the_same_bytes() {
        let [first, floats, second] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let spec = spec("intermediate_size = 12");
        write_packed(first.path(), &spec, latents).unwrap();
        let packed = ModelFolder::open(first.path()).unwrap();
        write_floats(floats.path(), &spec, "float32", &dequantised(&packed));
        let source = ModelFolder::open(floats.path()).unwrap();
        write_packed(second.path(), &spec, |entry| source.floats(entry)).unwrap();
        for file in [MODEL_FILE, CONFIG_FILE] {
            let read = |dir: &tempfile::TempDir| fs_err::read(dir.path().join(file)).unwrap();
            assert!(read(&first) == read(&second), "{file}");
        }
        for entry in tensor_table(&spec) {
            let [a, b] = [&packed, &source].map(|folder| folder.matrix(&entry).unwrap());
            assert_eq!(a, b, "{}", entry.name);
        }
    }

    #[test]
    fn a_dequantised_folder_keeps_its_scale_through_bf16() {
        let [first, floats] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let spec = spec("intermediate_size = 12");
        write_packed(first.path(), &spec, latents).unwrap();
        let packed = ModelFolder::open(first.path()).unwrap();
        write_floats(floats.path(), &spec, "bfloat16", &dequantised(&packed));
        let source = ModelFolder::open(floats.path()).unwrap();
        for entry in tensor_table(&spec).iter().filter(|entry| entry.is_ternary(&spec)) {
            let (expected, exact) = packed.ternary(entry).unwrap();
            let rounded = half::bf16::from_f32(exact.multiplier()).to_f32();
            let scale = WeightScale::from_stored(rounded).unwrap();
            let codes = expected.codes();
            assert_eq!(source.matrix(entry).unwrap(), Matrix::Ternary { codes, scale });
        }
    }

    #[test]
    fn latents_stay_latents() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec("intermediate_size = 10");
        let table = tensor_table(&spec);
        let values: Vec<_> =
            table.iter().map(|entry| (entry.name.clone(), latents(entry).unwrap())).collect();
        write_floats(dir.path(), &spec, "float32", &values);
        let folder = ModelFolder::open(dir.path()).unwrap();
        for (entry, (_, values)) in table.iter().zip(values) {
            assert_eq!(folder.matrix(entry).unwrap(), Matrix::Latent(values));
        }
    }

    const SHARDS: [&str; 2] =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

    /// Moves every tensor of a folder into one of two shards, by turns.
    fn split(dir: &Path) {
        let file = TensorFile::open(&dir.join(MODEL_FILE)).unwrap();
        let mut weight_map = serde_json::Map::new();
        for (turn, shard) in SHARDS.into_iter().enumerate() {
            let names = file.names().into_iter().skip(turn).step_by(2);
            let tensors: Vec<_> = names.map(|name| (name.clone(), copy(&file, &name))).collect();
            for (name, _) in &tensors {
                weight_map.insert(name.clone(), shard.into());
            }
            write_tensors(&dir.join(shard), tensors).unwrap();
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
        fs_err::write(dir.join(INDEX_FILE), index.to_string()).unwrap();
        fs_err::remove_file(dir.join(MODEL_FILE)).unwrap();
    }

    fn copy(file: &TensorFile, name: &str) -> TensorData<'static> {
        let info = file.info(name).unwrap();
        let shape = info.shape.as_slice();
        match info.dtype {
            DType::U8 => TensorData::u8(shape, file.raw(name, shape, DType::U8).unwrap()),
            DType::Bf16 => TensorData::bf16(shape, &file.floats(name, shape).unwrap()),
            _ => TensorData::f32_owned(shape, &file.floats(name, shape).unwrap()),
        }
    }

    #[test]
    fn a_sharded_folder_is_the_same_model() {
        let [whole, sharded] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let spec = spec("intermediate_size = 12");
        for dir in [&whole, &sharded] {
            write_packed(dir.path(), &spec, latents).unwrap();
        }
        split(sharded.path());
        let [one, two] = [&whole, &sharded].map(|dir| ModelFolder::open(dir.path()).unwrap());
        for entry in tensor_table(&spec) {
            assert_eq!(one.matrix(&entry).unwrap(), two.matrix(&entry).unwrap());
        }
        assert_eq!(one.weight_files(), [whole.path().join(MODEL_FILE)]);
        let shard = |name: &str| sharded.path().join(name);
        assert_eq!(two.weight_files(), SHARDS.map(shard));
    }

    #[test]
    fn a_whole_file_is_preferred_to_an_index() {
        let dir = tempfile::tempdir().unwrap();
        write_packed(dir.path(), &spec("intermediate_size = 12"), latents).unwrap();
        fs_err::write(dir.path().join(INDEX_FILE), "broken").unwrap();
        assert!(ModelFolder::open(dir.path()).is_ok());
        fs_err::remove_file(dir.path().join(MODEL_FILE)).unwrap();
        let broken = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(broken.contains(INDEX_FILE), "{broken}");
        fs_err::remove_file(dir.path().join(INDEX_FILE)).unwrap();
        let neither = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(neither.contains("no weights; expected model.safetensors or"), "{neither}");
    }

    #[test]
    fn a_tensor_that_an_index_forgot_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_packed(dir.path(), &spec("intermediate_size = 12"), latents).unwrap();
        split(dir.path());
        let index = dir.path().join(INDEX_FILE);
        fs_err::write(&index, r#"{"weight_map": {}}"#).unwrap();
        let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
        let expected = "index.json [model.embed_tokens.weight]: is missing";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn a_missing_or_foreign_tensor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec("intermediate_size = 12");
        write_packed(dir.path(), &spec, latents).unwrap();
        let config = dir.path().join(CONFIG_FILE);
        let text = fs_err::read_to_string(&config).unwrap();
        let with = |layers: &str| text.replace("\"num_hidden_layers\": 1", layers);
        fs_err::write(&config, with("\"num_hidden_layers\": 2")).unwrap();
        let missing = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(missing.contains("[model.layers.1.input_layernorm.weight]: is missing"));
        fs_err::write(&config, text.replace("\"bitnet\",\n  \"hidden", "\"llama\",\n  \"hidden"))
            .unwrap();
        let foreign = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(foreign.ends_with("is not a tensor of this model"), "{foreign}");
    }

    #[test]
    fn the_directory_of_a_run_is_answered_with_its_model() {
        let dir = tempfile::tempdir().unwrap();
        let put = |folder: &str| {
            fs_err::create_dir_all(dir.path().join(folder)).unwrap();
            fs_err::write(dir.path().join(folder).join(CONFIG_FILE), "{}").unwrap();
        };
        let found =
            || model_of_run(dir.path()).map(|at| at.strip_prefix(dir.path()).unwrap().into());
        assert_eq!(found(), None::<PathBuf>);
        for folder in ["1-a/step-000002", "1-a/step-000010", "1-a/final", "2-b/final"] {
            put(folder);
        }
        assert_eq!(found(), Some("2-b/final".into()));
        let error = ModelFolder::open(&dir.path().join("1-a")).unwrap_err().to_string();
        assert!(error.contains("is the directory of a run; its model is"), "{error}");
        put("2-b/export/hf-packed");
        assert_eq!(found(), Some("2-b/export/hf-packed".into()));
        fs_err::remove_dir_all(dir.path().join("1-a/final")).unwrap();
        let unfinished = model_of_run(&dir.path().join("1-a")).unwrap();
        assert!(unfinished.ends_with("step-000010"));
    }
}
