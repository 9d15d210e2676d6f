//! The rotary keys of a `config.json`: `rope_theta` and `rope_scaling` of transformers 4, and
//! `rope_parameters` of transformers 5, which holds both.

use serde_json::{Map, Value, json};

use crate::rope_scaling::RopeScaling;

/// A field and what is wrong with it.
type Refused = (&'static str, String);

/// The kinds, each with its keys and those that it does not use.
const KINDS: [(&str, &[&str], &[&str]); 4] = [
    ("linear", &["factor"], &["original_max_position_embeddings"]),
    ("dynamic", &["factor"], &["original_max_position_embeddings"]),
    (
        "llama3",
        &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        &[],
    ),
    (
        "yarn",
        &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        &[],
    ),
];

/// Keys beside those of a kind.
const COMMON: [&str; 5] = ["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"];

/// transformers 5 writes `rope_parameters.rope_theta`, older files `rope_theta`.
pub(crate) fn theta(keys: &Map<String, Value>) -> Result<Option<Value>, Refused> {
    let nested = keys.get("rope_parameters").and_then(|value| value.get("rope_theta"));
    let top = keys.get("rope_theta").filter(|value| !value.is_null());
    match (nested, top) {
        (Some(a), Some(b)) if a.as_f64() != b.as_f64() => {
            Err(("rope_theta", format!("is {b} here and {a} under rope_parameters")))
        }
        (a, b) => Ok(a.or(b).cloned()),
    }
}

/// What scales the frequencies, if anything does.
pub(crate) fn scaling(keys: &Map<String, Value>) -> Result<Option<RopeScaling>, Refused> {
    let old = scaling_of("rope_scaling", keys, false)?;
    let new = scaling_of("rope_parameters", keys, true)?;
    match (old, new) {
        (Some(a), Some(b)) if a != b => {
            Err(("rope_scaling", "differs from rope_parameters; expected the same".to_owned()))
        }
        (a, b) => Ok(a.or(b)),
    }
}

/// transformers 5 writes `rope_parameters` with every model, and older versions `rope_scaling` only
/// where something is scaled.
fn scaling_of(
    field: &'static str,
    keys: &Map<String, Value>,
    always: bool,
) -> Result<Option<RopeScaling>, Refused> {
    let Some(value) = keys.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let wrong = |what: String| (field, format!("{value} {what}"));
    let object = value.as_object().ok_or_else(|| wrong("is no object".to_owned()))?;
    let part = object.get("partial_rotary_factor").filter(|part| !part.is_null());
    if part.is_some_and(|part| part.as_f64() != Some(1.0)) {
        return Err(wrong("is not supported; expected partial_rotary_factor 1".to_owned()));
    }
    let kind = object.get("rope_type").or_else(|| object.get("type"));
    let kind = match kind.and_then(Value::as_str) {
        Some("default") => return Ok(None),
        // A `rope_parameters` with `rope_theta` alone scales nothing.
        None if kind.is_none() && always => return Ok(None),
        Some(kind) => kind,
        None => return Err(wrong("has no rope_type".to_owned())),
    };
    let Some((_, known, unused)) = KINDS.iter().find(|(name, ..)| *name == kind) else {
        let expected = "expected default, linear, dynamic, llama3 or yarn";
        return Err(wrong(format!("is not supported: rope_type {kind:?}; {expected}")));
    };
    let mut table = Map::from_iter([("rope_type".to_owned(), json!(kind))]);
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        if known.contains(&key.as_str()) {
            table.insert(key.clone(), value.clone());
        } else if !COMMON.contains(&key.as_str()) && !unused.contains(&key.as_str()) {
            return Err(wrong(format!("is not supported: {key} is no key of rope_type {kind:?}")));
        }
    }
    // Phi's place for it, which transformers prefers.
    let outer = keys.get(ORIGINAL).filter(|value| !value.is_null() && known.contains(&ORIGINAL));
    table.extend(outer.map(|outer| (ORIGINAL.to_owned(), outer.clone())));
    let scaling = serde_json::from_value(Value::Object(table));
    scaling.map(Some).map_err(|error| wrong(format!("is no {kind} scaling: {error}")))
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_parameters` of a model.
pub(crate) fn parameters(theta: f64, scaling: Option<&RopeScaling>) -> Value {
    let mut parameters = json!({"rope_type": "default"});
    if let Some(scaling) = scaling {
        parameters = json!(scaling);
    }
    parameters["rope_theta"] = json!(theta);
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<Option<RopeScaling>, Refused> {
        scaling(value.as_object().unwrap())
    }

    #[test]
    fn both_places_and_both_names_of_a_kind_are_read() {
        let linear = Some(RopeScaling::Linear { factor: 4.0 });
        for keys in [
            json!({"rope_scaling": {"type": "linear", "factor": 4}}),
            json!({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}}),
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
            json!({"rope_scaling": {"type": "linear", "factor": 4},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ] {
            assert_eq!(of(keys.clone()).unwrap(), linear, "{keys}");
        }
        let outer = of(json!({"original_max_position_embeddings": 64, "rope_scaling":
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}}));
        let Some(RopeScaling::Yarn(yarn)) = outer.unwrap() else { panic!("yarn") };
        assert_eq!(yarn.original_max_position_embeddings, Some(64));
    }

    #[test]
    fn other_kinds_and_keys_are_refused_by_name() {
        for (keys, part) in [
            (json!({"rope_scaling": {"rope_type": "longrope", "factor": 4}}), "\"longrope\""),
            (json!({"rope_scaling": {"factor": 4}}), "has no rope_type"),
            (json!({"rope_scaling": {"type": "linear"}}), "missing field `factor`"),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2, "mrope_section": [1]}}),
                "mrope_section",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 2},
                    "rope_parameters": {"rope_type": "linear", "factor": 4}}),
                "differs from rope_parameters",
            ),
        ] {
            let (field, what) = of(keys).unwrap_err();
            assert!(field == "rope_scaling" && what.contains(part), "{field} {what}");
        }
    }
}
