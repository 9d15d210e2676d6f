//! Which of llama.cpp's architectures a model is, and what its keys say.
//!
//! - `bitnet-b1.58`: relu² with sub-norms, what 2B4T is (`bitnet.cpp`, `ik_llama.cpp`);
//! - `bitnet`: `SiLU` with sub-norms, which unmodified llama.cpp runs too;
//! - `llama`: `SiLU` without sub-norms, with the rows of q and k in interleaved pairs;
//! - `qwen2`: the same with biases of q, k and v;
//! - `qwen3`: with norms of queries and keys.
//!
//! All but `llama` turn positions in half-split pairs as Hugging Face does, so nothing is permuted.

use std::path::Path;

use serde_json::json;

use super::metadata::short;
use super::{Array, Metadata, Value, rope};
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
    /// `SiLU`, no sub-norms, biases of q, k and v.
    Qwen2,
    /// `SiLU`, no sub-norms, norms of queries and keys.
    Qwen3,
}

impl Architecture {
    /// The architecture of a model.
    ///
    /// # Errors
    /// Combinations that no program knows, such as relu² without sub-norms; `path` is for the
    /// message.
    pub fn of(path: &Path, spec: &ModelSpec) -> Result<Self, FormatError> {
        let wrong = |field, what: &str| Err(FormatError::config(path, field, what));
        if let Some(what) = rope::unwritable(spec) {
            return wrong("rope_scaling", what);
        }
        match (spec.hidden_act, spec.sub_norms, spec.attention_bias, spec.qk_norm) {
            (HiddenAct::Relu2, true, false, false) => Ok(Self::BitnetB158),
            (HiddenAct::Silu, true, false, false) => Ok(Self::Bitnet),
            (HiddenAct::Silu, false, false, false) => Ok(Self::Llama),
            (HiddenAct::Silu, false, true, false) => Ok(Self::Qwen2),
            (HiddenAct::Silu, false, false, true) => Ok(Self::Qwen3),
            (HiddenAct::Relu2, false, ..) => {
                let what = "is relu2 without sub-norms, for which GGUF has no architecture; \
                            expected sub_norms = true or hidden_act = \"silu\"";
                wrong("hidden_act", what)
            }
            (_, sub_norms, bias, _) => {
                let field = if sub_norms { "sub_norms" } else { "qk_norm" };
                let with = if bias { "attention_bias" } else { "qk_norm" };
                let what = format!("stands beside {with}, for which GGUF has no architecture");
                wrong(field, &what)
            }
        }
    }

    /// Its name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BitnetB158 => "bitnet-b1.58",
            Self::Bitnet => "bitnet",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The architecture of a name; Microsoft's first upload said `bitnet-25`.
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "bitnet-b1.58" | "bitnet-25" => Some(Self::BitnetB158),
            "bitnet" => Some(Self::Bitnet),
            "llama" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// Whether it has sub-norms, which only ternary models have.
    pub(crate) fn has_sub_norms(self) -> bool {
        matches!(self, Self::BitnetB158 | Self::Bitnet)
    }

    /// Whether the rows of this tensor are in another order than ours.
    pub(crate) fn is_interleaved(self, entry: &TensorEntry) -> bool {
        let turned = matches!(entry.role, TensorRole::Linear(LinearKind::Q | LinearKind::K));
        self == Self::Llama && turned
    }

    /// The row of the file that is row `row` of our matrix.
    pub(crate) fn stored_row(self, entry: &TensorEntry, spec: &ModelSpec, row: usize) -> usize {
        if !self.is_interleaved(entry) {
            return row;
        }
        let (head, within, half) = (row / spec.head_dim, row % spec.head_dim, spec.head_dim / 2);
        head * spec.head_dim + 2 * (within % half) + within / half
    }

