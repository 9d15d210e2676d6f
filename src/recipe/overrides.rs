//! `dotted.key=value` words of the command line, applied to the tree of a recipe.
//!
//! A word acts as if its key were in the file. A relative path in it counts from the working
//! directory, where people type it; if there is nothing of that name, from the recipe's folder, like
//! the key in the file.
//! Where keys exclude each other, a word for one removes the others of the file: `train.tokens=…`
//! is enough to change a recipe that counts steps.

use super::error::{Location, Problem, Problems};
use super::tree::{Entry, Node, TomlValue, parse_word};

/// Keys that a word replaces besides its own: a key, then the keys beside it that go when it
/// comes; `*` is every key of a table that is a shape.
const REPLACES: &[(&[&str], &[&str])] = &[
    (&["train", "steps"], &["tokens", "epochs"]),
    (&["train", "tokens"], &["steps", "epochs"]),
    (&["train", "epochs"], &["steps", "tokens"]),
    (&["model", "init"], &["*"]),
    (&["model", "config"], &["init"]),
    (&["tokenizer", "path"], &["train"]),
    (&["tokenizer", "train"], &["path"]),
    (&["data", "generate"], &["train", "sets", "validation"]),
    (&["data", "train"], &["generate"]),
    (&["data", "sets"], &["generate"]),
];

/// Without any of these keys `[model]` describes no shape, only changes to the model that `init` names.
const SHAPES: [&str; 2] = ["config", "hidden_size"];

/// The words of a command line that change a recipe, in their order.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Clone, Debug)]
struct Override {
    path: Vec<String>,
    value: Node,
}

impl Overrides {
    /// Reads `dotted.key=value` words; a value that is not TOML is text.
    pub fn parse(words: &[String]) -> Result<Self, Vec<Problem>> {
        let (mut overrides, mut problems) = (Vec::new(), Vec::new());
        for word in words {
            match parse_override(word) {
                Some(found) => overrides.push(found),
                None => problems.push(not_an_override(word)),
            }
        }
        if problems.is_empty() { Ok(Self(overrides)) } else { Err(problems) }
    }

    /// Applies them to a recipe's tree.
    pub(super) fn apply(self, tree: &mut Node, problems: &Problems) {
        for Override { path, value } in self.0 {
            remove_excluded(tree, &path);
            if let Err(message) = set(tree, &path, value) {
                let (place, key) = (Location::CommandLine, path.join("."));
                problems.add(Problem { place, key, message, hint: None });
            }
        }
    }
}

fn parse_override(word: &str) -> Option<Override> {
    // At the first one: a value may be a table, with more of them.
    let (key, value) = word.split_once('=')?;
    let path: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
    let named = path.iter().all(|part| !part.is_empty());
    named.then(|| Override { path, value: parse_word(value.trim()) })
}

fn not_an_override(word: &str) -> Problem {
    let message = "not a setting; expected dotted.key=value, such as train.batch=32, got";
    Problem {
        place: Location::CommandLine,
        key: String::new(),
        message: format!("{message} {word:?}"),
        hint: None,
    }
}

/// Removes the file's keys that exclude the one at `path`.
fn remove_excluded(tree: &mut Node, path: &[String]) {
    for (key, beside) in REPLACES {
        let (parent, last) = (key[0], key[1]);
        if !path.iter().map(String::as_str).take(2).eq(key.iter().copied()) {
            continue;
        }
        let TomlValue::Table(tables) = &mut tree.content else { return };
        let Some(table) = tables.iter_mut().find(|entry| entry.name == parent) else { return };
        if let TomlValue::Table(entries) = &mut table.node.content {
            let named = |name: &str| entries.iter().any(|entry| entry.name == name);
            // A table that describes a shape goes as a whole; one that only says how a stored model
            // is changed (`quantise = true`) still holds for the new `init`.
            let all = beside.contains(&"*") && SHAPES.iter().any(|key| named(key));
            let goes = |name: &str| name != last && (all || beside.contains(&name));
            // Words replace keys of the file only. Two words that exclude each other both stay, so
            // that the reader refuses them.
            entries.retain(|entry| entry.place == Location::CommandLine || !goes(&entry.name));
        }
    }
}

fn set(node: &mut Node, path: &[String], value: Node) -> Result<(), String> {
    let Some((name, rest)) = path.split_first() else {
        *node = value;
        return Ok(());
    };
    let found = node.describe();
    match &mut node.content {
        TomlValue::Table(entries) => set(entry(entries, name, rest), rest, value),
        TomlValue::List(items) => match element(items, name) {
            Some(item) => set(item, rest, value),
            None => Err(format!("no such element; expected its name or index, got `{name}`")),
        },
        _ => Err(format!("nothing to set in it; expected a table around `{name}`, got {found}")),
    }
}

/// The value of `name`, made if there is none: an empty table, or the one phase that a recipe
/// without `[[phase]]` has.
fn entry<'a>(entries: &'a mut Vec<Entry>, name: &str, rest: &[String]) -> &'a mut Node {
    let at = entries.iter().position(|entry| entry.name == name).unwrap_or_else(|| {
        let of_main = name == "phase" && rest.first().is_some_and(|part| part == "main");
        let content = if of_main { main_phase() } else { TomlValue::Table(Vec::new()) };
        entries.push(new_entry(name, content));
        entries.len() - 1
    });
    &mut entries[at].node
}

fn new_entry(name: &str, content: TomlValue) -> Entry {
    let place = Location::CommandLine;
    Entry { name: name.into(), place: place.clone(), node: Node { place, content } }
}

fn main_phase() -> TomlValue {
    let name = new_entry("name", TomlValue::Text("main".into()));
    let place = Location::CommandLine;
    TomlValue::List(vec![Node { place, content: TomlValue::Table(vec![name]) }])
}

/// The element of a list with this index, or the table in it with this `name`.
fn element<'a>(items: &'a mut [Node], name: &str) -> Option<&'a mut Node> {
    let called = |node: &Node| {
        let mut entries = node.entries().iter();
        let own = entries.find(|entry| entry.name == "name").map(|entry| &entry.node.content);
        matches!(own, Some(TomlValue::Text(text)) if text == name)
    };
    // By name first: a phase may be called `1`.
    let at = items.iter().position(called).or_else(|| name.parse().ok())?;
    items.get_mut(at)
}
