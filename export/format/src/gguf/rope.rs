//! The rotary keys of a GGUF file.
//!
//! llama.cpp has the kinds `linear` and `yarn` under `rope.scaling.*`. What `llama3` does to each
//! pair stands in a tensor, `rope_freqs.weight [D/2]`, by which frequencies are divided; we write
//! the numbers that it follows from beside it, under keys that no other program reads. `dynamic`
//! has no place.

use serde_json::{Map, Value as Json, json};

use super::metadata::{Metadata, short};
use super::value::Value;
use crate::rope::RopeFrequencies;
use crate::rope_scaling::RopeScaling;
use crate::{FormatError, ModelSpec};

/// The tensor of `llama3`.
pub(crate) const FACTORS: &str = "rope_freqs.weight";

/// Puts the scaling of a model under the keys of its architecture, `put(key, value)`.
pub(super) fn describe(put: &mut dyn FnMut(&str, Value), spec: &ModelSpec) {
    let number = |value: f64| Value::F32(value as f32);
    let original =
        |tokens: Option<usize>| Value::U32(tokens.unwrap_or(spec.max_position_embeddings) as u32);
    match &spec.rope_scaling {
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", Value::String("linear".to_owned()));
            put("rope.scaling.factor", number(*factor));
        }
        Some(RopeScaling::Yarn(yarn)) => {
            put("rope.scaling.type", Value::String("yarn".to_owned()));
            put("rope.scaling.factor", number(yarn.factor));
            let tokens = original(yarn.original_max_position_embeddings);
            put("rope.scaling.original_context_length", tokens);
            put("rope.scaling.yarn_beta_fast", number(yarn.beta_fast));
            put("rope.scaling.yarn_beta_slow", number(yarn.beta_slow));
            let usual = usual_attention(yarn.factor);
            if (yarn.attention_factor() as f32).to_bits() != (usual as f32).to_bits() {
                // A ratio: llama.cpp multiplies what it finds here by its own factor.
                put("rope.scaling.attn_factor", number(yarn.attention_factor() / usual));
            }
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            put("rope.llama3.factor", number(*factor));
            put("rope.llama3.low_freq_factor", number(*low_freq_factor));
            put("rope.llama3.high_freq_factor", number(*high_freq_factor));
            let tokens = original(*original_max_position_embeddings);
            put("rope.llama3.original_context_length", tokens);
        }
        Some(RopeScaling::Dynamic { .. }) | None => {}
    }
}

/// What llama.cpp multiplies cosines and sines by under `yarn`.
fn usual_attention(factor: f64) -> f64 {
    1.0 + 0.1 * factor.max(1.0).ln()
}

/// Why GGUF cannot hold this scaling, if it cannot.
pub(super) fn unwritable(spec: &ModelSpec) -> Option<&'static str> {
    match &spec.rope_scaling {
        Some(RopeScaling::Dynamic { .. }) => Some("is dynamic, for which GGUF has no key"),
        Some(RopeScaling::Yarn(yarn)) if !yarn.truncate => {
            Some("has truncate = false, for which GGUF has no key")
        }
        _ => None,
    }
}

/// The values of [`FACTORS`] for a model that has them.
pub(crate) fn factors(spec: &ModelSpec) -> Option<Vec<f32>> {
    let Some(RopeScaling::Llama3 { .. }) = &spec.rope_scaling else { return None };
    let (plain, scaled) =
        (RopeFrequencies::new(spec.rope_theta, spec.head_dim), RopeFrequencies::of(spec));
    let pairs = plain.values().iter().zip(scaled.values());
    Some(pairs.map(|(plain, scaled)| plain / scaled).collect())
}

/// The scaling that a file states as a config would; `None` where it has none. Of a file with
/// [`FACTORS`] but none of our keys, [`published`] says which it is.
pub(super) fn read(metadata: &Metadata, name: &str) -> Result<Option<Json>, FormatError> {
    let key = |rest: &str| format!("{name}.rope.{rest}");
    let number = |rest: &str| Ok::<_, FormatError>(metadata.optional_f32(&key(rest))?.map(short));
    let kind_key = key("scaling.type");
    // As llama.cpp reads it: a factor without a kind is linear, and older files have it under another name.
    let factor = match number("scaling.factor")? {
        None => number("scale_linear")?,
        factor => factor,
    };
    let without_kind = factor.filter(|factor| (factor - 1.0).abs() > 0.0).map(|_| "linear");
    let kind = metadata.optional_str(&kind_key)?.or(without_kind);
    let mut table = Map::new();
    let mut set = |name: &str, value: Option<Json>| {
        table.extend(value.map(|value| (name.to_owned(), value)));
    };
    match kind {
        None | Some("none") => {
            let Some(factor) = number("llama3.factor")? else { return Ok(None) };
            set("rope_type", Some(json!("llama3")));
            set("factor", Some(json!(factor)));
            for bound in ["low_freq_factor", "high_freq_factor"] {
                set(bound, number(&format!("llama3.{bound}"))?.map(|number| json!(number)));
            }
            let tokens = metadata.optional_u32(&key("llama3.original_context_length"))?;
            set("original_max_position_embeddings", tokens.map(|tokens| json!(tokens)));
        }
        Some("linear") => {
            set("rope_type", Some(json!("linear")));
            set("factor", factor.map(|number| json!(number)));
        }
        Some("yarn") => {
            set("rope_type", Some(json!("yarn")));
            set("factor", factor.map(|number| json!(number)));
            let tokens = metadata.optional_u32(&key("scaling.original_context_length"))?;
            set("original_max_position_embeddings", tokens.map(|tokens| json!(tokens)));
            for beta in ["beta_fast", "beta_slow"] {
                let number = number(&format!("scaling.yarn_{beta}"))?;
                set(beta, number.map(|number| json!(number)));
            }
            let attention =
                number("scaling.attn_factor")?.filter(|times| (*times - 1.0).abs() > 0.0);
            let usual = usual_attention(factor.unwrap_or(1.0));
            // What is stored is a ratio, rounded to f32: so is what it stands for.
            let times = attention.map(|times| json!(short((times * usual) as f32)));
            set("attention_factor", times);
        }
        Some(other) => {
            let what = format!("{other:?} is not supported; expected none, linear or yarn");
            return Err(metadata.error(&kind_key, what));
        }
    }
    Ok(Some(Json::Object(table)))
}

/// The published `llama3` scaling whose factors these are: a file of another program does not say.
pub(super) fn published(spec: &ModelSpec, values: &[f32]) -> Option<RopeScaling> {
    // The slowest pairs are divided by all of it, so the largest value is the factor.
    let factor = values.iter().copied().fold(1.0, f32::max);
    let scaling = RopeScaling::Llama3 {
        factor: short(factor),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: Some(8192),
    };
    let spec = ModelSpec { rope_scaling: Some(scaling.clone()), ..spec.clone() };
    let close = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-4;
    let expected = factors(&spec)?;
    (expected.len() == values.len() && expected.iter().zip(values).all(close)).then_some(scaling)
}
