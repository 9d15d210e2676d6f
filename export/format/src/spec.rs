//! What a model *is*: its shape and the choices that change its arithmetic.
//!
//! Keys are Hugging Face's. Defaults are those of bitnet-b1.58-2B-4T (arXiv 2504.12285 and its
//! `config.json`). `hf_config` reads and writes Hugging Face's own `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::FormatError;
use crate::foreign::{recognise, without_mark};
use crate::group::{ActivationForm, EmbeddingForm, Group, Quantiser};
use crate::input::{LARGEST_TEXT, read_text};
use crate::rope_scaling::RopeScaling;

/// The gate's activation in the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiddenAct {
    /// `max(x, 0)²`, what 2B4T was trained with.
    Relu2,
    /// `x · sigmoid(x)`, what Llama-shaped ternary models use.
    Silu,
}

/// The architecture of one model.
///
/// Invariants: every size is at least 1, `num_key_value_heads` divides `num_attention_heads`,
/// `head_dim` is even, `rms_norm_eps` and `rope_theta` are positive and finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SpecTable")]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of a config")]
pub struct ModelSpec {
    /// Width of the residual stream, `C`.
    pub hidden_size: usize,
    /// Width of the feed-forward block, `F`.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads, `H`.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `H / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of one head, `D`.
    pub head_dim: usize,
    /// Number of token ids, `V`.
    pub vocab_size: usize,
    /// The gate's activation.
    pub hidden_act: HiddenAct,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are scaled for texts longer than the model was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the projections to queries, keys and values have biases (Qwen2).
    pub attention_bias: bool,
    /// Whether the queries and the keys of each head are normalised before they are rotated
    /// (Qwen3).
    pub qk_norm: bool,
    /// Added to the mean square in every `RMSNorm`.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// The longest context that the model supports, in tokens, before `rope_scaling` of the kinds
    /// `linear` and `dynamic`: see [`ModelSpec::context_length`].
    pub max_position_embeddings: usize,
    /// Standard deviation of the initial matrices and embedding.
    pub initializer_range: f64,
    /// The same of a fresh token embedding. Small models need a larger one, so that the token's
    /// own identity is not lost among the outputs of the blocks; a tied head shares it.
    pub embedding_initializer_range: f64,
    /// The id that opens a document, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// The ids that end one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eos_token_id: Vec<u32>,
    /// Whether attention output and gated product are normalised (`attn_sub_norm`, `ffn_sub_norm`).
    pub sub_norms: bool,
    /// Ternary weights and 8-bit activations; `false` is the dense twin.
    pub quantise: bool,
    /// How matrices become ternary, and over which weights their scales are taken.
    #[serde(skip_serializing_if = "Quantiser::is_default")]
    pub quantiser: Quantiser,
    /// Whether embedding and head are ternary too.
    #[serde(skip_serializing_if = "EmbeddingForm::is_default")]
    pub embedding: EmbeddingForm,
    /// What ternary matrices are multiplied with.
    #[serde(skip_serializing_if = "ActivationForm::is_default")]
    pub activations: ActivationForm,
}

impl ModelSpec {
    /// Reads a config file (`configs/*.toml`).
    pub fn from_file(path: &Path) -> Result<Self, FormatError> {
        let wrong = |what: String| FormatError::Shape { path: path.to_owned(), what };
        if let Some(kind) = recognise(path) {
            return Err(wrong(format!("not a config; expected a TOML file, got {}", kind.name())));
        }
        let unreadable = |error: FormatError| {
            let text = error.to_string();
            // The text of an I/O error begins with the path, which ours names already.
            let reason = text.rsplit_once("`: ").map_or(text.as_str(), |(_, reason)| reason);
            wrong(format!("cannot read the config; expected a TOML file, got: {reason}"))
        };
        let text = read_text(path, LARGEST_TEXT).map_err(unreadable)?;
        toml::from_str(without_mark(&text)).map_err(|error| wrong(error.to_string()))
    }

