//! Hugging Face's `config.json`, read and written.
//!
//! What HF spreads over several keys becomes a [`ModelSpec`] and a [`WeightForm`]: sub-norms,
//! biases and norms of heads follow from `model_type` (`hf_family`), quantisation from the presence
//! of `quantization_config`, and the meaning of `weight_scale` from its `linear_class`
//! (`autobitlinear` multiplies, `bitlinear` divides: the silent trap of this format). Keys that
//! would change the arithmetic in a way that we do not follow are refused (`neutral`).

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::hf_family::Family;
use crate::json::{object_of, read_object};
use crate::{FormatError, ModelSpec, hf_rope, neutral};

/// The key of a value that cannot be used, and what is wrong with it in words for people.
fn wrong_value(
    error: serde_path_to_error::Error<serde_json::Error>,
) -> (Cow<'static, str>, String) {
    let path = error.path().to_string();
    // What follows from several keys has none.
    let field = if path == "." { String::new() } else { path };
    let mut what = error.into_inner().to_string();
    for (rust, plain) in [
        ("expected usize", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("invalid type: ", "wrong value; got "),
        ("invalid value: ", "wrong value; got "),
        ("unknown variant ", "is not supported: "),
    ] {
        what = what.replace(rust, plain);
    }
    (field.into(), what)
}

/// How the matrices of a folder are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// Latent (or dense) float matrices: a checkpoint or a BF16 master.
    Latent,
    /// Packed codes whose `weight_scale` multiplies (`autobitlinear`, `offline`).
    PackedMultiplying,
    /// Packed codes whose `weight_scale` divides (`bitlinear`).
    PackedDividing,
}

/// A `config.json`: what the model is and how its matrices are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// The architecture.
    pub spec: ModelSpec,
    /// The storage of the matrices.
    pub form: WeightForm,
}

impl HfConfig {
    /// Reads a `config.json`. Keys of other programs are ignored, contradictions are not.
    pub fn read(path: &Path) -> Result<Self, FormatError> {
        Self::of_keys(path, &read_object(path)?)
    }

    /// Reads a `config.json` in memory; `path` is for messages.
    pub fn from_bytes(path: &Path, text: &[u8]) -> Result<Self, FormatError> {
        Self::of_keys(path, &object_of(path, text)?)
    }

    fn of_keys(path: &Path, keys: &Map<String, Value>) -> Result<Self, FormatError> {
        Self::from_keys(keys).map_err(|(field, what)| FormatError::config(path, &field, what))
    }

