//! The names that llama.cpp gives to our tensors.

use crate::TensorEntry;

/// The name of a tensor in GGUF files.
pub(crate) fn tensor_name(entry: &TensorEntry) -> String {
    let (name, kind) =
        entry.name.rsplit_once('.').expect("a tensor is the weight or bias of a module");
    let known = |name: &str, table: &[(&str, &'static str)]| {
        let found = table.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs);
        found.unwrap_or_else(|| panic!("{name} is in the tensor table"))
    };
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return format!("{}.{kind}", known(name, OUTER));
    };
    let (layer, part) = rest.split_once('.').expect("a block's tensor names its layer");
    format!("blk.{layer}.{}.{kind}", known(part, INNER))
}

const OUTER: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

const INNER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
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
    use crate::{ModelSpec, tensor_table};

    #[test]
    fn every_tensor_has_a_name_of_its_own() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 2\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n\
             tie_word_embeddings = false\nattention_bias = true\nqk_norm = true",
        )
        .unwrap();
        let table = tensor_table(&spec);
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
}
