//! Which of llama.cpp's architectures a model is, what its keys say, and the names of its tensors.
//!
//! - `bitnet-b1.58`: relu² with sub-norms, what 2B4T is (`bitnet.cpp`, `ik_llama.cpp`);
//! - `bitnet`: `SiLU` with sub-norms, which unmodified llama.cpp runs too;
//! - `llama`: `SiLU` without sub-norms, with the rows of q and k in interleaved pairs.
//!
//! The first two turn positions in half-split pairs as Hugging Face does, so nothing is permuted.

use std::path::Path;

use serde_json::json;

use super::{Array, Metadata, Value};
use crate::table::LinearKind;
use crate::{FormatError, HiddenAct, ModelSpec, TensorEntry, TensorRole};

/// An architecture of llama.cpp and its relatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// relu² and sub-norms.
    BitnetB158,
    /// `SiLU` and sub-norms.
    Bitnet,
    /// `SiLU`, no sub-norms, interleaved pairs.
    Llama,
}

impl Architecture {
    /// The architecture of a model.
    ///
    /// # Errors
    /// relu² without sub-norms, which no program knows; `path` is for the message.
    pub fn of(path: &Path, spec: &ModelSpec) -> Result<Self, FormatError> {
        match (spec.hidden_act, spec.sub_norms) {
            (HiddenAct::Relu2, true) => Ok(Self::BitnetB158),
            (HiddenAct::Silu, true) => Ok(Self::Bitnet),
            (HiddenAct::Silu, false) => Ok(Self::Llama),
            (HiddenAct::Relu2, false) => {
                let what = "is relu2 without sub-norms, for which GGUF has no architecture; \
                            expected sub_norms = true or hidden_act = \"silu\"";
                Err(FormatError::config(path, "hidden_act", what))
            }
        }
    }

    /// Its name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet => "bitnet",
            Self::Llama => "llama",
        }
    }

    /// The architecture of a name; Microsoft's first upload said `bitnet-25`.
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "bitnet-b1.58" | "bitnet-25" => Some(Self::BitnetB158),
            "bitnet" => Some(Self::Bitnet),
            "llama" => Some(Self::Llama),
            _ => None,
        }
    }

    /// The row of our matrix that is row `row` of the file's, if the file orders rows otherwise:
    /// llama.cpp keeps the two values that a position turns side by side, Hugging Face half a head
    /// apart.
    pub fn source_row(self, entry: &TensorEntry, spec: &ModelSpec, row: usize) -> usize {
        let turned = matches!(entry.role, TensorRole::Linear(LinearKind::Q | LinearKind::K));
        if self != Self::Llama || !turned {
            return row;
        }
        let (head, within) = (row / spec.head_dim, row % spec.head_dim);
        head * spec.head_dim + (within % 2) * (spec.head_dim / 2) + within / 2
    }
}

/// Puts what the model is under the keys of its architecture.
pub(crate) fn describe(metadata: &mut Metadata, architecture: Architecture, spec: &ModelSpec) {
    let mut put = |key: &str, value: Value| {
        metadata.insert(format!("{}.{key}", architecture.name()), value);
    };
    let size = |size: usize| Value::U32(size as u32);
    put("vocab_size", size(spec.vocab_size));
    put("context_length", size(spec.max_position_embeddings));
    put("embedding_length", size(spec.hidden_size));
    put("block_count", size(spec.num_hidden_layers));
    put("feed_forward_length", size(spec.intermediate_size));
    put("rope.dimension_count", size(spec.head_dim));
    put("attention.head_count", size(spec.num_attention_heads));
    put("attention.head_count_kv", size(spec.num_key_value_heads));
    put("attention.layer_norm_rms_epsilon", Value::F32(spec.rms_norm_eps as f32));
    put("rope.freq_base", Value::F32(spec.rope_theta as f32));
    if spec.head_dim * spec.num_attention_heads != spec.hidden_size {
        put("attention.key_length", size(spec.head_dim));
        put("attention.value_length", size(spec.head_dim));
    }
    let act = match spec.hidden_act {
        HiddenAct::Relu2 => "relu2",
        HiddenAct::Silu => "silu",
    };
    put("hidden_activation", Value::String(act.to_owned()));
}

