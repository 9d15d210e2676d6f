//! The model classes of transformers that are one configuration of our transformer each: what their
//! `model_type` says, and what they take where a `config.json` does not say.

use serde_json::{Map, Value, json};

use crate::ModelSpec;

/// A field and what is wrong with it.
type Refused = (&'static str, String);

/// A `model_type` of a `config.json`.
pub(crate) struct Family {
    /// The `model_type`.
    pub(crate) name: &'static str,
    /// The class.
    pub(crate) architecture: &'static str,
    sub_norms: bool,
    attention_bias: bool,
    qk_norm: bool,
    hidden_act: &'static str,
    rope_theta: f64,
    rms_norm_eps: f64,
    /// `None`: as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None`: the width divided by the query heads.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
}

const LLAMA: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    sub_norms: false,
    attention_bias: false,
    qk_norm: false,
    hidden_act: "silu",
    rope_theta: 10_000.0,
    rms_norm_eps: 1e-6,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
};

const BITNET: Family = Family {
    name: "bitnet",
    architecture: "BitNetForCausalLM",
    sub_norms: true,
    hidden_act: "relu2",
    rope_theta: 500_000.0,
    rms_norm_eps: 1e-5,
    num_key_value_heads: Some(5),
    ..LLAMA
};

const QWEN2: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    attention_bias: true,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..LLAMA
};

const QWEN3: Family = Family {
    name: "qwen3",
    architecture: "Qwen3ForCausalLM",
    attention_bias: false,
    qk_norm: true,
    head_dim: Some(128),
    ..QWEN2
};

const MISTRAL: Family = Family {
    name: "mistral",
    architecture: "MistralForCausalLM",
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    ..LLAMA
};

/// A combination that no class of transformers has, such as a Qwen3 with sub-norms. The name is one
/// that transformers does not know: any other would run another model there without a word.
const OWN: Family =
    Family { name: "bitnet_train", architecture: "BitnetTrainForCausalLM", ..LLAMA };

const FAMILIES: [Family; 6] = [BITNET, LLAMA, MISTRAL, QWEN2, QWEN3, OWN];

/// The keys of [`OWN`], each with what it says.
const OWN_KEYS: [&str; 3] = ["sub_norms", "query_key_value_bias", "qk_norm"];

impl Family {
    /// The family of a `config.json`.
    pub(crate) fn of(keys: &Map<String, Value>) -> Result<&'static Self, Refused> {
        let expected = "expected \"bitnet\", \"llama\", \"mistral\", \"qwen2\" or \"qwen3\"";
        let name = keys.get("model_type").and_then(Value::as_str);
        let name = name.ok_or_else(|| ("model_type", format!("is missing; {expected}")))?;
        FAMILIES
            .iter()
            .find(|family| family.name == name)
            .ok_or_else(|| ("model_type", format!("{name:?} is unknown; {expected}")))
    }

    /// The one whose class computes what `spec` says.
    pub(crate) fn of_spec(spec: &ModelSpec) -> &'static Self {
        let choices = [spec.sub_norms, spec.attention_bias, spec.qk_norm];
        // The first that fits: `llama` and `mistral` compute the same, and `llama` stands first.
        FAMILIES.iter().find(|family| family.choices() == choices).unwrap_or(&OWN)
    }

    fn choices(&self) -> [bool; 3] {
        [self.sub_norms, self.attention_bias, self.qk_norm]
    }

    fn is_own(&self) -> bool {
        self.name == OWN.name
    }

    /// Keys that only our own family writes.
    pub(crate) fn own_keys(&self, spec: &ModelSpec) -> Vec<(&'static str, bool)> {
        let choices = [spec.sub_norms, spec.attention_bias, spec.qk_norm];
        let all = OWN_KEYS.into_iter().zip(choices);
        all.filter(|_| self.is_own()).collect()
    }

    /// Adds to `table` what the class takes where `keys` do not say, and what it always has.
    pub(crate) fn complete(
        &self,
        keys: &Map<String, Value>,
        table: &mut Map<String, Value>,
    ) -> Result<(), Refused> {
        // `null` means as many as query heads in every class.
        let written = keys.contains_key("num_key_value_heads");
        let own = self.num_key_value_heads.filter(|_| !written).map(|count| json!(count));
        let heads = own.or_else(|| table.get("num_attention_heads").cloned());
        let head_dim = self.head_dim.filter(|_| !keys.contains_key("head_dim"));
        for (key, value) in [
            ("hidden_act", Some(json!(self.hidden_act))),
            ("rope_theta", Some(json!(self.rope_theta))),
            ("rms_norm_eps", Some(json!(self.rms_norm_eps))),
            ("tie_word_embeddings", Some(json!(false))),
            ("max_position_embeddings", Some(json!(self.max_position_embeddings))),
            ("initializer_range", Some(json!(0.02))),
            ("num_key_value_heads", heads),
            ("head_dim", head_dim.map(|width| json!(width))),
        ] {
            if let Some(value) = value {
                table.entry(key).or_insert(value);
            }
        }
        let names = ["sub_norms", "attention_bias", "qk_norm"];
        for ((name, own_key), choice) in names.into_iter().zip(OWN_KEYS).zip(self.choices()) {
            let choice = if self.is_own() { own_choice(keys, own_key)? } else { choice };
            table.insert(name.to_owned(), json!(choice));
        }
        Ok(())
    }
}

fn own_choice(keys: &Map<String, Value>, key: &'static str) -> Result<bool, Refused> {
    let value = keys.get(key);
    value.and_then(Value::as_bool).ok_or_else(|| {
        let got = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
        (key, format!("expected true or false, got {got}"))
    })
}
