//! Checks a `tokenizer.json` before the `tokenizers` library sees it: that library panics on some
//! contradictions and silently renumbers tokens on others. `post_processor` has the checks of that
//! part; `library` loads the file.

use std::collections::HashSet;
use std::path::Path;

use crate::error::TextError;
use crate::post_processor;
use crate::token_table::TokenTable;
use crate::tokenizer_json::{self, AddedEntry, BpeModel, Merge, TokenizerJson};

/// Refuses contradictions between the parts of the file and returns its contents.
pub(crate) fn check(path: &Path, bytes: &[u8]) -> Result<TokenizerJson, TextError> {
    let file = tokenizer_json::parse(path, bytes)?;
    let mut table = TokenTable::new(path, file.model.vocab.0.len() + file.added_tokens.len());
    // The vocabulary before all that names its tokens; added tokens after the merges, which must
    // not need them.
    vocab(&mut table, &file.model)?;
    model(&table, &file)?;
    for token in &file.added_tokens {
        added(&mut table, token)?;
    }
    once(path, &file.added_tokens)?;
    if let Some(post) = &file.post_processor {
        post_processor::check(&table, "post_processor", post)?;
    }
    Ok(file)
}

fn vocab<'a>(table: &mut TokenTable<'a>, model: &'a BpeModel) -> Result<(), TextError> {
    for (token, id) in &model.vocab.0 {
        if table.id(token).is_some() {
            let (path, token) = (table.path.to_owned(), token.clone());
            return Err(TextError::TokenTwice { path, token });
        }
        table.insert("model.vocab", token, *id)?;
    }
    Ok(())
}

fn model(table: &TokenTable, file: &TokenizerJson) -> Result<(), TextError> {
    let model = &file.model;
    // Dropout leaves merges out at random: the same text would have other ids each time.
    if let Some(got) = model.dropout.filter(|rate| *rate != 0.0) {
        return Err(TextError::Dropout { path: table.path.to_owned(), got });
    }
    if let Some(token) = model.unk_token.as_ref().filter(|token| table.id(token).is_none()) {
        let (path, token) = (table.path.to_owned(), token.clone());
        return Err(TextError::UnkToken { path, token });
    }
    merges(table, file)
}

fn merges(table: &TokenTable, file: &TokenizerJson) -> Result<(), TextError> {
    let prefix = file.model.continuing_subword_prefix.as_deref().unwrap_or("");
    let special = file.added_tokens.iter().filter(|token| token.special);
    let special: HashSet<&str> = special.map(|token| token.content.as_str()).collect();
    for (index, entry) in file.model.merges.iter().enumerate() {
        let made = merge(table, index, entry, prefix)?;
        // Whoever writes the text would then write control tokens.
        if made.is_some_and(|made| special.contains(made.as_str())) {
            let what = "makes a special token out of plain text; expected none to".to_owned();
            return Err(TextError::merge(table.path, index, what));
        }
    }
    Ok(())
}

/// The token a merge makes; `None` for the version line that old files begin with.
fn merge(
    table: &TokenTable,
    index: usize,
    entry: &Merge,
    prefix: &str,
) -> Result<Option<String>, TextError> {
    let bad = |what: String| TextError::merge(table.path, index, what);
    let (left, right) = match entry {
        Merge::Pair(left, right) => (left.as_str(), right.as_str()),
        Merge::Line(line) if line.starts_with("#version") => return Ok(None),
        Merge::Line(line) => line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '))
            .ok_or_else(|| bad(format!("expected two tokens and one space, got {line:?}")))?,
    };
    // The library cuts as many bytes off without looking, and takes what is left for UTF-8.
    let rest = right.strip_prefix(prefix).ok_or_else(|| {
        bad(format!("expected the second token to begin with {prefix:?}, got {right:?}"))
    })?;
    let made = format!("{left}{rest}");
    let unknown = [left, right, &made].into_iter().find(|token| table.id(token).is_none());
    if let Some(token) = unknown {
        return Err(bad(format!("expected tokens of the vocabulary, got {token:?}")));
    }
    Ok(Some(made))
}

fn added<'a>(table: &mut TokenTable<'a>, token: &'a AddedEntry) -> Result<(), TextError> {
    if token.content.is_empty() {
        return Err(TextError::added(table.path, "", "empty; expected at least one letter"));
    }
    match table.id(&token.content) {
        // An added token may be in the vocabulary too, as in many files, if both agree.
        Some(id) if u64::from(id) == token.id => Ok(()),
        Some(id) => {
            let what = format!("two ids; expected {id} as listed before, got {}", token.id);
            Err(TextError::added(table.path, &token.content, what))
        }
        None => table.insert("added_tokens", &token.content, token.id),
    }
}