    /// The row of our matrix that is row `row` of the file's, if the file orders rows otherwise:
    /// llama.cpp keeps the two values that a position turns side by side, Hugging Face half a head
    /// apart.
    pub fn source_row(self, entry: &TensorEntry, spec: &ModelSpec, row: usize) -> usize {
        if !self.is_interleaved(entry) {
            return row;
        }
        let (head, within) = (row / spec.head_dim, row % spec.head_dim);
        // A head of 8, by our row numbers:
        //
        //    file  0 4 1 5 2 6 3 7        neighbours turn together
        //    ours  0 1 2 3 4 5 6 7        0 with 4, 1 with 5, …
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
    rope::describe(&mut put, spec);
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
    // A stable sort: the declared one moves to the front, the others keep their order.
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

/// What a file says its model is. `tied` is whether it has no head of its own, `has_codes` whether
/// any of its tensors is ternary.
pub(crate) fn read(
    metadata: &Metadata,
    vocab_size: usize,
    tied: bool,
    has_codes: bool,
) -> Result<(Architecture, ModelSpec), FormatError> {
    let fault = |key: &str, what: String| metadata.error(key, what);
    let name = metadata.str("general.architecture")?;
    let architecture = Architecture::from_name(name).ok_or_else(|| {
        let expected = "expected bitnet-b1.58, bitnet, llama, qwen2 or qwen3";
        fault("general.architecture", format!("{name:?} is unknown; {expected}"))
    })?;
    let key = |rest: &str| format!("{name}.{rest}");
    let size = |rest: &str| metadata.u32(&key(rest));
    let number = |rest: &str| metadata.f32(&key(rest));
    let heads = size("attention.head_count")?;
    let hidden = size("embedding_length")?;
    // Widths of heads are written only where they are not this.
    let per_head = hidden.checked_div(heads).unwrap_or(0);
    let head_dim = metadata.optional_u32(&key("attention.key_length"))?.unwrap_or(per_head);
    refuse_other_rope(metadata, name, head_dim)?;
    let act = match metadata.optional_str(&key("hidden_activation"))? {
        Some(act) => act,
        // Files of this architecture need not name it.
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
        "rope_scaling": rope::read(metadata, name)?,
        "sub_norms": architecture.has_sub_norms(),
        "attention_bias": architecture == Architecture::Qwen2,
        "qk_norm": architecture == Architecture::Qwen3,
        "quantise": has_codes || architecture.has_sub_norms(),
    });
    let spec: ModelSpec =
        serde_json::from_value(keys).map_err(|error| fault(&key("*"), error.to_string()))?;
    Ok((architecture, spec))
}

fn refuse_other_rope(metadata: &Metadata, name: &str, head_dim: u32) -> Result<(), FormatError> {
    let turned = format!("{name}.rope.dimension_count");
    if let Some(width) = metadata.optional_u32(&turned)?.filter(|width| *width != head_dim) {
        let what = format!("is {width}; expected the whole head, {head_dim}");
        return Err(metadata.error(&turned, what));
    }
    Ok(())
}

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

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn a_written_description_is_read_back() {
        let path = Path::new("x.gguf");
        for extra in [
            "bos_token_id = 1\neos_token_id = [2, 3]\nrms_norm_eps = 1e-6",
            "hidden_act = \"silu\"\nhead_dim = 6\nrope_theta = 1e4",
            "hidden_act = \"silu\"\nsub_norms = false\ntie_word_embeddings = false",
            "hidden_act = \"silu\"\nsub_norms = false\nattention_bias = true\n\
             rope_scaling = { rope_type = \"linear\", factor = 2.5 }",
            "hidden_act = \"silu\"\nsub_norms = false\nqk_norm = true\nhead_dim = 6\n\
             rope_scaling = { rope_type = \"yarn\", factor = 4.0, \
             original_max_position_embeddings = 1024, attention_factor = 1.5 }",
            "hidden_act = \"silu\"\nsub_norms = false\nrope_scaling = { rope_type = \"llama3\", \
             factor = 8.0, low_freq_factor = 1.0, high_freq_factor = 4.0, \
             original_max_position_embeddings = 64 }",
        ] {
            let spec = spec(extra);
            let architecture = Architecture::of(path, &spec).unwrap();
            let mut metadata = Metadata::default();
            metadata.insert("general.architecture", text(architecture.name()));
            describe(&mut metadata, architecture, &spec);
            describe_ids(&mut metadata, &spec);
            let (found, read) =
                read(&metadata, spec.vocab_size, spec.tie_word_embeddings, true).unwrap();
            assert_eq!((found, read), (architecture, spec));
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
        let back = |row| Architecture::Llama.stored_row(q, &spec, row);
        assert!(rows.iter().enumerate().all(|(row, &ours)| back(ours) == row));
        let v = table.iter().find(|entry| entry.name.contains("v_proj")).unwrap();
        assert_eq!(Architecture::Llama.source_row(v, &spec, 1), 1);
        assert_eq!(Architecture::Bitnet.source_row(q, &spec, 1), 1);
    }
}
