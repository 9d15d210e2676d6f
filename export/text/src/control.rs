//! Finds the tokens that begin and end documents and turns. Files name them in several places; the
//! spelling alone decides only where none does.

use std::path::Path;

use bitnet_format::folder::CONFIG_FILE;
use bitnet_format::json::read_object;
use serde_json::{Map, Value};

use crate::error::TextError;
use crate::tokenizer_json::{self, AddedEntry, TokenizerJson};

/// The file beside `tokenizer.json` that names the tokens.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

const BOS: [&str; 2] = ["<|begin_of_text|>", "<s>"];
const EOS: [&str; 3] = ["<|end_of_text|>", "<|endoftext|>", "</s>"];
pub(crate) const EOT: [&str; 1] = ["<|eot_id|>"];

/// Ids of control tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ControlTokens {
    pub(crate) bos: Option<u32>,
    /// Whether every text begins with `bos`.
    pub(crate) adds_bos: bool,
    /// Declared as `eos_token`.
    pub(crate) eos_token: Option<u32>,
    pub(crate) document_end: Option<u32>,
    pub(crate) eot: Option<u32>,
}

impl ControlTokens {
    /// `config` is a `tokenizer_config.json`, completed by [`declared_beside`].
    pub(crate) fn find(file: &TokenizerJson, config: &Map<String, Value>) -> Self {
        let id_of = |spelling: &str| {
            // Ids fit: `check` refused larger ones before.
            let added = file.added_tokens.iter().map(|token| (&token.content, token.id));
            let all = added.chain(file.model.vocab.0.iter().map(|(token, id)| (token, *id)));
            let mut found = all.filter(|(token, _)| *token == spelling);
            found.next().map(|(_, id)| id as u32)
        };
        let declared = |key: &str| config.get(key).and_then(spelling_of).and_then(id_of);
        let named = |names: &[&str]| named(&file.added_tokens, names);
        let first = file.post_processor.as_ref().and_then(first_token).and_then(id_of);
        let bos = declared("bos_token").or(first).or_else(|| named(&BOS));
        let eos_token = declared("eos_token");
        Self {
            bos,
            adds_bos: match config.get("add_bos_token").and_then(Value::as_bool) {
                Some(adds) => adds,
                None => first.is_some() && first == bos,
            },
            eos_token,
            // The spelling before the declaration: what chat models declare often ends a turn.
            document_end: named(&EOS).or(eos_token),
            eot: named(&EOT),
        }
    }
}

/// The first of `names` that is a special token. An ordinary token of that spelling is text.
fn named(added: &[AddedEntry], names: &[&str]) -> Option<u32> {
    let find = |name: &&str| added.iter().find(|token| token.special && token.content == *name);
    names.iter().find_map(find).map(|token| token.id as u32)
}

/// A token as `tokenizer_config.json` writes it: text, or an object with its `content`.
fn spelling_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Special tokens that transformers hands to chat templates by name, beside those that begin and end.
const OTHERS: [&str; 5] = ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Those of [`OTHERS`] that a `tokenizer_config.json` names, with their spelling.
pub(crate) fn other_tokens(config: &Map<String, Value>) -> Vec<(String, String)> {
    let declared = |name: &&str| {
        let spelling = config.get(*name).and_then(spelling_of)?;
        Some((name.to_string(), spelling.to_owned()))
    };
    OTHERS.iter().filter_map(declared).collect()
}

/// The token that a post-processor puts before a text.
fn first_token(post: &Value) -> Option<&str> {
    match post["type"].as_str()? {
        "Sequence" => post["processors"].as_array()?.iter().find_map(first_token),
        "TemplateProcessing" => post["single"].get(0)?["SpecialToken"]["id"].as_str(),
        _ => None,
    }
}

/// The `tokenizer_config.json` beside a `tokenizer.json`. Where it does not name the tokens that
/// begin and end, their ids are taken from `config.json`.
pub(crate) fn declared_beside(tokenizer: &Path) -> Result<Map<String, Value>, TextError> {
    let mut config = object(&tokenizer.with_file_name(TOKENIZER_CONFIG_FILE))?;
    let model = object(&tokenizer.with_file_name(CONFIG_FILE))?;
    for (token, id) in [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")] {
        if config.get(token).and_then(spelling_of).is_none()
            && let Some(spelling) = model.get(id).and_then(|id| spelling_in(tokenizer, id))
        {
            config.insert(token.to_owned(), spelling.into());
        }
    }
    Ok(config)
}

/// The spelling of a special token by its id, or the first of a list of ids.
fn spelling_in(tokenizer: &Path, id: &Value) -> Option<String> {
    let id = id.as_u64().or_else(|| id.get(0)?.as_u64())?;
    // A file that cannot be read is no error here: loading it follows and says more.
    let file = tokenizer_json::parse(tokenizer, &tokenizer_json::read(tokenizer).ok()?).ok()?;
    let token = file.added_tokens.into_iter().find(|token| token.special && token.id == id)?;
    Some(token.content)
}

/// A JSON object; empty where the file is missing.
pub(crate) fn object(path: &Path) -> Result<Map<String, Value>, TextError> {
    if path.exists() { Ok(read_object(path)?) } else { Ok(Map::new()) }
}

#[cfg(test)]
mod tests {
    use crate::Tokenizer;
    use crate::test_tokenizers::tiny;
    use serde_json::{Value, json};
    use std::path::Path;

    #[test]
    fn an_ordinary_token_with_the_name_of_a_control_token_is_a_word() {
        let mut file = tiny();
        file["added_tokens"][0]["special"] = json!(false);
        file["post_processor"] = Value::Null;
        let bytes = file.to_string().into_bytes();
        let tokenizer = Tokenizer::from_bytes(Path::new("t.json"), &bytes).unwrap();
        assert_eq!(tokenizer.eos(), None);
        assert_eq!(tokenizer.encode("a<|end_of_text|>b").unwrap(), [0, 3, 1]);
    }

    #[test]
    fn other_special_tokens_are_those_that_the_config_spells() {
        let config =
            json!({"pad_token": {"content": "<pad>"}, "unk_token": null, "eos_token": "x"});
        let found = super::other_tokens(config.as_object().unwrap());
        assert_eq!(found, [("pad_token".to_owned(), "<pad>".to_owned())]);
    }
}
