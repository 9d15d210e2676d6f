//! The one ordered list of a model's tensors: Hugging Face name, `[out, in]` shape, role.
//!
//! Model, optimizer, checkpoint, export and engine all walk this list; no other code spells a
//! tensor name.

use crate::ModelSpec;
use crate::group::EmbeddingForm;

/// The seven matrices of a block that are ternary in a quantised model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the files")]
pub enum LinearKind {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// What a tensor is for, which decides how it is trained, packed and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The token embedding `[V, C]`, the head too when tied. Ternary where `embedding` says so.
    Embedding,
    /// A matrix of a block: ternary when the model is quantised.
    Linear(LinearKind),
    /// A norm's gain: full precision, never decayed.
    Norm,
    /// What is added to the output of a matrix: full precision, never decayed.
    Bias,
    /// An untied head `[V, C]`. Ternary where `embedding` says so.
    Head,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Hugging Face name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `[out, in]`, or `[width]` for a norm or a bias.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
}

impl TensorEntry {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of values in a row; 1 for a norm or a bias.
    pub fn row_length(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Matrices have weight decay, norms and biases have none.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }

    /// Whether a quantised model holds this tensor as ternary codes.
    pub fn is_ternary(&self, spec: &ModelSpec) -> bool {
        let is_table = matches!(self.role, TensorRole::Embedding | TensorRole::Head);
        let is_linear = matches!(self.role, TensorRole::Linear(_));
        spec.quantise && (is_linear || is_table && spec.embedding == EmbeddingForm::Ternary)
    }

    /// Columns that share a scale, if a quantised model holds this tensor as codes with a scale for
    /// each row or group of columns.
    pub fn group_width(&self, spec: &ModelSpec) -> Option<usize> {
        if self.is_ternary(spec) { spec.group_width(self.shape[1]) } else { None }
    }
}

impl ModelSpec {
    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> usize {
        tensor_table(self).iter().map(TensorEntry::elements).sum()
    }
}

/// All tensors of a model, in the order of the forward pass.
pub fn tensor_table(spec: &ModelSpec) -> Vec<TensorEntry> {
    let width = spec.hidden_size;
    let mut table =
        vec![matrix("model.embed_tokens", spec.vocab_size, width, TensorRole::Embedding)];
    for layer in 0..spec.num_hidden_layers {
        push_block(&mut table, spec, layer);
    }
    table.push(norm("model.norm", width));
    // A tied head is the embedding and no tensor of its own.
    if !spec.tie_word_embeddings {
        table.push(matrix("lm_head", spec.vocab_size, width, TensorRole::Head));
    }
    table
}

fn push_block(table: &mut Vec<TensorEntry>, spec: &ModelSpec, layer: usize) {
    let (width, ffn) = (spec.hidden_size, spec.intermediate_size);
    let (queries, keys) = (spec.query_width(), spec.key_value_width());
    let at = |part: &str| format!("model.layers.{layer}.{part}");
    let linear = |part: &str, rows, columns, kind| {
        matrix(&at(part), rows, columns, TensorRole::Linear(kind))
    };
    table.push(norm(&at("input_layernorm"), width));
    for (part, rows, kind) in [
        ("self_attn.q_proj", queries, LinearKind::Q),
        ("self_attn.k_proj", keys, LinearKind::K),
        ("self_attn.v_proj", keys, LinearKind::V),
    ] {
        table.push(linear(part, rows, width, kind));
        // The bias stands behind its matrix, as in the modules of transformers.
        if spec.attention_bias {
            table.push(bias(&at(part), rows));
        }
    }
    // One gain for all heads: Qwen3 norms each head by itself with the same weights.
    if spec.qk_norm {
        table.push(norm(&at("self_attn.q_norm"), spec.head_dim));
        table.push(norm(&at("self_attn.k_norm"), spec.head_dim));
    }
    if spec.sub_norms {
        table.push(norm(&at("self_attn.attn_sub_norm"), queries));
    }
    table.push(linear("self_attn.o_proj", width, queries, LinearKind::O));
    table.push(norm(&at("post_attention_layernorm"), width));
    table.push(linear("mlp.gate_proj", ffn, width, LinearKind::Gate));
    table.push(linear("mlp.up_proj", ffn, width, LinearKind::Up));
    if spec.sub_norms {
        table.push(norm(&at("mlp.ffn_sub_norm"), ffn));
    }
    table.push(linear("mlp.down_proj", width, ffn, LinearKind::Down));
}

fn matrix(part: &str, rows: usize, columns: usize, role: TensorRole) -> TensorEntry {
    TensorEntry { name: format!("{part}.weight"), shape: vec![rows, columns], role }
}

fn norm(part: &str, width: usize) -> TensorEntry {
    TensorEntry { name: format!("{part}.weight"), shape: vec![width], role: TensorRole::Norm }
}

fn bias(part: &str, width: usize) -> TensorEntry {
    TensorEntry { name: format!("{part}.bias"), shape: vec![width], role: TensorRole::Bias }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> ModelSpec {
        toml::from_str(&format!(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n{extra}"
        ))
        .unwrap()
    }

    #[test]
    fn a_block_is_listed_in_the_order_of_the_forward_pass() {
        let names: Vec<_> = tensor_table(&spec("")).into_iter().map(|entry| entry.name).collect();
        let block = "model.layers.0";
        let expected = [
            "model.embed_tokens.weight".to_owned(),
            format!("{block}.input_layernorm.weight"),
            format!("{block}.self_attn.q_proj.weight"),
            format!("{block}.self_attn.k_proj.weight"),
            format!("{block}.self_attn.v_proj.weight"),
            format!("{block}.self_attn.attn_sub_norm.weight"),
            format!("{block}.self_attn.o_proj.weight"),
            format!("{block}.post_attention_layernorm.weight"),
            format!("{block}.mlp.gate_proj.weight"),
            format!("{block}.mlp.up_proj.weight"),
            format!("{block}.mlp.ffn_sub_norm.weight"),
            format!("{block}.mlp.down_proj.weight"),
            "model.norm.weight".to_owned(),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn biases_follow_their_matrices_and_head_norms_the_projections() {
        let table = tensor_table(&spec("attention_bias = true\nqk_norm = true\nhead_dim = 6"));
        let shown = |entry: &TensorEntry| {
            let name = entry.name.strip_prefix("model.layers.0.self_attn.")?;
            Some(format!("{name} {:?}", entry.shape))
        };
        let names: Vec<_> = table.iter().filter_map(shown).collect();
        let expected = [
            "q_proj.weight [12, 8]",
            "q_proj.bias [12]",
            "k_proj.weight [6, 8]",
            "k_proj.bias [6]",
            "v_proj.weight [6, 8]",
            "v_proj.bias [6]",
            "q_norm.weight [6]",
            "k_norm.weight [6]",
            "attn_sub_norm.weight [12]",
            "o_proj.weight [8, 12]",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn sub_norms_and_an_untied_head_are_config() {
        let table = tensor_table(&spec("sub_norms = false\ntie_word_embeddings = false"));
        assert!(table.iter().all(|entry| !entry.name.contains("sub_norm")));
        assert_eq!(table.last().unwrap().role, TensorRole::Head);
    }
}