    fn from_keys(keys: &Map<String, Value>) -> Result<Self, (Cow<'static, str>, String)> {
        let named = |(field, what): (&'static str, String)| (Cow::Borrowed(field), what);
        let family = Family::of(keys).map_err(named)?;
        let form = form_of(keys).map_err(named)?;
        neutral::check(keys).map_err(named)?;
        let mut table = Map::new();
        for key in SHARED_KEYS {
            // transformers writes null for a setting that is not set; the default of the class then
            // counts.
            if let Some(value) = keys.get(*key).filter(|value| !value.is_null()) {
                table.insert((*key).to_owned(), value.clone());
            }
        }
        if let Some(theta) = hf_rope::theta(keys).map_err(named)? {
            table.insert("rope_theta".to_owned(), theta);
        }
        if let Some(scaling) = hf_rope::scaling(keys).map_err(named)? {
            table.insert("rope_scaling".to_owned(), json!(scaling));
        }
        family.complete(keys, &mut table).map_err(named)?;
        // A folder without `quantization_config` is dense for transformers, whatever its values
        // are.
        table.insert("quantise".to_owned(), json!(form.is_some()));
        insert_quantiser(keys, &mut table);
        let spec = serde_path_to_error::deserialize(Value::Object(table)).map_err(wrong_value)?;
        Ok(Self { spec, form: form.unwrap_or(WeightForm::Latent) })
    }

    /// The text of a `config.json` that transformers 4.5x and 5.x both understand.
    pub fn to_json(&self, dtype: &str) -> String {
        let spec = &self.spec;
        let family = Family::of_spec(spec);
        let mut config = json!({
            "architectures": [family.architecture],
            "model_type": family.name,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_hidden_layers,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "vocab_size": spec.vocab_size,
            "hidden_act": spec.hidden_act,
            "max_position_embeddings": spec.max_position_embeddings,
            // transformers 4 reads this key and `torch_dtype`, 5 reads `rope_parameters` and
            // `dtype`.
            "rope_theta": spec.rope_theta,
            "rope_parameters": hf_rope::parameters(spec.rope_theta, spec.rope_scaling.as_ref()),
            "rms_norm_eps": spec.rms_norm_eps,
            "tie_word_embeddings": spec.tie_word_embeddings,
            "initializer_range": spec.initializer_range,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": spec.bos_token_id,
            "eos_token_id": eos_value(&spec.eos_token_id),
            "dtype": dtype,
            "torch_dtype": dtype,
        });
        if let Some(scaling) = &spec.rope_scaling {
            config["rope_scaling"] = json!(scaling);
        }
        for (key, choice) in family.own_keys(spec) {
            config[key] = json!(choice);
        }
        if let Some(quantisation) = self.quantization_config() {
            config["quantization_config"] = quantisation;
        }
        let text = serde_json::to_string_pretty(&config).expect("a JSON value always serialises");
        text + "\n"
    }

    fn quantization_config(&self) -> Option<Value> {
        let (class, mode) = match (self.form, self.spec.quantise) {
            (WeightForm::Latent, false) => return None,
            (WeightForm::Latent, true) => ("autobitlinear", "online"),
            (WeightForm::PackedMultiplying, _) => ("autobitlinear", "offline"),
            (WeightForm::PackedDividing, _) => ("bitlinear", "offline"),
        };
        let mut config =
            json!({"quant_method": "bitnet", "linear_class": class, "quantization_mode": mode});
        let spec = &self.spec;
        if !spec.quantiser.is_default() {
            config["quantiser"] = json!(spec.quantiser);
        }
        if !spec.embedding.is_default() {
            config["embedding"] = json!(spec.embedding);
        }
        if !spec.activations.is_default() {
            config["activations"] = json!(spec.activations);
        }
        Some(config)
    }
}

/// Keys that mean the same to Hugging Face and to [`ModelSpec`].
const SHARED_KEYS: &[&str] = &[
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
];

pub(crate) fn eos_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// `None`: a dense model.
fn form_of(keys: &Map<String, Value>) -> Result<Option<WeightForm>, (&'static str, String)> {
    let field = "quantization_config";
    let Some(config) = keys.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if text("quant_method") != Some("bitnet") {
        return Err((field, format!("quant_method must be \"bitnet\", got {config}")));
    }
    if config.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
        let what = "use_rms_norm is not supported: norms inside of linear layers; expected false";
        return Err((field, what.to_owned()));
    }
    // The head and the embedding are never ternary for transformers.
    let kept = config.get("modules_to_not_convert").and_then(Value::as_array);
    let is_table = |name: &&Value| {
        let last = name.as_str().and_then(|name| name.rsplit('.').next());
        matches!(last, Some("lm_head" | "embed_tokens"))
    };
    if let Some(name) = kept.into_iter().flatten().find(|name| !is_table(name)) {
        let what = format!("modules_to_not_convert names {name}; expected lm_head or nothing");
        return Err((field, what));
    }
    // transformers' defaults: bitlinear, offline.
    let class = text("linear_class").unwrap_or("bitlinear");
    let mode = text("quantization_mode").unwrap_or("offline");
    match (class, mode) {
        ("autobitlinear", "online") => Ok(Some(WeightForm::Latent)),
        ("autobitlinear", "offline") => Ok(Some(WeightForm::PackedMultiplying)),
        ("bitlinear", "offline") => Ok(Some(WeightForm::PackedDividing)),
        _ => Err((field, format!("linear_class {class:?} with mode {mode:?} is unknown"))),
    }
}

