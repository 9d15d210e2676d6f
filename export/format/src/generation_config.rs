//! `generation_config.json` of a model folder: how transformers generates by default. Its ids take
//! precedence over those of `config.json`; all other keys are kept as they are.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::read_object;
use crate::{FormatError, ModelSpec};

/// The file's name in a model folder.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// The keys of a folder's file; empty without one.
///
/// # Errors
/// When the file is not a JSON object.
pub fn read(folder: &Path) -> Result<Map<String, Value>, FormatError> {
    let path = folder.join(GENERATION_CONFIG_FILE);
    if path.exists() { read_object(&path) } else { Ok(Map::new()) }
}

/// Puts the ids of a folder's file over those of its `config.json`.
pub(crate) fn apply(folder: &Path, spec: &mut ModelSpec) -> Result<(), FormatError> {
    let keys = read(folder)?;
    let wrong = |field: &'static str, value: &Value| {
        let what = format!("is {value}; expected ids below {}", spec.vocab_size);
        FormatError::config(&folder.join(GENERATION_CONFIG_FILE), field, what)
    };
    let id = |value: &Value| {
        value.as_u64().filter(|id| *id < spec.vocab_size as u64).map(|id| id as u32)
    };
    let present = |key: &str| keys.get(key).filter(|value| !value.is_null());
    let (mut begin, mut stops) = (spec.bos_token_id, None);
    if let Some(value) = present("bos_token_id") {
        begin = Some(id(value).ok_or_else(|| wrong("bos_token_id", value))?);
    }
    if let Some(value) = present("eos_token_id") {
        // One end id stands as a number, several as a list.
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        stops = Some(ids.ok_or_else(|| wrong("eos_token_id", value))?);
    }
    spec.bos_token_id = begin;
    spec.eos_token_id = stops.unwrap_or(std::mem::take(&mut spec.eos_token_id));
    Ok(())
}

/// The text of a file for a model: `keys` with the model's ids.
pub fn to_json(keys: &Map<String, Value>, spec: &ModelSpec) -> String {
    let mut keys = keys.clone();
    keys.insert("bos_token_id".to_owned(), json!(spec.bos_token_id));
    keys.insert("eos_token_id".to_owned(), crate::hf_config::eos_value(&spec.eos_token_id));
    let text = serde_json::to_string_pretty(&keys).expect("a JSON value always serialises");
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        toml::from_str(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n\
             bos_token_id = 1\neos_token_id = 2",
        )
        .unwrap()
    }

    fn applied(text: &str) -> Result<ModelSpec, String> {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(GENERATION_CONFIG_FILE), text).unwrap();
        let mut spec = spec();
        apply(dir.path(), &mut spec).map_err(|error| error.to_string())?;
        Ok(spec)
    }

    #[test]
    fn its_ids_take_precedence() {
        assert_eq!(applied("{\"eos_token_id\": [3, 2]}").unwrap().eos_token_id, [3, 2]);
        assert_eq!(applied("{\"eos_token_id\": 4}").unwrap().eos_token_id, [4]);
        assert_eq!(applied("{\"bos_token_id\": 5}").unwrap().bos_token_id, Some(5));
        assert_eq!(applied("{\"eos_token_id\": null}").unwrap(), spec());
        for text in ["[]", "{", "{\"eos_token_id\": 10}", "{\"eos_token_id\": [\"a\"]}"] {
            let error = applied(text).unwrap_err();
            assert!(error.contains(GENERATION_CONFIG_FILE), "{error}");
        }
    }

    #[test]
    fn other_keys_are_kept() {
        let keys = json!({"temperature": 0.5, "eos_token_id": 9});
        let text = to_json(keys.as_object().unwrap(), &spec());
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written, json!({"temperature": 0.5, "eos_token_id": 2, "bos_token_id": 1}));
    }
}
