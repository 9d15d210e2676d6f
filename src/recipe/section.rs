//! Reading a tree key by key while collecting everything that is wrong with it.
//!
//! A reader that finds a mistake adds it to [`Problems`] and returns `None`. The caller continues
//! with any value, because a recipe with a problem is never returned. The keys that were read are
//! the known keys; [`Section::finish`] reports all others.

use super::error::{Location, Problem, Problems};
use super::item::{Item, dotted};
use super::keys;
use super::tree::{Entry, Node, TomlValue};

/// A table being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    entries: &'a [Entry],
    key: String,
    place: Location,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    fn new(entries: &'a [Entry], key: String, place: Location, problems: &'a Problems) -> Self {
        Self { entries, key, place, known: Vec::new(), problems }
    }

    /// The table that is the value of `item`.
    pub(super) fn of(item: &Item<'a>, expected: &str) -> Option<Self> {
        match &item.node.content {
            TomlValue::Table(entries) => {
                Some(Self::new(entries, item.key.clone(), item.place.clone(), item.problems))
            }
            _ => item.wrong("wrong type", expected),
        }
    }

    /// The whole of a file.
    pub(super) fn root(tree: &'a Node, problems: &'a Problems) -> Self {
        Self::new(tree.entries(), String::new(), tree.place.clone(), problems)
    }

    /// Whether the table holds `key`, which stays to be read.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == key)
    }

    /// The value of `key`, which is known from now on.
    pub(super) fn item(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.name == key)?;
        Some(Item::entry(entry, &self.key, self.problems))
    }

    /// The value of a key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Item<'a>) -> Option<T>,
    ) -> Option<T> {
        self.item(key).and_then(|item| read(&item))
    }

    /// The value of a key that has a default in [`keys`], used where the value is missing.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&Item<'a>) -> Option<T>,
    ) -> T {
        // A default goes through the reader of its key, so it is parsed and checked like any
        // value. After a mistake it stands in for the value; the problem is noted by then.
        let found = self.item(key).and_then(|item| read(&item));
        found.or_else(|| read(&self.default(key))).expect("tests read every default")
    }

    fn default(&self, key: &str) -> Item<'a> {
        let key = dotted(&self.key, key);
        let node = keys::default_of(&key);
        Item { node, key, place: &node.place, problems: self.problems }
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Item<'a>) -> Option<T>,
    ) -> Option<T> {
        let item = self.item(key);
        if item.is_none() {
            self.missing(key, expected);
        }
        item.and_then(|item| read(&item))
    }

    /// The table under `key`; an empty one where there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let expected = format!("a table [{}]", dotted(&self.key, key));
        let found = self.item(key).and_then(|item| Self::of(&item, &expected));
        found.unwrap_or_else(|| {
            // What is missing in it is then reported where the table around it begins.
            Self::new(&[], dotted(&self.key, key), self.place.clone(), self.problems)
        })
    }

    /// Adds the problem that `key` is not there.
    pub(super) fn missing(&self, key: &str, expected: &str) {
        self.problem(key, format!("missing; expected {expected}, got nothing"));
    }

    /// Adds a mistake of the table as a whole; `key` may be empty.
    pub(super) fn problem(&self, key: &str, message: String) {
        let key = if key.is_empty() { self.key.clone() } else { dotted(&self.key, key) };
        self.problem_at(self.place.clone(), key, message);
    }

    /// Adds a mistake at another place.
    pub(super) fn problem_at(&self, place: Location, key: String, message: String) {
        self.problems.add(Problem { place, key, message, hint: None });
    }

    /// Reports every key that was not read.
    pub(super) fn finish(self) {
        for entry in self.entries {
            if !self.known.contains(&entry.name.as_str()) {
                self.unknown(entry);
            }
        }
    }

    fn unknown(&self, entry: &Entry) {
        let mut known = self.known.clone();
        known.sort_unstable();
        known.dedup();
        let message = format!("unknown key; expected one of {}", known.join(", "));
        self.problems.add(Problem {
            place: entry.place.clone(),
            key: dotted(&self.key, &entry.name),
            message: format!("{message}, got `{}`", entry.name),
            hint: nearest(&entry.name, &known).map(|name| format!("did you mean `{name}`?")),
        });
    }
}

/// The known key that `name` was most likely meant to be.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // From 0 to 1, and higher where the beginnings agree, which few people mistype.
    let score = |key: &str| strsim::jaro_winkler(name, key);
    let best = known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.75).then_some(best)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::item::Bound;
    use crate::recipe::tree::parse;

    fn messages(text: &str, read: impl FnOnce(&mut Section<'_>)) -> Vec<String> {
        let tree = parse(Path::new("r.toml"), text).unwrap();
        let problems = Problems::default();
        let mut section = Section::root(&tree, &problems);
        read(&mut section);
        section.finish();
        problems.into_sorted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_that_no_reader_asks_for_are_unknown_and_get_a_suggestion() {
        let found = messages("[data]\nseq_length = 5\nzebra = 1", |root| {
            let mut data = root.section("data");
            data.item("seq_len");
            data.item("long_rows");
            data.finish();
        });
        let [length, zebra] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            length,
            "r.toml:2:1 [data.seq_length]: unknown key; expected one of long_rows, seq_len, \
             got `seq_length`\nhint: did you mean `seq_len`?"
        );
        assert!(zebra.starts_with("r.toml:3:1 [data.zebra]") && !zebra.contains("hint"));
    }

    #[test]
    fn wrong_types_and_ranges_say_what_was_expected_and_found() {
        let found = messages("a = 0\nb = \"x\"\nc = 1.0\nd = nan\ne = 5", |root| {
            assert_eq!(root.optional("a", |item| item.whole(1)), None);
            assert_eq!(root.optional("b", |item| item.number(Bound::Positive)), None);
            assert_eq!(root.optional("c", |item| item.number(Bound::BelowOne)), None);
            assert_eq!(root.optional("d", |item| item.number(Bound::NonNegative)), None);
            assert_eq!(root.optional("e", Item::text), None);
        });
        assert_eq!(
            found,
            [
                "r.toml:1:5 [a]: out of range; expected a whole number of at least 1, got 0",
                "r.toml:2:5 [b]: wrong type; expected a number above 0, got \"x\"",
                "r.toml:3:5 [c]: out of range; expected a number from 0 to below 1, got 1",
                "r.toml:4:5 [d]: out of range; expected a number of at least 0, got NaN",
                "r.toml:5:5 [e]: wrong type; expected text in quotes, got 5",
            ]
        );
    }

    #[test]
    fn a_missing_key_is_reported_at_its_table() {
        let found = messages("\n[train]\n", |root| {
            let mut train = root.section("train");
            train.required("batch", "a whole number", |item| item.whole(1));
        });
        assert_eq!(
            found,
            ["r.toml:2:2 [train.batch]: missing; expected a whole number, got nothing"]
        );
    }
}