fn once(path: &Path, tokens: &[AddedEntry]) -> Result<(), TextError> {
    let mut seen = HashSet::new();
    match tokens.iter().find(|token| !seen.insert(token.content.as_str())) {
        Some(token) => {
            Err(TextError::added(path, &token.content, "listed twice; expected every token once"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::tiny;
    use serde_json::{Value, json};

    /// The message for the tiny tokenizer with the value at `pointer` replaced.
    fn message(pointer: &str, value: Value) -> String {
        let mut file = tiny();
        *file.pointer_mut(pointer).expect("the tiny tokenizer has this field") = value;
        refuse(&file.to_string())
    }

    fn refuse(text: &str) -> String {
        check(Path::new("t.json"), text.as_bytes()).err().expect("this is broken").to_string()
    }

    #[test]
    fn the_tiny_tokenizer_itself_is_sound() {
        assert!(check(Path::new("t.json"), tiny().to_string().as_bytes()).is_ok());
    }

    #[test]
    fn merges_may_be_strings_and_may_begin_with_a_version_line() {
        let mut file = tiny();
        file["model"]["merges"] = json!(["#version: 0.2", "a b"]);
        assert!(check(Path::new("t.json"), file.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn two_tokens_with_one_id_are_refused() {
        assert_eq!(
            message("/model/vocab/ab", json!(1)),
            "t.json [model.vocab]: id 1 is taken; expected one token an id, got \"b\" and \"ab\""
        );
    }

    #[test]
    fn a_token_named_twice_is_refused() {
        let text = tiny().to_string().replace("\"b\":1", "\"a\":1");
        assert_eq!(
            refuse(&text),
            "t.json [model.vocab]: \"a\" appears twice; expected every token once"
        );
    }

    #[test]
    fn a_huge_id_is_refused() {
        assert_eq!(
            message("/model/vocab/ab", json!(4_000_000_000_u64)),
            "t.json [model.vocab]: id of \"ab\" too large; expected below 8, got 4000000000"
        );
        assert_eq!(
            message("/added_tokens/0/id", json!(8)),
            "t.json [added_tokens]: id of \"<|end_of_text|>\" too large; expected below 8, got 8"
        );
    }

    #[test]
    fn a_merge_must_be_of_tokens_that_exist() {
        let at = "t.json [model.merges.0]: expected";
        let unknown = |token| format!("{at} tokens of the vocabulary, got {token:?}");
        assert_eq!(message("/model/merges/0", json!(["z", "b"])), unknown("z"));
        assert_eq!(message("/model/merges/0", json!("a z")), unknown("z"));
        assert_eq!(message("/model/merges/0", json!(["b", "a"])), unknown("ba"));
        assert_eq!(
            message("/model/merges/0", json!("a b c")),
            format!("{at} two tokens and one space, got \"a b c\"")
        );
        assert_eq!(
            message("/model/continuing_subword_prefix", json!("##")),
            format!("{at} the second token to begin with \"##\", got \"b\"")
        );
    }

    #[test]
    fn a_merge_that_makes_a_special_token_is_refused() {
        assert_eq!(
            message("/added_tokens/0", json!({"id": 2, "content": "ab", "special": true})),
            "t.json [model.merges.0]: makes a special token out of plain text; expected none to"
        );
    }

    #[test]
    fn random_merges_and_a_missing_unknown_token_are_refused() {
        assert_eq!(
            message("/model/dropout", json!(0.1)),
            "t.json [model.dropout]: ids would be random; expected null or 0, got 0.1"
        );
        assert_eq!(
            message("/model/unk_token", json!("<unk>")),
            "t.json [model.unk_token]: expected a token of the vocabulary, got \"<unk>\""
        );
    }

    #[test]
    fn an_added_token_must_agree_with_the_vocabulary() {
        assert_eq!(
            message("/added_tokens/0/content", json!("a")),
            "t.json [added_tokens \"a\"]: two ids; expected 0 as listed before, got 3"
        );
        assert_eq!(
            message("/added_tokens/0/id", json!(2)),
            "t.json [added_tokens]: id 2 is taken; \
             expected one token an id, got \"ab\" and \"<|end_of_text|>\""
        );
        assert_eq!(
            message("/added_tokens/0/content", json!("")),
            "t.json [added_tokens \"\"]: empty; expected at least one letter"
        );
    }

    #[test]
    fn added_tokens_must_differ_from_each_other() {
        let with = |id: u32, content: &str| {
            let mut file = tiny();
            let more = json!({"id": id, "content": content, "special": true});
            file["added_tokens"].as_array_mut().unwrap().push(more);
            refuse(&file.to_string())
        };
        assert_eq!(
            with(3, "<x>"),
            "t.json [added_tokens]: id 3 is taken; \
             expected one token an id, got \"<|end_of_text|>\" and \"<x>\""
        );
        assert_eq!(
            with(3, "<|end_of_text|>"),
            "t.json [added_tokens \"<|end_of_text|>\"]: listed twice; expected every token once"
        );
        assert_eq!(
            with(4, "<|end_of_text|>"),
            "t.json [added_tokens \"<|end_of_text|>\"]: two ids; expected 3 as listed before, got 4"
        );
    }
}