/// The keys that end a text, in the order of a model's stop ids.
const STOP_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// All stop ids, for models that have more of them than keys.
const ALL_STOPS: &str = "tokenizer.ggml.eos_token_ids";

/// Puts the model's own begin and stop ids over what its tokenizer says.
///
/// The first is what templates write as `eos_token`, so the tokenizer's own stays first.
pub(crate) fn describe_ids(metadata: &mut Metadata, spec: &ModelSpec) {
    if let Some(id) = spec.bos_token_id {
        metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(id));
    }
    if spec.eos_token_id.is_empty() {
        return;
    }
    let declared = match metadata.get(STOP_KEYS[0]) {
        Some(Value::U32(id)) => Some(*id),
        _ => None,
    };
    let mut stops = spec.eos_token_id.clone();
    stops.sort_by_key(|id| Some(*id) != declared);
    for (at, key) in STOP_KEYS.into_iter().enumerate() {
        match stops.get(at) {
            Some(id) => metadata.insert(key, Value::U32(*id)),
            None => metadata.remove(key),
        }
    }
    let ids = stops.into_iter().map(|id| id as i32).collect();
    metadata.insert(ALL_STOPS, Value::Array(Array::I32(ids)));
}

/// The stop ids of a file.
fn stop_ids(metadata: &Metadata) -> Result<Vec<u32>, FormatError> {
    if let Some(ids) = metadata.optional_i32s(ALL_STOPS)? {
        let id = |id: &i32| {
            u32::try_from(*id).map_err(|_| {
                metadata.error(ALL_STOPS, format!("holds {id}; expected ids of tokens"))
            })
        };
        return ids.iter().map(id).collect();
    }
    let ids = STOP_KEYS.into_iter().filter_map(|key| metadata.optional_u32(key).transpose());
    let mut stops = Vec::new();
    for id in ids {
        let id = id?;
        if !stops.contains(&id) {
            stops.push(id);
        }
    }
    Ok(stops)
}

