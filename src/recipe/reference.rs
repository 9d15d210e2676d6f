//! The reference page of recipe keys, generated from their table.

use super::keys::{KEYS, KeyDefault, RecipeKey};

const INTRODUCTION: &str = "# Recipe reference\n\nGenerated from `src/recipe/keys.rs`; after a \
    change of that file, `UPDATE_DOCS=1 cargo test -p bitnet-train --lib recipe::tests::keys` \
    writes this page again. Relative paths count from the recipe's folder, in a word of \
    the command line from the working directory if they exist there.\n";

/// The reference of all recipe keys as Markdown, a table for each section.
pub fn reference() -> String {
    // Chunks are neighbours, and the table holds every section in one piece.
    let sections = KEYS.chunk_by(|a, b| section_of(a) == section_of(b)).map(section_table);
    std::iter::once(INTRODUCTION.to_owned()).chain(sections).collect()
}

fn section_of(key: &RecipeKey) -> &'static str {
    key.name.split_once('.').map_or("", |(section, _)| section)
}

fn section_table(keys: &[RecipeKey]) -> String {
    let title = match section_of(&keys[0]) {
        "" => "Top level".to_owned(),
        "phase" => "`[[phase]]`".to_owned(),
        section => format!("`[{section}]`"),
    };
    let rows: String = keys.iter().map(row).collect();
    let head = "| key | takes | default | stages | meaning |\n|---|---|---|---|---|";
    format!("\n## {title}\n\n{head}\n{rows}")
}

fn row(key: &RecipeKey) -> String {
    let name = key.name.split_once('.').map_or(key.name, |(_, name)| name);
    let default = match key.default {
        KeyDefault::Required => "**required**".into(),
        KeyDefault::Value(value) => format!("`{value}`"),
        KeyDefault::Chosen(words) => words.into(),
    };
    let RecipeKey { takes, stages, doc, .. } = key;
    format!("| `{name}` | {takes} | {default} | {stages} | {doc} |\n")
}
