//! A model folder as Hugging Face lays it out: `config.json` and `model.safetensors`.
//!
//! One reader for every storage form, one writer for the packed form. Tokenizer files lie in the
//! same folder but are not this crate's business.

use std::path::Path;

use crate::packed::PackedTernary;
use crate::quant::WeightScale;
use crate::tensors::{Dtype, TensorData, TensorFile, write_tensors};
use crate::{FormatError, HfConfig, ModelSpec, TensorEntry, WeightForm, tensor_table};

/// The model's shape in a folder.
pub const CONFIG_FILE: &str = "config.json";
/// The tensors in a folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// The tokenizer in a folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// An open model folder; its config and tensor header have been checked against each other.
#[derive(Debug)]
pub struct ModelFolder {
    config: HfConfig,
    tensors: TensorFile,
}

impl ModelFolder {
    /// Opens a folder and checks that exactly the model's tensors are there.
    pub fn open(dir: &Path) -> Result<Self, FormatError> {
        let config = HfConfig::read(&dir.join(CONFIG_FILE))?;
        let tensors = TensorFile::open(&dir.join(MODEL_FILE))?;
        let folder = Self { config, tensors };
        folder.check_names()?;
        Ok(folder)
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.config.spec
    }

    /// How its matrices are stored.
    pub fn form(&self) -> WeightForm {
        self.config.form
    }

    /// A float tensor: embedding, head, norm, or a latent matrix.
    pub fn floats(&self, entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
        self.tensors.finite_floats(&entry.name, &entry.shape)
    }

    /// A packed matrix with its scale, whatever the folder calls a scale.
    pub fn ternary(
        &self,
        entry: &TensorEntry,
    ) -> Result<(PackedTernary, WeightScale), FormatError> {
        let broken = |what: String| FormatError::tensor(self.tensors.path(), &entry.name, what);
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        let bytes = self.tensors.raw(&entry.name, &[rows.div_ceil(4), columns], Dtype::U8)?;
        let packed = PackedTernary::from_bytes(rows, columns, bytes.to_vec())
            .map_err(|error| broken(error.to_string()))?;
        let stored = self.tensors.floats(&scale_name(&entry.name), &[1])?[0];
        let multiplier = match self.config.form {
            WeightForm::PackedDividing => 1.0 / stored,
            WeightForm::Latent | WeightForm::PackedMultiplying => stored,
        };
        let scale = WeightScale::from_stored(multiplier).ok_or_else(|| {
            broken(format!("has weight_scale {stored}; expected a positive finite number"))
        })?;
        Ok((packed, scale))
    }

    fn check_names(&self) -> Result<(), FormatError> {
        let packed = self.config.form != WeightForm::Latent;
        let mut expected = Vec::new();
        for entry in tensor_table(&self.config.spec) {
            if packed && entry.is_ternary(&self.config.spec) {
                expected.push(scale_name(&entry.name));
            }
            expected.push(entry.name);
        }
        let path = self.tensors.path();
        if let Some(name) = expected.iter().find(|name| !self.tensors.contains(name)) {
            return Err(FormatError::tensor(path, name, "is missing"));
        }
        // A tied model may still carry a copy of its head; everything else unknown is a mistake.
        let known = |name: &String| expected.contains(name) || self.is_tied_head(name);
        match self.tensors.names().iter().find(|name| !known(name)) {
            Some(name) => Err(FormatError::tensor(path, name, "is not a tensor of this model")),
            None => Ok(()),
        }
    }

    fn is_tied_head(&self, name: &str) -> bool {
        self.config.spec.tie_word_embeddings && name == "lm_head.weight"
    }
}

/// The tensor that holds a packed matrix's scale: `….weight` → `….weight_scale`.
fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

/// Writes a packed folder (`autobitlinear`, `offline`) into the existing directory `dir`.
///
/// Matrices of the blocks become U8 `[N/4, K]` with an F32 `weight_scale [1]` = mean |w| that
/// multiplies; embedding, head and norms are rounded to BF16. `latents` gives the f32 values of
/// one tensor of the table at a time. A matrix whose rows cannot be packed is refused by name
/// before anything is written.
pub fn write_packed(
    dir: &Path,
    spec: &ModelSpec,
    mut latents: impl FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>,
) -> Result<(), FormatError> {
    let path = dir.join(MODEL_FILE);
    let table = tensor_table(spec);
    check_packable(&path, spec, &table)?;
    let mut tensors = Vec::new();
    for entry in &table {
        let values = latents(entry)?;
        if !entry.is_ternary(spec) {
            tensors.push((entry.name.clone(), TensorData::bf16(&entry.shape, &values)));
            continue;
        }
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        let (packed, scale) = PackedTernary::from_latents(rows, columns, &values)
            .map_err(|error| FormatError::tensor(&path, &entry.name, error.to_string()))?;
        let bytes = packed.bytes().to_vec();
        tensors.push((entry.name.clone(), TensorData::u8(&[rows / 4, columns], bytes)));
        tensors.push((scale_name(&entry.name), one_f32(scale.multiplier())));
    }
    write_tensors(&path, tensors)?;
    let config = HfConfig { spec: spec.clone(), form: WeightForm::PackedMultiplying };
    fs_err::write(dir.join(CONFIG_FILE), config.to_json("bfloat16"))?;
    Ok(())
}

fn one_f32(value: f32) -> TensorData<'static> {
    TensorData::f32_owned(&[1], &[value])
}

fn check_packable(path: &Path, spec: &ModelSpec, table: &[TensorEntry]) -> Result<(), FormatError> {
    if !spec.quantise {
        let what = "is a dense model (quantise = false); only ternary matrices can be packed";
        return Err(FormatError::container(path, what));
    }
    let uneven = |entry: &&TensorEntry| entry.is_ternary(spec) && !entry.shape[0].is_multiple_of(4);
    match table.iter().find(uneven) {
        Some(entry) => {
            let what = format!("has {} rows; packing needs a multiple of 4", entry.shape[0]);
            Err(FormatError::tensor(path, &entry.name, what))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
