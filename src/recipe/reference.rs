//! The reference page of recipe keys, generated from their table.

use super::keys::{KEYS, KeyDefault, RecipeKey};

fn default_text(key: &RecipeKey) -> String {
    match key.default {
        KeyDefault::Required => "**required**".into(),
        KeyDefault::Value(value) => format!("`{value}`"),
        KeyDefault::Chosen(words) => words.into(),
    }
}

/// The reference of all recipe keys as Markdown, a table for each section.
pub fn reference() -> String {
    let mut page = "# Recipe reference\n\nGenerated from `src/recipe/keys.rs`; after a change of \
        that file, `UPDATE_DOCS=1 cargo test -p bitnet-train --lib recipe::tests::keys` writes \
        this page again. Relative paths count from the recipe's folder.\n"
        .to_owned();
    let mut section = None;
    for key in KEYS {
        let (parent, _) = key.name.split_once('.').unwrap_or(("", key.name));
        if section != Some(parent) {
            let title = match parent {
                "" => "Top level".to_owned(),
                "phase" => "`[[phase]]`".to_owned(),
                parent => format!("`[{parent}]`"),
            };
            page += &format!("\n## {title}\n\n| key | takes | default | stages | meaning |\n");
            page += "|---|---|---|---|---|\n";
            section = Some(parent);
        }
        let name = key.name.strip_prefix(&format!("{parent}.")).unwrap_or(key.name);
        let (takes, default) = (key.takes, default_text(key));
        page += &format!("| `{name}` | {takes} | {default} | {} | {} |\n", key.stages, key.doc);
    }
    page
}