    /// The longest context in tokens, scaled positions counted.
    pub fn context_length(&self) -> usize {
        let context = self.max_position_embeddings;
        self.rope_scaling.as_ref().map_or(context, |scaling| scaling.longest_context(context))
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads (and of all value heads) together.
    pub fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// A `ModelSpec` as written in a config file, before the rules between its keys are checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of a config")]
struct SpecTable {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_act")]
    hidden_act: HiddenAct,
    #[serde(default = "default_theta")]
    rope_theta: f64,
    rope_scaling: Option<RopeScaling>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    qk_norm: bool,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_range")]
    initializer_range: f64,
    embedding_initializer_range: Option<f64>,
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: OneOrMany,
    #[serde(default = "yes")]
    sub_norms: bool,
    #[serde(default = "yes")]
    quantise: bool,
    #[serde(default)]
    quantiser: Quantiser,
    #[serde(default)]
    embedding: EmbeddingForm,
    #[serde(default)]
    activations: ActivationForm,
}

/// Hugging Face writes one end id as a number and several as a list.
#[derive(Deserialize, Default)]
#[serde(untagged, expecting = "expected a token id or a list of them")]
pub(crate) enum OneOrMany {
    #[default]
    None,
    One(u32),
    Many(Vec<u32>),
}

impl From<OneOrMany> for Vec<u32> {
    fn from(ids: OneOrMany) -> Self {
        match ids {
            OneOrMany::None => Vec::new(),
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

fn default_act() -> HiddenAct {
    HiddenAct::Relu2
}
fn default_theta() -> f64 {
    500_000.0
}
fn default_eps() -> f64 {
    1e-5
}
fn default_positions() -> usize {
    4096
}
fn default_range() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}

impl TryFrom<SpecTable> for ModelSpec {
    type Error = String;

    fn try_from(table: SpecTable) -> Result<Self, String> {
        let heads = table.num_attention_heads;
        let head_dim = match table.head_dim {
            Some(width) => width,
            // transformers' rule for a config that names no width of heads.
            None if heads > 0 && table.hidden_size.is_multiple_of(heads) => {
                table.hidden_size / heads
            }
            None => {
                return Err(format!(
                    "hidden_size ({}) is not a multiple of num_attention_heads ({heads}); \
                     set head_dim",
                    table.hidden_size
                ));
            }
        };
        let spec = Self {
            hidden_size: table.hidden_size,
            intermediate_size: table.intermediate_size,
            num_hidden_layers: table.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: table.num_key_value_heads,
            head_dim,
            vocab_size: table.vocab_size,
            hidden_act: table.hidden_act,
            rope_theta: table.rope_theta,
            rope_scaling: table.rope_scaling,
            attention_bias: table.attention_bias,
            qk_norm: table.qk_norm,
            rms_norm_eps: table.rms_norm_eps,
            tie_word_embeddings: table.tie_word_embeddings,
            max_position_embeddings: table.max_position_embeddings,
            initializer_range: table.initializer_range,
            embedding_initializer_range: table
                .embedding_initializer_range
                .unwrap_or(table.initializer_range),
            bos_token_id: table.bos_token_id,
            eos_token_id: table.eos_token_id.into(),
            sub_norms: table.sub_norms,
            quantise: table.quantise,
            quantiser: table.quantiser,
            embedding: table.embedding,
            activations: table.activations,
        };
        // Sizes first: the checks after them divide and multiply by these.
        spec.check_sizes()?;
        spec.check_groups()?;
        spec.check_numbers()?;
        Ok(spec)
    }
}

/// No size above this is a model; it keeps every product of two sizes far from overflow.
const LARGEST_SIZE: usize = 1 << 28;

/// No model is deeper.
const MOST_LAYERS: usize = 4096;

/// No model is larger; counts of bytes and of operations stay far from overflow.
const MOST_PARAMETERS: u128 = 1 << 45;

impl ModelSpec {
    /// Parameters without the norms, in numbers that cannot overflow.
    fn count_widely(&self) -> u128 {
        // The product of four sizes of up to 2²⁸ does not fit 64 bits.
        let wide = |number: usize| number as u128;
        let heads = 2 * wide(self.num_attention_heads) + 2 * wide(self.num_key_value_heads);
        let of_a_layer = heads * wide(self.head_dim) + 3 * wide(self.intermediate_size);
        let layers = wide(self.num_hidden_layers) * of_a_layer;
        wide(self.hidden_size) * (layers + 2 * wide(self.vocab_size))
    }

    fn check_sizes(&self) -> Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, size) in sizes {
            // A list of all tensors is made before any is looked for.
            let largest = if name == "num_hidden_layers" { MOST_LAYERS } else { LARGEST_SIZE };
            if size == 0 || size > largest {
                return Err(format!("{name} must lie between 1 and {largest}, got {size}"));
            }
        }
        let parameters = self.count_widely();
        if parameters > MOST_PARAMETERS {
            return Err(format!(
                "num_hidden_layers and the widths make {parameters} parameters; expected at most \
                 {MOST_PARAMETERS}"
            ));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_key_value_heads ({}) must divide num_attention_heads ({})",
                self.num_key_value_heads, self.num_attention_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim must be even for RoPE, got {}", self.head_dim));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), String> {
        let positive = [
            ("rope_theta", self.rope_theta),
            ("rms_norm_eps", self.rms_norm_eps),
            ("initializer_range", self.initializer_range),
            ("embedding_initializer_range", self.embedding_initializer_range),
        ];
        for (name, value) in positive {
            // It is computed with in f32.
            if !((value as f32).is_finite() && value as f32 > 0.0) {
                return Err(format!("{name} must be a positive number of f32, got {value}"));
            }
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.check(self.head_dim)?;
        }
        let ids = self.bos_token_id.iter().chain(&self.eos_token_id);
        match ids.copied().find(|&id| id as usize >= self.vocab_size) {
            Some(id) => Err(format!("token id {id} lies outside vocab_size {}", self.vocab_size)),
            None => Ok(()),
        }
    }
}

impl ModelSpec {
    /// Columns that share a scale in a ternary matrix of `columns`; `None` for one scale a matrix.
    pub fn group_width(&self, columns: usize) -> Option<usize> {
        self.quantiser.group.width(columns)
    }

    /// Whether this is the quantiser of BitNet b1.58: a scale a matrix, float embedding and head,
    /// 8-bit activations.
    pub fn has_b158_quantiser(&self) -> bool {
        self.quantiser.is_default() && self.embedding.is_default() && self.activations.is_default()
    }

    fn check_groups(&self) -> Result<(), String> {
        // A group must not go over the end of a row: the widths are those of all rows of ternary
        // matrices.
        let Group::Columns(group) = self.quantiser.group else { return Ok(()) };
        let widths = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("the width of all query heads", self.query_width()),
        ];
        match widths.into_iter().find(|(_, width)| !width.is_multiple_of(group)) {
            Some((name, width)) => {
                Err(format!("quantiser.group ({group}) must divide {name} ({width})"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = "hidden_size = 256\nintermediate_size = 512\nnum_hidden_layers = 2\n\
        num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 1024\n";

    fn parse(extra: &str) -> Result<ModelSpec, String> {
        toml::from_str(&format!("{TINY}{extra}")).map_err(|error| error.to_string())
    }

    #[test]
    fn absent_keys_take_the_values_of_2b4t() {
        let spec = parse("").unwrap();
        assert_eq!(spec.head_dim, 64);
        assert_eq!(spec.rope_theta, 500_000.0);
        assert_eq!(spec.hidden_act, HiddenAct::Relu2);
        assert!(spec.tie_word_embeddings && spec.sub_norms && spec.quantise);
        assert_eq!(spec.initializer_range, 0.02);
    }

    #[test]
    fn contradictions_are_refused_with_both_values() {
        assert!(parse("head_dim = 63").unwrap_err().contains("head_dim must be even"));
        assert!(parse("bos_token_id = 1024").unwrap_err().contains("outside vocab_size 1024"));
        let vast = TINY.replace("= 256", "= 268435456").replace("= 512", "= 268435456");
        let error = toml::from_str::<ModelSpec>(&vast).unwrap_err().to_string();
        assert!(error.contains("parameters; expected at most"), "{error}");
        assert!(parse("hidden_sise = 3").unwrap_err().contains("unknown field"));
        assert!(parse("rms_norm_eps = nan").unwrap_err().contains("positive number"));
        let odd = TINY.replace("num_key_value_heads = 2", "num_key_value_heads = 3");
        let error = toml::from_str::<ModelSpec>(&odd).unwrap_err().to_string();
        assert!(error.contains("num_key_value_heads (3) must divide"), "{error}");
    }

    #[test]
    fn a_quantiser_is_read_and_must_fit_the_widths() {
        let spec = parse(
            "quantiser = { weights = \"absmean\", group = 128 }\nembedding = \"ternary\"\n\
             activations = \"none\"",
        )
        .unwrap();
        assert_eq!(spec.quantiser.group, Group::Columns(128));
        assert_eq!(spec.embedding, EmbeddingForm::Ternary);
        assert!(!spec.has_b158_quantiser() && parse("").unwrap().has_b158_quantiser());
        assert_eq!(spec, toml::from_str(&toml::to_string(&spec).unwrap()).unwrap());
        assert!(!toml::to_string(&parse("").unwrap()).unwrap().contains("quantiser"));
        for (extra, part) in [
            ("head_dim = 6\nquantiser = { group = 64 }", "query heads (24)"),
            ("quantiser = { group = 96 }", "quantiser.group is 96; expected"),
            ("quantiser = { weights = \"absmax\" }", "unknown variant `absmax`"),
            ("quantiser = { groups = 64 }", "unknown field `groups`"),
            ("embedding = \"half\"", "unknown variant `half`"),
        ] {
            let error = parse(extra).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let narrow = TINY.replace("= 512", "= 500");
        let text = format!("{narrow}quantiser = {{ group = 64 }}");
        let error = toml::from_str::<ModelSpec>(&text).unwrap_err().to_string();
        assert!(
            error.contains("quantiser.group (64) must divide intermediate_size (500)"),
            "{error}"
        );
    }

    #[test]
    fn the_published_2b4t_shape_has_its_published_size() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 2560\nintermediate_size = 6912\nnum_hidden_layers = 30\n\
             num_attention_heads = 20\nnum_key_value_heads = 5\nvocab_size = 128256",
        )
        .unwrap();
        assert_eq!(spec.parameters(), 2_412_820_480);
    }
}
