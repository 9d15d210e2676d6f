//! Recipes as flat lists of dotted keys, and where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bitnet_format::input::read_text;
use serde::Serialize;
use toml::{Table, Value};

use crate::error::ReportError;

/// Far above any recipe.
const MOST_BYTES: u64 = 1 << 24;

/// A key in which recipes differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    /// Dotted: `train.batch`.
    pub key: String,
    /// The value in each recipe as TOML; none where it has no such key.
    pub values: Vec<Option<String>>,
}

/// Reads a recipe.
///
/// # Errors
/// When the file cannot be read or is not TOML.
pub fn read_recipe(path: &Path) -> Result<Table, ReportError> {
    let text = read_text(path, MOST_BYTES).map_err(|error| match error {
        bitnet_format::FormatError::Io(error) => ReportError::Io(error),
        other => ReportError::input(path, other.to_string()),
    })?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = 1 + before.unwrap_or_default().matches('\n').count();
        ReportError::input(path, format!("line {line}: no TOML: {}", error.message()))
    })
}

/// Every value under its dotted key; elements of lists of tables under their name or number.
pub fn flat_recipe(recipe: &Table) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    for (key, value) in recipe {
        flatten(key.clone(), value, &mut flat);
    }
    flat
}

fn flatten(key: String, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) if !table.is_empty() => {
            for (name, value) in table {
                flatten(format!("{key}.{name}"), value, flat);
            }
        }
        // By name, so that a phase or a data set that is inserted does not make all after it
        // differ.
        Value::Array(list) if list.iter().any(Value::is_table) => {
            for (at, value) in (1..).zip(list) {
                let name = value.get("name").and_then(Value::as_str);
                let name = name.map_or_else(|| format!("{at}"), str::to_owned);
                flatten(format!("{key}.{name}"), value, flat);
            }
        }
        other => {
            flat.insert(key, other.to_string());
        }
    }
}

/// The keys in which recipes are not all alike, in order.
pub fn differences(recipes: &[&Table]) -> Vec<KeyDifference> {
    let flat: Vec<_> = recipes.iter().map(|recipe| flat_recipe(recipe)).collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let values = |key: &String| flat.iter().map(|recipe| recipe.get(key).cloned()).collect();
    let all = keys.into_iter().map(|key| KeyDifference { key: key.clone(), values: values(key) });
    // Comparing with the first is enough: if all equal it, all are alike.
    all.filter(|it| it.values.iter().any(|value| *value != it.values[0])).collect()
}

/// For each recipe the keys in which it differs from any other: `train.batch=8 seed=2`.
pub fn differing_keys(recipes: &[&Table]) -> Vec<Vec<(String, String)>> {
    let differing = differences(recipes);
    let of = |at: usize| {
        let keys = differing.iter().map(|it| (it.key.clone(), it.values[at].clone()));
        keys.filter_map(|(key, value)| Some((key, value?))).collect()
    };
    (0..recipes.len()).map(of).collect()
}

/// A whole number of a recipe.
pub(crate) fn whole(recipe: &Table, path: &[&str]) -> Option<u64> {
    at(recipe, path)?.as_integer().and_then(|number| number.try_into().ok())
}

/// A value of a recipe by the names on the way to it.
pub(crate) fn at<'a>(recipe: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(recipe.get(*first)?, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn differing_keys_are_found_at_any_depth() {
        let one = recipe("seed = 1\n[train]\nbatch = 8\n[[phase]]\nname = \"a\"\nshare = 0.5");
        let two =
            recipe("seed = 1\n[train]\nbatch = 16\nsteps = 3\n[[phase]]\nname = \"a\"\nshare = 1");
        let found = differences(&[&one, &two]);
        let keys: Vec<_> = found.iter().map(|it| &*it.key).collect();
        assert_eq!(keys, ["phase.a.share", "train.batch", "train.steps"]);
        assert_eq!(found[2].values, [None, Some("3".to_owned())]);
        assert_eq!(differing_keys(&[&one, &two])[0].len(), 2);
        assert!(differences(&[&one, &one]).is_empty());
    }

    #[test]
    fn a_file_that_is_no_toml_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs_err::write(&path, "seed = 1\nseed = \n").unwrap();
        let error = read_recipe(&path).unwrap_err().to_string();
        assert!(error.contains("a.toml: line 2: no TOML"), "{error}");
    }
}
