//! No public type name stands twice in the workspace: a reader who searches for a name finds one type.

use std::collections::BTreeMap;

use super::{root, sources};

/// The name that a line declares as a public type, if it does.
fn declared(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("pub")?;
    // `pub`, `pub(crate)`, `pub(super)`, …
    let rest = match rest.strip_prefix('(') {
        Some(rest) => rest.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let kind = words.next()?;
    let name = words.next()?.split(|c: char| !c.is_alphanumeric()).next()?;
    let is_type = ["struct", "enum", "trait", "type", "union"].contains(&kind);
    (is_type && name.starts_with(char::is_uppercase)).then_some(name)
}

#[test]
fn no_public_type_name_stands_twice() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        let file = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let is_test = file.starts_with("tests/") || file.starts_with("examples/");
        if is_test || file.contains("/tests/") || file.ends_with("tests.rs") {
            continue;
        }
        for name in text.lines().filter_map(declared) {
            places.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(places.len() > 200, "the scanner finds the types");
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn the_scanner_of_type_names_knows_visibilities() {
    assert_eq!(declared("pub struct Model<'a> {"), Some("Model"));
    assert_eq!(declared("    pub(crate) enum Kind {"), Some("Kind"));
    assert_eq!(declared("pub fn run() {"), None);
    assert_eq!(declared("struct Private;"), None);
}