/// What a file says its model is. `tied` is whether it has no head of its own.
pub(crate) fn read(
    metadata: &Metadata,
    vocab_size: usize,
    tied: bool,
) -> Result<(Architecture, ModelSpec), FormatError> {
    let fault = |key: &str, what: String| metadata.error(key, what);
    let name = metadata.str("general.architecture")?;
    let architecture = Architecture::from_name(name).ok_or_else(|| {
        let expected = "expected bitnet-b1.58, bitnet or llama";
        fault("general.architecture", format!("{name:?} is unknown; {expected}"))
    })?;
    let key = |rest: &str| format!("{name}.{rest}");
    let size = |rest: &str| metadata.u32(&key(rest));
    let number = |rest: &str| metadata.f32(&key(rest));
    let heads = size("attention.head_count")?;
    let hidden = size("embedding_length")?;
    let per_head = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = metadata.optional_u32(&key("attention.key_length"))?.unwrap_or(per_head);
    refuse_other_rope(metadata, name, head_dim)?;
    let act = match metadata.optional_str(&key("hidden_activation"))? {
        Some(act) => act,
        None if architecture == Architecture::BitnetB158 => "relu2",
        None => "silu",
    };
    let stops = stop_ids(metadata)?;
    let keys = json!({
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length")?,
        "num_hidden_layers": size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads":
            metadata.optional_u32(&key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "hidden_act": act,
        "rope_theta": short(metadata.optional_f32(&key("rope.freq_base"))?.unwrap_or(1e4)),
        "rms_norm_eps": short(number("attention.layer_norm_rms_epsilon")?),
        "tie_word_embeddings": tied,
        "max_position_embeddings": size("context_length")?,
        "bos_token_id": metadata.optional_u32("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": stops,
        "sub_norms": architecture != Architecture::Llama,
        "quantise": true,
    });
    let spec: ModelSpec =
        serde_json::from_value(keys).map_err(|error| fault(&key("*"), error.to_string()))?;
    Ok((architecture, spec))
}

/// An f32 as the f64 that its shortest decimal names: 1e-5 and not 9.99999974e-6.
fn short(value: f32) -> f64 {
    value.to_string().parse().expect("a printed number is a number")
}

fn refuse_other_rope(metadata: &Metadata, name: &str, head_dim: u32) -> Result<(), FormatError> {
    let turned = format!("{name}.rope.dimension_count");
    if let Some(width) = metadata.optional_u32(&turned)?.filter(|width| *width != head_dim) {
        let what = format!("is {width}; expected the whole head, {head_dim}");
        return Err(metadata.error(&turned, what));
    }
    let scaling = format!("{name}.rope.scaling.type");
    match metadata.optional_str(&scaling)? {
        None | Some("none") => Ok(()),
        Some(kind) => {
            let what = format!("{kind:?} is unknown; expected none");
            Err(metadata.error(&scaling, what))
        }
    }
}

/// The name of a tensor in GGUF files.
pub(crate) fn tensor_name(entry: &TensorEntry) -> String {
    let name = entry.name.strip_suffix(".weight").unwrap_or(&entry.name);
    let known = |name: &str, table: &[(&str, &'static str)]| {
        let found = table.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs);
        found.unwrap_or_else(|| panic!("{name} is in the tensor table"))
    };
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return format!("{}.weight", known(name, OUTER));
    };
    let (layer, part) = rest.split_once('.').expect("a block's tensor names its layer");
    format!("blk.{layer}.{}.weight", known(part, INNER))
}

const OUTER: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

const INNER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("mlp.down_proj", "ffn_down"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_table;

    fn spec(extra: &str) -> ModelSpec {
        toml::from_str(&format!(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 2\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n{extra}"
        ))
        .unwrap()
    }

    #[test]
    fn every_tensor_has_a_name_of_its_own() {
        let table = tensor_table(&spec("tie_word_embeddings = false"));
        let mut names: Vec<_> = table.iter().map(tensor_name).collect();
        assert_eq!(
            names[..3],
            ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]
        );
        assert_eq!(names.last().unwrap(), "output.weight");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), table.len());
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn what_is_described_is_read() {
        let path = Path::new("x.gguf");
        for extra in [
            "bos_token_id = 1\neos_token_id = [2, 3]\nrms_norm_eps = 1e-6",
            "hidden_act = \"silu\"\nhead_dim = 6\nrope_theta = 1e4",
            "hidden_act = \"silu\"\nsub_norms = false\ntie_word_embeddings = false",
        ] {
            let spec = spec(extra);
            let architecture = Architecture::of(path, &spec).unwrap();
            let mut metadata = Metadata::default();
            metadata.insert("general.architecture", text(architecture.name()));
            describe(&mut metadata, architecture, &spec);
            describe_ids(&mut metadata, &spec);
            let read = read(&metadata, spec.vocab_size, spec.tie_word_embeddings).unwrap();
            assert_eq!(read, (architecture, spec));
        }
    }

    #[test]
    fn relu2_without_sub_norms_has_no_architecture() {
        let error = Architecture::of(Path::new("x"), &spec("sub_norms = false")).unwrap_err();
        assert!(error.to_string().starts_with("x [hidden_act]: is relu2 without"), "{error}");
    }

    #[test]
    fn rows_of_llama_are_interleaved() {
        // Falcon-E's converter: reshape(heads, 2, half, K), swap the middle axes.
        let spec = spec("hidden_act = \"silu\"\nsub_norms = false");
        let table = tensor_table(&spec);
        let q = table.iter().find(|entry| entry.name.contains("q_proj")).unwrap();
        let rows: Vec<_> =
            (0..8).map(|row| Architecture::Llama.source_row(q, &spec, row)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        let v = table.iter().find(|entry| entry.name.contains("v_proj")).unwrap();
        assert_eq!(Architecture::Llama.source_row(v, &spec, 1), 1);
        assert_eq!(Architecture::Bitnet.source_row(q, &spec, 1), 1);
    }
}