/// What this project adds to `quantization_config` where a model is not quantised as BitNet b1.58.
fn insert_quantiser(keys: &Map<String, Value>, table: &mut Map<String, Value>) {
    for key in ["quantiser", "embedding", "activations"] {
        if let Some(value) = keys.get("quantization_config").and_then(|config| config.get(key)) {
            table.insert(key.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::{ActivationForm, EmbeddingForm, Group, Quantiser};
    use crate::{HiddenAct, RopeScaling};

    fn read(value: &Value) -> Result<HfConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs_err::write(&path, value.to_string()).unwrap();
        HfConfig::read(&path).map_err(|error| error.to_string())
    }

    fn microsoft() -> Value {
        json!({
            "model_type": "bitnet", "hidden_size": 2560, "intermediate_size": 6912,
            "num_hidden_layers": 30, "num_attention_heads": 20, "num_key_value_heads": 5,
            "vocab_size": 128_256, "hidden_act": "relu2", "max_position_embeddings": 4096,
            "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "bos_token_id": 128_000, "eos_token_id": [128_001, 128_009], "use_cache": true,
            "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "bitnet",
            "linear_class": "autobitlinear", "quantization_mode": "offline"}
        })
    }

    #[test]
    fn the_published_config_is_read() {
        let config = read(&microsoft()).unwrap();
        assert_eq!(config.form, WeightForm::PackedMultiplying);
        assert_eq!(config.spec.parameters(), 2_412_820_480);
        assert_eq!(config.spec.eos_token_id, [128_001, 128_009]);
    }

    #[test]
    fn both_spellings_of_rope_theta_are_read() {
        let mut config = microsoft();
        config["rope_parameters"] = json!({"rope_theta": 1e4, "rope_type": "default"});
        assert!(read(&config).unwrap_err().contains("under rope_parameters"));
        config["rope_theta"] = Value::Null;
        assert_eq!(read(&config).unwrap().spec.rope_theta, 1e4);
    }

    #[test]
    fn the_model_type_decides_what_a_missing_key_means() {
        let bare = |kind: &str| {
            let mut config = microsoft();
            config["model_type"] = json!(kind);
            for key in ["hidden_act", "rope_theta", "rms_norm_eps", "num_key_value_heads"] {
                config.as_object_mut().unwrap().remove(key);
            }
            let spec = read(&config).unwrap().spec;
            (spec.hidden_act, spec.rope_theta, spec.rms_norm_eps, spec.num_key_value_heads)
        };
        assert_eq!(bare("llama"), (HiddenAct::Silu, 1e4, 1e-6, 20));
        assert_eq!(bare("bitnet"), (HiddenAct::Relu2, 5e5, 1e-5, 5));
    }

    #[test]
    fn what_is_written_is_read_as_the_same_model() {
        let spec = read(&microsoft()).unwrap().spec;
        let dense = ModelSpec { quantise: false, sub_norms: false, ..spec.clone() };
        let yarn = RopeScaling::Yarn(serde_json::from_value(json!({"factor": 4.0})).unwrap());
        let qwen2 = ModelSpec { attention_bias: true, rope_scaling: Some(yarn), ..dense.clone() };
        let qwen3 = ModelSpec { qk_norm: true, head_dim: 64, ..dense.clone() };
        let own = ModelSpec { sub_norms: true, ..qwen3.clone() };
        for (spec, kind) in [(&qwen2, "qwen2"), (&qwen3, "qwen3"), (&own, "bitnet_train")] {
            let config = HfConfig { spec: spec.clone(), form: WeightForm::Latent };
            let written: Value = serde_json::from_str(&config.to_json("bfloat16")).unwrap();
            assert_eq!((&written["model_type"], read(&written).unwrap()), (&json!(kind), config));
        }
        let grouped = ModelSpec {
            quantiser: Quantiser { group: Group::Columns(128), ..Quantiser::default() },
            embedding: EmbeddingForm::Ternary,
            activations: ActivationForm::None,
            ..spec.clone()
        };
        for (spec, form) in [
            (grouped, WeightForm::PackedMultiplying),
            (spec.clone(), WeightForm::Latent),
            (spec.clone(), WeightForm::PackedMultiplying),
            (spec, WeightForm::PackedDividing),
            (dense, WeightForm::Latent),
        ] {
            let config = HfConfig { spec, form };
            let written: Value = serde_json::from_str(&config.to_json("bfloat16")).unwrap();
            assert_eq!(written["dtype"], written["torch_dtype"]);
            assert_eq!(read(&written).unwrap(), config);
        }
    }

    #[test]
    fn models_we_cannot_run_are_refused_by_field() {
        for (key, value, part) in [
            ("model_type", json!("gpt2"), "[model_type]"),
            ("attention_bias", json!(true), "[attention_bias]"),
            ("quantization_config", json!({"quant_method": "gptq"}), "[quantization_config]"),
            (
                "quantization_config",
                json!({"quant_method": "bitnet", "use_rms_norm": true}),
                "[quantization_config]: use_rms_norm is not supported",
            ),
            (
                "quantization_config",
                json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", "q_proj"]}),
                "[quantization_config]: modules_to_not_convert names \"q_proj\"",
            ),
            ("num_key_value_heads", json!(7), "must divide"),
            ("hidden_size", json!("256"), "[hidden_size]: wrong value; got string"),
            ("rms_norm_eps", json!(true), "[rms_norm_eps]: wrong value; got boolean"),
            ("rms_norm_eps", json!(1e39), "positive number of f32"),
            ("eos_token_id", json!(-1), "[eos_token_id]: expected a token id or a list"),
            ("hidden_act", json!("gelu"), "[hidden_act]: is not supported: `gelu`"),
        ] {
            let mut config = microsoft();
            config[key] = value;
            let error = read(&config).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
