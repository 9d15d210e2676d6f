//! Whether two tokenizers give the same ids, so that a model trained with one works with the other.

use std::collections::HashMap;

use serde_json::Value;

use crate::tokenizer::Tokenizer;

/// How a tokenizer differs from an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChange {
    /// Not at all, for text and ids.
    None,
    /// It has more tokens, each with an id that the earlier one does not use.
    Added(Vec<String>),
    /// Text or ids mean something else; what was found first.
    Other(String),
}

/// Parts of the file that decide how text is cut, beside vocabulary and merges.
const SPLITTING: [&str; 6] = [
    "/normalizer",
    "/pre_tokenizer",
    "/decoder",
    "/model/continuing_subword_prefix",
    "/model/byte_fallback",
    "/model/ignore_merges",
];

impl Tokenizer {
    /// What is different from `earlier`, whose ids a model knows.
    pub fn change_from(&self, earlier: &Self) -> TokenizerChange {
        if self.json() == earlier.json() {
            return TokenizerChange::None;
        }
        let (Some(old), Some(new)) = (parts(earlier), parts(self)) else {
            return TokenizerChange::Other("another file".to_owned());
        };
        if let Some(what) = difference(&old, &new) {
            return TokenizerChange::Other(what);
        }
        let mut added: Vec<_> =
            new.ids.iter().filter(|(id, _)| !old.ids.contains_key(id)).collect();
        added.sort();
        match added.len() {
            0 => TokenizerChange::None,
            _ => {
                TokenizerChange::Added(added.into_iter().map(|(_, token)| token.clone()).collect())
            }
        }
    }
}

/// What the ids of a text depend on.
struct TokenizerParts {
    file: Value,
    ids: HashMap<u64, String>,
    merges: Vec<String>,
    /// The ids that are control tokens.
    special: Vec<u64>,
}

fn parts(tokenizer: &Tokenizer) -> Option<TokenizerParts> {
    let file: Value = serde_json::from_slice(tokenizer.json()).ok()?;
    let vocabulary = file.pointer("/model/vocab")?.as_object()?.iter();
    let mut ids: HashMap<u64, String> =
        vocabulary.filter_map(|(token, id)| Some((id.as_u64()?, token.clone()))).collect();
    let mut special = Vec::new();
    for token in file.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let id = token.get("id")?.as_u64()?;
        ids.insert(id, token.get("content")?.as_str()?.to_owned());
        if token.get("special").and_then(Value::as_bool) == Some(true) {
            special.push(id);
        }
    }
    let merges = file.pointer("/model/merges")?.as_array()?.iter().map(merge).collect();
    Some(TokenizerParts { file, ids, merges, special })
}

/// A merge in either of its two spellings.
fn merge(merge: &Value) -> String {
    match merge {
        Value::String(line) => line.clone(),
        Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

/// The first thing that `new` does not do as `old`.
fn difference(old: &TokenizerParts, new: &TokenizerParts) -> Option<String> {
    let mut ids: Vec<_> = old.ids.iter().collect();
    // The lowest id is named: the order of a map is another one each time.
    ids.sort();
    if let Some((id, token)) = ids.into_iter().find(|(id, token)| new.ids.get(id) != Some(token)) {
        let now = new.ids.get(id).map_or("none".to_owned(), |token| format!("{token:?}"));
        return Some(format!("id {id} is {now} instead of {token:?}"));
    }
    // A merge ranks by its place, so new ones may only follow the old.
    if !new.merges.starts_with(&old.merges) {
        return Some("other merges".to_owned());
    }
    if let Some(id) = old.special.iter().find(|id| !new.special.contains(id)) {
        return Some(format!("{:?} is no special token", old.ids[id]));
    }
    if let Some(id) =
        // A new token may be special; one that was text for the model may not become so.
        new.special.iter().find(|id| old.ids.contains_key(id) && !old.special.contains(id))
    {
        return Some(format!("{:?} is a special token", old.ids[id]));
    }
    let absent = Value::Null;
    let part = |file: &Value, key: &str| file.pointer(key).unwrap_or(&absent).clone();
    let other = SPLITTING.iter().find(|key| part(&old.file, key) != part(&new.file, key));
    other.map(|key| format!("another {}", key.rsplit('/').next().unwrap_or(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::trained;
    use std::path::Path;

    fn changed(edit: impl FnOnce(&mut Value)) -> TokenizerChange {
        let old = trained(300);
        let mut file: Value = serde_json::from_slice(old.json()).unwrap();
        edit(&mut file);
        let bytes = serde_json::to_vec(&file).unwrap();
        Tokenizer::from_bytes(Path::new("new.json"), &bytes).unwrap().change_from(&old)
    }

    fn add(file: &mut Value, content: &str) {
        let id = 300
            + file["added_tokens"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|t| t["id"].as_u64() >= Some(300))
                .count();
        file["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false
        }));
    }

    #[test]
    fn tokens_behind_the_others_are_added_and_spelling_the_file_anew_is_nothing() {
        assert_eq!(changed(|_| ()), TokenizerChange::None);
        let added = changed(|file| {
            add(file, "<|a|>");
            add(file, "<|b|>");
        });
        assert_eq!(added, TokenizerChange::Added(vec!["<|a|>".to_owned(), "<|b|>".to_owned()]));
    }

    #[test]
    fn what_cuts_text_or_numbers_tokens_in_another_way_is_another_tokenizer() {
        let other = |edit: fn(&mut Value), word: &str| match changed(edit) {
            TokenizerChange::Other(what) => assert!(what.contains(word), "{what}"),
            same => panic!("{word}: {same:?}"),
        };
        other(|file| file["pre_tokenizer"]["add_prefix_space"] = true.into(), "pre_tokenizer");
        other(|file| file["normalizer"] = serde_json::json!({"type": "NFC"}), "normalizer");
        other(
            |file| {
                file["model"]["merges"].as_array_mut().unwrap().swap(0, 1);
            },
            "merges",
        );
        let fewer = trained(280).change_from(&trained(300));
        assert!(matches!(fewer, TokenizerChange::Other(_)), "{fewer:?}");
    }
}
