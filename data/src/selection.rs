//! Which rows of a set are used: by what their fields and their text say, on one side of a split,
//! and each text once.

use std::collections::BTreeMap;

use regex::Regex;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::document::RowContent;
use crate::fault::RowFault;
use crate::held_out::HeldOutShare;
use crate::language::TextLanguage;
use crate::row_json;

/// What a recipe says of the rows that a set uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RowSelection {
    /// Whether rows that say the same as one before, but for white space, are left out.
    pub deduplicated: bool,
    /// One side of a split by hash, where only that is used.
    pub side: Option<SplitSide>,
    /// Characters of the shortest row.
    pub min_chars: u64,
    /// Characters of the longest row, if there is a limit.
    pub max_chars: Option<u64>,
    /// A pattern that the text of a row must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_regex: Option<TextPattern>,
    /// A pattern that it must not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_regex: Option<TextPattern>,
    /// Languages of which a text must be in one; all where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<TextLanguage>,
    /// Fields by their dotted names, each with the values of which a row must have one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Vec<String>>,
}

/// A regular expression that is looked for in texts.
#[derive(Clone, Debug)]
pub struct TextPattern(Regex);

impl TextPattern {
    /// Compiles an expression of the crate `regex`: its time is linear in the text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(expression: &str) -> Result<Self, String> {
        Regex::new(expression).map(Self).map_err(|error| error.to_string())
    }

    /// The expression.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for TextPattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Serialize for TextPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A side of a split of rows by a hash of what they say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SplitSide {
    /// The share of the rows that is held out.
    pub share: f64,
    /// Another seed holds out other rows.
    pub seed: u64,
    /// Whether the rows that are held out are used, instead of the others.
    pub held_out: bool,
}

/// What becomes of a row by its own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFate {
    Used,
    Filtered,
    /// It belongs to the other side.
    OtherSide,
}

impl RowSelection {
    /// Whether a row's text has to be looked at.
    pub(crate) fn is_needed(&self) -> bool {
        *self != Self::default()
    }

    pub(crate) fn fate(&self, text: &str) -> RowFate {
        // The cheap question first: patterns and languages take much longer than counting.
        if !(self.takes_length(text) && self.takes_text(text)) {
            return RowFate::Filtered;
        }
        let used = |side: &SplitSide| {
            HeldOutShare::new(side.share, side.seed).holds_out(text) == side.held_out
        };
        if self.side.as_ref().is_none_or(used) { RowFate::Used } else { RowFate::OtherSide }
    }

    fn takes_length(&self, text: &str) -> bool {
        let chars = text.chars().count() as u64;
        chars >= self.min_chars && self.max_chars.is_none_or(|most| chars <= most)
    }

    fn takes_text(&self, text: &str) -> bool {
        self.keep_regex.as_ref().is_none_or(|TextPattern(kept)| kept.is_match(text))
            && !self.drop_regex.as_ref().is_some_and(|TextPattern(dropped)| dropped.is_match(text))
            && (self.languages.is_empty()
                || TextLanguage::of(text).is_some_and(|found| self.languages.contains(&found)))
    }

    /// Whether the fields of a row have the values that are asked for.
    pub(crate) fn takes_fields(&self, content: &RowContent) -> Result<bool, RowFault> {
        if self.fields.is_empty() {
            return Ok(true);
        }
        let row = row_json::object(content)?;
        let fits = |(name, values): (&String, &Vec<String>)| {
            field(&row, name).is_some_and(|found| values.iter().any(|value| says(found, value)))
        };
        Ok(self.fields.iter().all(fits))
    }
}

/// A field by its own name, else by its dotted one: `meta.language` is `language` in the object
/// `meta`.
fn field<'a>(row: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    // A column may have a dot in its own name.
    row.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        field(row.get(first)?.as_object()?, rest)
    })
}

/// Whether a value, or one of a list of them, is written like this.
fn says(found: &Value, value: &str) -> bool {
    match found {
        Value::String(text) => text == value,
        Value::Array(items) => items.iter().any(|item| says(item, value)),
        other => {
            let written = other.to_string();
            written == value
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_on_one_side_and_lengths_count_characters() {
        let side = |held_out| RowSelection {
            side: Some(SplitSide { share: 0.3, seed: 1, held_out }),
            ..RowSelection::default()
        };
        for n in 0..200 {
            let text = format!("row {n}");
            let sides = [false, true].map(|held_out| side(held_out).fate(&text) == RowFate::Used);
            assert_ne!(sides[0], sides[1], "{text}");
        }
        let lengths = RowSelection { min_chars: 2, max_chars: Some(3), ..RowSelection::default() };
        let used = ["é", "éé", "abc", "abcd"].map(|text| lengths.fate(text) == RowFate::Used);
        assert_eq!(used, [false, true, true, false]);
        assert!(lengths.is_needed() && !RowSelection::default().is_needed());
    }

    #[test]
    fn patterns_and_languages_choose_by_the_text() {
        let pattern = |text: &str| Some(TextPattern::new(text).unwrap());
        let selection = RowSelection {
            keep_regex: pattern("(?i)road"),
            drop_regex: pattern(r"lorem|\bad\b"),
            languages: TextLanguage::from_code("en").into_iter().collect(),
            ..RowSelection::default()
        };
        for (text, used) in [
            ("The long Road goes ever on and on.", true),
            ("The long street goes ever on and on.", false),
            ("The road is an ad for all of you.", false),
            ("Der lange Weg, auf Englisch road, geht immer weiter.", false),
        ] {
            assert_eq!(selection.fate(text) == RowFate::Used, used, "{text}");
        }
        assert!(TextPattern::new("(").unwrap_err().contains("unclosed"));
    }

    #[test]
    fn fields_choose_by_their_values_nested_ones_and_lists_included() {
        let takes = |name: &str, values: &[&str], row: &str| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            let fields = BTreeMap::from([(name.to_owned(), values)]);
            let selection = RowSelection { fields, ..RowSelection::default() };
            selection.takes_fields(&RowContent::Json(row.into())).unwrap()
        };
        for (name, row, taken) in [
            ("language", r#"{"language": "de"}"#, true),
            ("language", r#"{"language": "fr"}"#, false),
            ("language", r#"{"lang": "en"}"#, false),
            ("meta.language", r#"{"meta": {"language": "en"}}"#, true),
            ("meta.language", r#"{"meta.language": "en"}"#, true),
            ("languages", r#"{"languages": ["fr", "en"]}"#, true),
            ("quality", r#"{"quality": 3}"#, true),
            ("ok", r#"{"ok": true}"#, true),
        ] {
            assert_eq!(takes(name, &["en", "de", "3", "true"], row), taken, "{name} {row}");
        }
    }
}
