//! Rows as some tasks of the harness rewrite them before they are asked: HellaSwag, WinoGrande and
//! WikiText.

use fancy_regex::{Captures, Regex};
use serde_json::{Value, json};

use crate::python;

pub(crate) fn hellaswag(row: &Value) -> Result<Value, (String, String)> {
    let (label, before) = (text(row, "activity_label")?, text(row, "ctx_a")?);
    let after = python::capitalize(text(row, "ctx_b")?);
    let endings = row["endings"].as_array();
    let endings: Option<Vec<&str>> =
        endings.and_then(|endings| endings.iter().map(Value::as_str).collect());
    let endings = endings.ok_or_else(|| wrong("endings", "expected a list of texts"))?;
    let mut row = row.clone();
    // `process_docs` of the harness; the template of the task names these three fields.
    row["query"] = hellaswag_text(&format!("{label}: {before} {after}")).into();
    row["choices"] = endings.into_iter().map(hellaswag_text).collect();
    // Test rows of the hub have an empty label.
    row["gold"] = json!(row["label"].as_str().and_then(|label| label.parse::<i64>().ok()));
    Ok(row)
}

fn hellaswag_text(text: &str) -> String {
    // WikiHow's marks: a title ends a sentence, all other brackets go.
    let text = python::strip(text).replace(" [title]", ". ");
    sub(r"\[.*?\]", "", &text).replace("  ", " ")
}

pub(crate) fn winogrande_answer(row: &Value) -> Result<i64, (String, String)> {
    match text(row, "answer")? {
        "1" => Ok(0),
        "2" => Ok(1),
        other => Err(wrong("answer", &format!("expected \"1\" or \"2\", got {other:?}"))),
    }
}

/// What stands before and after the blank.
pub(crate) fn winogrande_halves(row: &Value) -> Result<(&str, &str), (String, String)> {
    let blank = text(row, "sentence")?.split_once('_');
    blank.ok_or_else(|| wrong("sentence", "expected a blank, written _"))
}

/// `wikitext_detokenizer`: the replacements of the harness in its order.
pub(crate) fn wikitext(page: &str) -> String {
    let text = page.replace("s '", "s'");
    let text = sub(r"/' [0-9]/", r"/'[0-9]/", &text);
    // WikiText was cut into words, with spaces around signs; what is scored is the text before
    // that.
    let pairs = [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ];
    let mut text = pairs.iter().fold(text, |text, (from, to)| text.replace(from, to));
    let quotes = [
        (r"\(\s*([^\)]*?)\s*\)", ["(", ")"]),
        (r"\[\s*([^\]]*?)\s*\]", ["[", "]"]),
        (r"\{\s*([^}]*?)\s*\}", ["{", "}"]),
        ("\"\\s*([^\"]*?)\\s*\"", ["\"", "\""]),
        (r"'\s*([^']*?)\s*'", ["'", "'"]),
    ];
    for (pattern, [open, close]) in quotes {
        let regex = Regex::new(pattern).expect("a valid pattern");
        let inner = |found: &Captures| format!("{open}{}{close}", &found[1]);
        text = regex.replace_all(&text, inner).into_owned();
    }
    // The longest first: `= = =` stands inside of `= = = =`.
    let pairs = [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ];
    pairs.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// `re.sub` with a text that names no group.
fn sub(pattern: &str, with: &str, text: &str) -> String {
    let regex = Regex::new(pattern).expect("a valid pattern");
    regex.replace_all(text, fancy_regex::NoExpand(with)).into_owned()
}

/// A field that is a text.
///
/// # Errors
/// The field, and that it is missing or of another kind.
pub(crate) fn text<'a>(row: &'a Value, field: &str) -> Result<&'a str, (String, String)> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text),
        None => Err(wrong(field, "is missing; expected a text")),
        Some(_) => Err(wrong(field, "expected a text")),
    }
}

/// An error about a field.
pub(crate) fn wrong(field: &str, what: &str) -> (String, String) {
    (field.to_owned(), what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::{ResultsFunction, RowFunction};
    use crate::metrics::MetricValue;

    #[test]
    fn hellaswag_rows_are_cleaned_once() {
        let row = json!({"activity_label": "Trim", "ctx_a": "A  [x] b", "ctx_b": "he Says    so",
            "endings": ["c [title] D  [y]", " e"], "label": "1"});
        let made = RowFunction::Hellaswag.call(&row).unwrap();
        assert_eq!(made["query"], "Trim: A  b He says  so", "one pass over double spaces");
        assert_eq!(made["choices"], json!(["c. D ", "e"]));
        assert_eq!(made["gold"], 1);
        let missing = RowFunction::Hellaswag.call(&json!({"activity_label": "x"}));
        assert_eq!(missing.unwrap_err().0, "ctx_a");
    }

    #[test]
    fn winogrande_has_two_contexts_and_one_continuation() {
        let row = json!({"sentence": "Ann beat Bob, so _ won. ", "option1": "Ann", "option2": "Bob",
            "answer": "2"});
        assert_eq!(RowFunction::WinograndeText.call(&row).unwrap(), 1);
        assert_eq!(RowFunction::WinograndeTarget.call(&row).unwrap(), "won.");
        let choices = RowFunction::WinograndeChoice.call(&row).unwrap();
        assert_eq!(choices, json!(["Ann beat Bob, so Ann", "Ann beat Bob, so Bob"]));
        let bad = json!({"sentence": "no blank", "answer": ""});
        assert_eq!(RowFunction::WinograndeText.call(&bad).unwrap_err().0, "answer");
        assert_eq!(RowFunction::WinograndeTarget.call(&bad).unwrap_err().0, "sentence");
    }

    /// The text of the harness's own function.
    #[test]
    fn wikitext_pages_are_written_as_they_were() {
        let page = " = Title = \n It 's 1 @,@ 000 N km ( a b ) , \" so \" : [ x ] ; dogs ' own . = = S = = \n";
        let plain = " = Title =\nIt's 1,000 1 km (a b), \"so\": [x]; dogs' own. == S ==\n";
        assert_eq!(wikitext(page), plain);
        let scores = ResultsFunction::Wikitext.call(&json!({"page": "a b"}), &[-2.0]).unwrap();
        assert_eq!(scores[0], ("word_perplexity".to_owned(), MetricValue::Weighted(-2.0, 2.0)));
    }
}
