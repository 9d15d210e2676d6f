//! How the files of a set are read and which of their rows are used: keys of `[data]`, and of a set that
//! differs from it.

use std::collections::BTreeMap;

use super::item::{Bound, Item, word};
use super::section::Section;
use crate::data::{
    BadRows, FileOptions, ReadingRules, RowSelection, TextLanguage, TextMarkers, TextPattern,
    TextSplit, TokenFiles, TokenType, UnknownRole,
};

/// What a recipe calls leaving out duplicates, or not.
const DEDUP_WORDS: &[(&str, bool)] = &[("none", false), ("exact", true)];

/// The words of the keys that say how files are read, with their values.
pub(super) fn reading_words(reading: &ReadingRules) -> [(&'static str, &'static str); 4] {
    let ReadingRules { files, unknown_role, selection, bad_rows, .. } = reading;
    [
        ("text_split", word(TextSplit::WORDS, files.text_split)),
        ("on_unknown_role", word(UnknownRole::WORDS, *unknown_role)),
        ("dedup", word(DEDUP_WORDS, selection.deduplicated)),
        ("bad_rows", word(BadRows::WORDS, *bad_rows)),
    ]
}

/// Where rows stand in files, which are used, and what happens to those that cannot be. What a set does
/// not say is as in `outer`, the rules of `[data]`.
pub(super) fn read_reading(table: &mut Section<'_>, outer: Option<&ReadingRules>) -> ReadingRules {
    let of = |choose: fn(&ReadingRules) -> &RowSelection| outer.map(choose);
    let outer_files = outer.map(|outer| &outer.files);
    let columns = table.optional("columns", |item| {
        let named = item.named("a table such as { instruction = \"Question\" }")?;
        named.iter().map(|(name, item)| Some(((*name).to_owned(), item.word()?))).collect()
    });
    let files = FileOptions {
        field: table
            .optional("field", Item::word)
            .or_else(|| outer_files.and_then(|outer| outer.field.clone())),
        columns: columns
            .or_else(|| outer_files.map(|outer| outer.columns.clone()))
            .unwrap_or_default(),
        text_split: value_or(
            table,
            "text_split",
            outer_files.map(|outer| outer.text_split),
            |item| item.choice(TextSplit::WORDS),
        ),
        tokens: table
            .item("tokens")
            .map(|item| read_tokens(&item))
            .or_else(|| outer_files.and_then(|outer| outer.tokens)),
        chosen_by: Vec::new(),
    };
    let unknown_role =
        value_or(table, "on_unknown_role", outer.map(|outer| outer.unknown_role), |item| {
            item.choice(UnknownRole::WORDS)
        });
    let strict = value_or(table, "strict", outer.map(|outer| outer.strict), Item::boolean);
    let text_markers = table
        .item("text_markers")
        .and_then(|item| read_markers(&item))
        .or_else(|| outer.and_then(|outer| outer.text_markers.clone()));
    let bad_rows = value_or(table, "bad_rows", outer.map(|outer| outer.bad_rows), |item| {
        item.choice(BadRows::WORDS)
    });
    let max_bad_share =
        value_or(table, "max_bad_share", outer.map(|outer| outer.max_bad_share), |item| {
            item.number(Bound::BelowOne)
        });
    let selection = read_selection(table, of(|outer| &outer.selection));
    ReadingRules { files, unknown_role, strict, text_markers, selection, bad_rows, max_bad_share }
}

/// The value of a key, else that of `[data]`, else its default.
fn value_or<'a, T>(
    table: &mut Section<'a>,
    key: &'static str,
    outer: Option<T>,
    read: impl Fn(&Item<'a>) -> Option<T>,
) -> T {
    match outer {
        None => table.value(key, read),
        Some(outer) => table.optional(key, read).unwrap_or(outer),
    }
}

/// Which rows are used.
fn read_selection(table: &mut Section<'_>, outer: Option<&RowSelection>) -> RowSelection {
    let [keep_regex, drop_regex] =
        ["keep_regex", "drop_regex"].map(|key| table.optional(key, read_pattern_of_text));
    RowSelection {
        deduplicated: value_or(table, "dedup", outer.map(|outer| outer.deduplicated), |item| {
            item.choice(DEDUP_WORDS)
        }),
        // Which side of `validation_share` is chosen where the sources are opened.
        side: None,
        min_chars: value_or(table, "min_chars", outer.map(|outer| outer.min_chars), |item| {
            item.whole(0)
        }),
        // From here on there is no constant default, which `value_or` would take from `keys`.
        max_chars: table
            .optional("max_chars", |item| item.whole(1))
            .or_else(|| outer.and_then(|outer| outer.max_chars)),
        keep_regex: keep_regex.or_else(|| outer.and_then(|outer| outer.keep_regex.clone())),
        drop_regex: drop_regex.or_else(|| outer.and_then(|outer| outer.drop_regex.clone())),
        languages: table
            .optional("language", read_languages)
            .or_else(|| outer.map(|outer| outer.languages.clone()))
            .unwrap_or_default(),
        fields: table
            .optional("where", read_where)
            .or_else(|| outer.map(|outer| outer.fields.clone()))
            .unwrap_or_default(),
    }
}

fn read_pattern_of_text(item: &Item<'_>) -> Option<TextPattern> {
    let text = item.word()?;
    TextPattern::new(&text)
        .map_err(|reason| {
            item.problem(format!(
                "bad pattern; expected a regular expression, got {text:?}: {reason}"
            ));
        })
        .ok()
}

fn read_languages(item: &Item<'_>) -> Option<Vec<TextLanguage>> {
    let expected = "codes of languages, such as \"en\" or [\"en\", \"de\"]";
    let language = |word: String| {
        TextLanguage::from_code(&word).or_else(|| item.wrong("unknown language", expected))
    };
    words(item, expected)?.into_iter().map(language).collect()
}

fn read_where(item: &Item<'_>) -> Option<BTreeMap<String, Vec<String>>> {
    let named = item.named("a table of fields, such as { language = [\"en\", \"de\"] }")?;
    let values = |item: &Item<'_>| words(item, "a text or a list of them");
    named.iter().map(|(name, item)| Some(((*name).to_owned(), values(item)?))).collect()
}

/// A text or a list of texts.
fn words(item: &Item<'_>, expected: &str) -> Option<Vec<String>> {
    if item.is_text() {
        return Some(vec![item.text()?]);
    }
    item.list(expected)?.iter().map(Item::text).collect()
}

fn read_markers(item: &Item<'_>) -> Option<TextMarkers> {
    let mut table = Section::of(item, "a table such as { response = \"<|assistant|>\" }")?;
    let response = table.required("response", "the text before an answer", Item::word);
    let instruction = table.optional("instruction", Item::word);
    table.finish();
    Some(TextMarkers { response: response?, instruction })
}

fn read_tokens(item: &Item<'_>) -> TokenFiles {
    let Some(mut table) = Section::of(item, "a table such as { dtype = \"u16\" }") else {
        return TokenFiles::default();
    };
    let dtype = table.optional("dtype", |item| item.choice(TokenType::WORDS));
    let id = |item: &Item<'_>| item.whole_between(0, u32::MAX.into()).map(|id| id as u32);
    let document_separator = table.optional("document_separator", id);
    table.finish();
    TokenFiles { dtype, document_separator }
}
