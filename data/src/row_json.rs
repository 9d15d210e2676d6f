//! One row as a JSON object, or its text alone.
//!
//! Two things that JSON forbids and that data holds are mended: half of a surrogate pair becomes
//! U+FFFD, and `NaN` or `Infinity` becomes null.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::document::RowContent;
use super::fault::{FieldError, RowFault, field_error, kind};

/// The row as an object.
pub(crate) fn object(content: &RowContent) -> Result<Cow<'_, Map<String, Value>>, RowFault> {
    match content {
        RowContent::Object(object) => Ok(Cow::Borrowed(object)),
        RowContent::Json(bytes) => parse(bytes).map(Cow::Owned),
        RowContent::Unreadable(what) => Err(RowFault::Unreadable(what.clone())),
        RowContent::Tokens(_) => Err(RowFault::Json("tokens".to_owned())),
        RowContent::Text(_) => Err(RowFault::Json("plain text".to_owned())),
    }
}

/// The row with its columns renamed to the fields that they hold.
pub(crate) fn renamed<'a>(
    content: &'a RowContent,
    columns: &BTreeMap<String, String>,
) -> Result<Cow<'a, Map<String, Value>>, RowFault> {
    let mut row = object(content)?;
    for (field, column) in columns {
        // Moved and not copied: under its old name the column would be read as well.
        let value = row.to_mut().swap_remove(column).ok_or_else(|| {
            field_error(column, "the column that data.columns names", "no such column")
        })?;
        row.to_mut().insert(field.clone(), value);
    }
    Ok(row)
}

/// The text of a document: its column of this name, or all of a text file.
pub(crate) fn text<'a>(content: &'a RowContent, column: &str) -> Result<Cow<'a, str>, RowFault> {
    match content {
        RowContent::Text(text) => return Ok(Cow::Borrowed(text)),
        // All other fields are passed over.
        RowContent::Json(bytes) if column == "text" => {
            if let Ok(TextRow { text }) = serde_json::from_slice(bytes) {
                return Ok(text);
            }
        }
        _ => {}
    }
    match object(content)?.get(column) {
        Some(Value::String(text)) => Ok(Cow::Owned(text.clone())),
        other => Err(RowFault::Field(FieldError {
            field: column.to_owned(),
            expected: "a string",
            got: other.map_or("no such key", kind).to_owned(),
        })),
    }
}

#[derive(Deserialize)]
struct TextRow<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, RowFault> {
    let torn = || RowFault::Torn { bytes: bytes.len() };
    let whole = bytes.ends_with(b"\n");
    let text = std::str::from_utf8(bytes).map_err(|error| {
        if error.error_len().is_none() {
            return torn(); // the bytes end within a character
        }
        let at = error.valid_up_to();
        RowFault::NotUtf8 { column: at + 1, byte: bytes[at] }
    })?;
    // Mending takes a pass over the row, so it is tried only where the parser refused.
    let parsed = serde_json::from_str(text).or_else(|error| {
        let mended = mended(text).ok_or(error)?;
        serde_json::from_str(&mended)
    });
    match parsed {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(RowFault::Json(kind(&other).to_owned())),
        Err(error) if error.is_eof() && !whole => Err(torn()),
        Err(error) => Err(RowFault::Json(describe(&error))),
    }
}

/// The parser's message with its column. Its line is that within the row and is left out.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}

/// The text with half surrogates and invalid numbers replaced; `None` if it has neither.
fn mended(text: &str) -> Option<String> {
    let mut mended = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(first) = rest.chars().next() {
        let (taken, put) = match (in_string, first) {
            (true, '\\') => escape(rest),
            (false, 'N' | 'I' | '-') => number(rest),
            _ => (first.len_utf8(), None),
        };
        // An escaped quote never comes here: `escape` takes it together with its backslash.
        in_string ^= first == '"';
        mended.push_str(put.unwrap_or(&rest[..taken]));
        rest = &rest[taken..];
    }
    (mended != text).then_some(mended)
}

/// The length of an escape, and what takes its place: a high and a low surrogate stay as they are.
fn escape(text: &str) -> (usize, Option<&'static str>) {
    match (unit(text), text.get(6..).and_then(unit)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, None),
        (Some(0xd800..=0xdfff), _) => (6, Some("\\ufffd")),
        _ => (1 + text[1..].chars().next().map_or(0, char::len_utf8), None),
    }
}

/// The code unit of the escape, `\u` and four digits, that the text begins with.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u32::from_str_radix(digits, 16).ok()
}

fn number(text: &str) -> (usize, Option<&'static str>) {
    let words = ["NaN", "-Infinity", "Infinity"];
    let word = words.iter().find(|word| text.starts_with(**word));
    word.map_or((1, None), |word| (word.len(), Some("null")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Value, String> {
        parse(text.as_bytes()).map(Value::Object).map_err(|fault| format!("{fault:?}"))
    }

    #[test]
    fn what_json_forbids_and_data_holds_is_mended() {
        for (text, expected) in [
            (r#"{"a": "x\ud83d"}"#, "{\"a\":\"x\u{fffd}\"}"),
            (r#"{"a": "\udc00\ud83d\ude00"}"#, "{\"a\":\"\u{fffd}😀\"}"),
            (
                r#"{"a": NaN, "b": [-Infinity, Infinity], "c": -1}"#,
                r#"{"a":null,"b":[null,null],"c":-1}"#,
            ),
            (r#"{"a": "NaN \\ud83d", "b": NaN}"#, r#"{"a":"NaN \\ud83d","b":null}"#),
        ] {
            assert_eq!(parsed(text).unwrap().to_string(), expected);
        }
        assert!(parsed(r#"{"a": Nan}"#).unwrap_err().contains("at column"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_mending_panic(text in "[\\\\u0-9dDfF\"{}:NaInfty, -]{0,40}") {
            let _ = parsed(&text);
        }
    }
}
