//! Checks on the post-processor of a `tokenizer.json`. This crate never runs it, but the file is
//! copied beside checkpoints, and other programs index its tables without looking.

use serde_json::{Map, Value};

use crate::check::Book;
use crate::error::TextError;

/// Every token a post-processor adds must exist under the id it gives.
pub(crate) fn check(book: &Book, field: &str, post: &Value) -> Result<(), TextError> {
    match post["type"].as_str() {
        Some("Sequence") => sequence(book, field, post),
        Some("TemplateProcessing") => template(book, field, post),
        Some("BertProcessing" | "RobertaProcessing") => frame(book, field, post),
        // Null and ByteLevel add no token; what is unknown the library refuses.
        _ => Ok(()),
    }
}

fn sequence(book: &Book, field: &str, post: &Value) -> Result<(), TextError> {
    let parts = post["processors"].as_array().into_iter().flatten();
    for (index, part) in parts.enumerate() {
        check(book, &format!("{field}.processors.{index}"), part)?;
    }
    Ok(())
}

fn template(book: &Book, field: &str, post: &Value) -> Result<(), TextError> {
    let none = Map::new();
    let table = post["special_tokens"].as_object().unwrap_or(&none);
    for (name, entry) in table {
        declared(book, &format!("{field}.special_tokens.{name}"), entry)?;
    }
    for side in ["single", "pair"] {
        pieces(book, &format!("{field}.{side}"), &post[side], table)?;
    }
    // One text is all there is: another would be an index past the end, none would lose the text.
    let texts: Vec<_> = texts(&post["single"]).collect();
    if texts == ["A"] {
        return Ok(());
    }
    let what = format!("expected the text A exactly once, got {texts:?}");
    Err(TextError::post(book.path, &format!("{field}.single"), what))
}

fn texts(template: &Value) -> impl Iterator<Item = &str> {
    let pieces = template.as_array().into_iter().flatten();
    pieces.filter_map(|piece| piece["Sequence"]["id"].as_str())
}

fn pieces(
    book: &Book,
    field: &str,
    template: &Value,
    table: &Map<String, Value>,
) -> Result<(), TextError> {
    let pieces = template.as_array().into_iter().flatten();
    let mut names = pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    match names.find(|name| !table.contains_key(*name)) {
        Some(name) => {
            let what = format!("expected a token of special_tokens, got {name:?}");
            Err(TextError::post(book.path, field, what))
        }
        None => Ok(()),
    }
}

/// One entry of `special_tokens`: as many ids as tokens, each the id the vocabulary has.
fn declared(book: &Book, field: &str, entry: &Value) -> Result<(), TextError> {
    let list = |key: &str| entry[key].as_array().map_or(&[][..], Vec::as_slice);
    let (ids, tokens) = (list("ids"), list("tokens"));
    if ids.is_empty() || ids.len() != tokens.len() {
        let (ids, tokens) = (ids.len(), tokens.len());
        let what = format!("expected as many ids as tokens, got {ids} and {tokens}");
        return Err(TextError::post(book.path, field, what));
    }
    tokens.iter().zip(ids).try_for_each(|(token, id)| same(book, field, token, id))
}

/// `BertProcessing` and `RobertaProcessing` name two tokens, as `["</s>", 2]`.
fn frame(book: &Book, field: &str, post: &Value) -> Result<(), TextError> {
    for key in ["cls", "sep"] {
        same(book, &format!("{field}.{key}"), &post[key][0], &post[key][1])?;
    }
    Ok(())
}

fn same(book: &Book, field: &str, token: &Value, id: &Value) -> Result<(), TextError> {
    let known = token.as_str().and_then(|token| book.id(token));
    let what = match known {
        Some(known) if id.as_u64() == Some(known.into()) => return Ok(()),
        Some(known) => format!("wrong id of {token}; expected {known}, got {id}"),
        None => format!("expected a token of the vocabulary, got {token}"),
    };
    Err(TextError::post(book.path, field, what))
}

#[cfg(test)]
mod tests {
    use crate::check;
    use crate::sample::tiny;
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
