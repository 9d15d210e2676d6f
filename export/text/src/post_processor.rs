//! Checks on the post-processor of a `tokenizer.json`. This crate never runs it, but the file is
//! copied into checkpoints, and other programs index its tables without bounds checks.

use serde_json::{Map, Value};

use crate::error::TextError;
use crate::token_table::TokenTable;

/// Every token a post-processor adds must exist under the id it gives.
pub(crate) fn check(table: &TokenTable, field: &str, post: &Value) -> Result<(), TextError> {
    match post["type"].as_str() {
        Some("Sequence") => sequence(table, field, post),
        Some("TemplateProcessing") => template(table, field, post),
        Some("BertProcessing" | "RobertaProcessing") => frame(table, field, post),
        // Null and ByteLevel add no token; the library refuses unknown types.
        _ => Ok(()),
    }
}

fn sequence(table: &TokenTable, field: &str, post: &Value) -> Result<(), TextError> {
    let parts = post["processors"].as_array().into_iter().flatten();
    for (index, part) in parts.enumerate() {
        check(table, &format!("{field}.processors.{index}"), part)?;
    }
    Ok(())
}

fn template(table: &TokenTable, field: &str, post: &Value) -> Result<(), TextError> {
    let none = Map::new();
    let declared_tokens = post["special_tokens"].as_object().unwrap_or(&none);
    for (name, entry) in declared_tokens {
        declared(table, &format!("{field}.special_tokens.{name}"), entry)?;
    }
    for side in ["single", "pair"] {
        pieces(table, &format!("{field}.{side}"), &post[side], declared_tokens)?;
    }
    // Readers encode one text: a second would be an index past the end, none would drop the text.
    let texts: Vec<_> = texts(&post["single"]).collect();
    if texts == ["A"] {
        return Ok(());
    }
    let what = format!("expected the text A exactly once, got {texts:?}");
    Err(TextError::post(table.path, &format!("{field}.single"), what))
}

fn texts(template: &Value) -> impl Iterator<Item = &str> {
    let pieces = template.as_array().into_iter().flatten();
    pieces.filter_map(|piece| piece["Sequence"]["id"].as_str())
}

fn pieces(
    table: &TokenTable,
    field: &str,
    template: &Value,
    declared_tokens: &Map<String, Value>,
) -> Result<(), TextError> {
    let pieces = template.as_array().into_iter().flatten();
    let mut names = pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    // The library indexes its table with such a name and panics at the first text.
    match names.find(|name| !declared_tokens.contains_key(*name)) {
        Some(name) => {
            let what = format!("expected a token of special_tokens, got {name:?}");
            Err(TextError::post(table.path, field, what))
        }
        None => Ok(()),
    }
}

/// One entry of `special_tokens`: as many ids as tokens, each the id the vocabulary has.
fn declared(table: &TokenTable, field: &str, entry: &Value) -> Result<(), TextError> {
    let list = |key: &str| entry[key].as_array().map_or(&[][..], Vec::as_slice);
    let (ids, tokens) = (list("ids"), list("tokens"));
    if ids.is_empty() || ids.len() != tokens.len() {
        let (ids, tokens) = (ids.len(), tokens.len());
        let what = format!("expected as many ids as tokens, got {ids} and {tokens}");
        return Err(TextError::post(table.path, field, what));
    }
    tokens.iter().zip(ids).try_for_each(|(token, id)| same(table, field, token, id))
}

/// `BertProcessing` and `RobertaProcessing` name two tokens, as `["</s>", 2]`.
fn frame(table: &TokenTable, field: &str, post: &Value) -> Result<(), TextError> {
    for key in ["cls", "sep"] {
        same(table, &format!("{field}.{key}"), &post[key][0], &post[key][1])?;
    }
    Ok(())
}

fn same(table: &TokenTable, field: &str, token: &Value, id: &Value) -> Result<(), TextError> {
    let known = token.as_str().and_then(|token| table.id(token));
    let what = match known {
        Some(known) if id.as_u64() == Some(known.into()) => return Ok(()),
        Some(known) => format!("wrong id of {token}; expected {known}, got {id}"),
        None => format!("expected a token of the vocabulary, got {token}"),
    };
    Err(TextError::post(table.path, field, what))
}

#[cfg(test)]
mod tests {
    use crate::check;
    use crate::test_tokenizers::tiny;
    use serde_json::{Value, json};
    use std::path::Path;

    const AT: &str = "t.json [post_processor.processors.1.";

    fn message(pointer: &str, value: Value) -> String {
        let mut file = tiny();
        let pointer = format!("/post_processor{pointer}");
        *file.pointer_mut(&pointer).expect("the tiny tokenizer has this field") = value;
        let bytes = file.to_string().into_bytes();
        check::check(Path::new("t.json"), &bytes).err().expect("this is broken").to_string()
    }

    #[test]
    fn a_template_names_only_declared_tokens() {
        assert_eq!(
            message("/processors/1/special_tokens", json!({})),
            format!("{AT}single]: expected a token of special_tokens, got \"<|end_of_text|>\"")
        );
        assert_eq!(
            message("/processors/1/pair/0", json!({"SpecialToken": {"id": "[SEP]", "type_id": 0}})),
            format!("{AT}pair]: expected a token of special_tokens, got \"[SEP]\"")
        );
    }

    #[test]
    fn a_declared_token_exists_under_its_id() {
        let table = "/processors/1/special_tokens/<|end_of_text|>";
        let at = format!("{AT}special_tokens.<|end_of_text|>]:");
        assert_eq!(
            message(&format!("{table}/ids"), json!([2])),
            format!("{at} wrong id of \"<|end_of_text|>\"; expected 3, got 2")
        );
        assert_eq!(
            message(&format!("{table}/tokens"), json!(["[SEP]"])),
            format!("{at} expected a token of the vocabulary, got \"[SEP]\"")
        );
        assert_eq!(
            message(&format!("{table}/ids"), json!([3, 3])),
            format!("{at} expected as many ids as tokens, got 2 and 1")
        );
    }

    #[test]
    fn a_template_for_one_text_holds_one_text() {
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        assert_eq!(
            message("/processors/1/single", json!([text("A"), text("B")])),
            format!("{AT}single]: expected the text A exactly once, got [\"A\", \"B\"]")
        );
        assert_eq!(
            message("/processors/1/single", json!([])),
            format!("{AT}single]: expected the text A exactly once, got []")
        );
    }

    #[test]
    fn the_frame_of_a_roberta_tokenizer_is_checked_too() {
        let frame = json!({"type": "RobertaProcessing", "cls": ["a", 0], "sep": ["b", 2]});
        assert_eq!(
            message("", frame),
            "t.json [post_processor.sep]: wrong id of \"b\"; expected 1, got 2"
        );
    }
}
