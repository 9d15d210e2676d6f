//! Keys of a `config.json` that change a model's arithmetic in ways that we do not follow. Ignoring
//! one would run another model without a word, so each is refused unless its value does nothing.

use serde_json::{Map, Value};

/// A field and what is wrong with it.
type Refused = (&'static str, String);

/// A key and whether a value of it leaves the arithmetic as it is.
type Key = (&'static str, fn(&Value) -> bool);

const KEYS: &[Key] = &[
    ("attention_bias", is_false),
    ("mlp_bias", is_false),
    ("use_bias", is_false),
    ("qkv_bias", is_false),
    ("use_qk_norm", is_false),
    ("qk_layernorm", is_false),
    ("parallel_attn", is_false),
    ("partial_rotary_factor", is_one),
    ("rotary_pct", is_one),
    ("embedding_multiplier", is_one),
    ("residual_multiplier", is_one),
    ("logits_scaling", is_one),
    ("logit_scale", is_one),
    // These replace the factor of attention or bound its values: that one of them happens to change
    // nothing depends on other keys.
    ("attention_multiplier", is_never),
    ("query_pre_attn_scalar", is_never),
    ("attn_logit_softcapping", is_never),
    ("final_logit_softcapping", is_never),
    ("clip_qkv", is_never),
    ("attention_chunk_size", is_never),
    ("layer_types", is_full_attention),
    ("no_rope_layers", is_all_ones),
    ("num_experts", is_at_most_one),
    ("num_local_experts", is_at_most_one),
    ("n_routed_experts", is_at_most_one),
];

/// Refuses by name what would change the arithmetic. A key that is `null` does not count.
pub(crate) fn check(keys: &Map<String, Value>) -> Result<(), Refused> {
    for (key, is_neutral) in KEYS {
        let value = keys.get(*key).filter(|value| !value.is_null());
        if let Some(value) = value.filter(|value| !is_neutral(value)) {
            return Err((key, format!("is {value}, which is not supported")));
        }
    }
    sliding_window(keys)
}

/// A window does nothing in a context that is not longer. Qwen's configs name one that they do not
/// use unless `use_sliding_window` says so; Mistral's class has one of 4,096 where a config does
/// not say.
fn sliding_window(keys: &Map<String, Value>) -> Result<(), Refused> {
    let set = |key: &str| keys.get(key).filter(|value| !value.is_null());
    let kind = set("model_type").and_then(Value::as_str).unwrap_or_default();
    if kind == "mistral" && !keys.contains_key("sliding_window") {
        let what = "is missing, which means a window of 4096; expected null".to_owned();
        return Err(("sliding_window", what));
    }
    let Some(window) = set("sliding_window") else { return Ok(()) };
    let is_used = match set("use_sliding_window") {
        Some(used) => *used != Value::Bool(false),
        None => !matches!(kind, "qwen2" | "qwen3"),
    };
    let context = set("max_position_embeddings").and_then(Value::as_u64);
    // Scaled positions make the context longer than this key says; transformers 5 has them in
    // `rope_parameters`, beside the base, with the kind "default" where there are none.
    let kind = |table: &Value| table["rope_type"].as_str().map(|kind| kind != "default");
    let is_scaled =
        set("rope_scaling").is_some() || set("rope_parameters").and_then(kind).unwrap_or(false);
    let covers = window.as_u64() >= context.or(Some(u64::MAX)) && !is_scaled;
    if !is_used || covers {
        return Ok(());
    }
    let what = format!("is {window}, which is not supported; expected null or the whole context");
    Err(("sliding_window", what))
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_never(_: &Value) -> bool {
    false
}

fn is_at_most_one(value: &Value) -> bool {
    value.as_f64().is_some_and(|count| count <= 1.0)
}

fn is_full_attention(value: &Value) -> bool {
    value.as_array().is_some_and(|all| all.iter().all(|one| one == "full_attention"))
}

fn is_all_ones(value: &Value) -> bool {
    value.as_array().is_some_and(|all| all.iter().all(is_one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(key: &str, value: Value) -> Option<String> {
        let keys = Map::from_iter([(key.to_owned(), value)]);
        check(&keys).err().map(|(field, what)| format!("{field} {what}"))
    }

    #[test]
    fn a_key_that_changes_the_arithmetic_is_refused_by_name() {
        for (key, value) in [
            ("sliding_window", json!(4096)),
            ("partial_rotary_factor", json!(0.5)),
            ("mlp_bias", json!(true)),
            ("attention_bias", json!(true)),
            ("attention_bias", json!("yes")),
            ("final_logit_softcapping", json!(30.0)),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("num_local_experts", json!(8)),
        ] {
            let said = error(key, value);
            assert!(said.as_ref().is_some_and(|said| said.starts_with(key)), "{key}: {said:?}");
        }
    }

    #[test]
    fn a_value_that_does_nothing_is_accepted() {
        for (key, value) in [
            ("sliding_window", Value::Null),
            ("partial_rotary_factor", json!(1.0)),
            ("mlp_bias", json!(false)),
            ("layer_types", json!(["full_attention"])),
            ("use_cache", json!(true)),
        ] {
            assert_eq!(error(key, value), None, "{key}");
        }
        let qwen = json!({"sliding_window": 32768, "use_sliding_window": false});
        assert!(check(qwen.as_object().unwrap()).is_ok());
        for (kind, keys, fits) in [
            ("qwen2", json!({"sliding_window": 4096}), true),
            ("qwen3", json!({"sliding_window": 4096, "use_sliding_window": true}), false),
            ("mistral", json!({"max_position_embeddings": 8192}), false),
            ("mistral", json!({"sliding_window": null}), true),
            ("mistral", json!({"sliding_window": 4096, "max_position_embeddings": 32768}), false),
            ("mistral", json!({"sliding_window": 4096, "max_position_embeddings": 4096}), true),
            (
                "mistral",
                json!({"sliding_window": 4096, "max_position_embeddings": 4096,
                    "rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
                false,
            ),
            (
                "mistral",
                json!({"sliding_window": 4096, "max_position_embeddings": 4096,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
                true,
            ),
        ] {
            let mut keys = keys.as_object().unwrap().clone();
            keys.insert("model_type".to_owned(), json!(kind));
            assert_eq!(check(&keys).is_ok(), fits, "{keys:?}");
        }
    }
}
