//! Reading one value: its type, its range, and the message where they do not fit.

use std::env::current_dir;
use std::path::{Path, PathBuf};

use super::error::{Location, Problem, Problems};
use super::pattern::PathPattern;
use super::tree::{Entry, Node, TomlValue};

/// The numbers a key takes. All of them are computed with in f32, so one that is infinite, 0 or 1
/// there is refused where that would be another setting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    Positive,
    NonNegative,
    /// `[0, 1)`, as the decay of a moving average.
    BelowOne,
    /// What a loss is multiplied with.
    Factor,
    /// Passes over data.
    Epochs,
    /// 0, or what logits can be divided by.
    Temperature,
    /// `(0, 1]`, as a share of the run.
    Share,
    /// Minutes of up to ten years: a clock that never strikes is off.
    Minutes,
}

/// The normal numbers of f32, with room to multiply.
const LEAST: f64 = 1e-37;
const MOST: f64 = 1e37;

/// Ten years.
const MOST_MINUTES: f64 = 5_256_000.0;

impl Bound {
    fn holds(self, x: f64) -> bool {
        x.is_finite()
            && match self {
                Self::Positive => (LEAST..=MOST).contains(&x),
                Self::NonNegative => x == 0.0 || (LEAST..=MOST).contains(&x),
                // 0.99999999 is 1 as an f32, and an average with that decay never moves.
                Self::BelowOne => x >= 0.0 && (x as f32) < 1.0,
                Self::Factor => (1e-6..=1e6).contains(&x),
                Self::Epochs => (1e-9..=1e6).contains(&x),
                Self::Temperature => x == 0.0 || (1e-5..=1e5).contains(&x),
                Self::Share => x > 0.0 && x <= 1.0,
                Self::Minutes => (0.0..=MOST_MINUTES).contains(&x),
            }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Positive => "a number above 0",
            Self::NonNegative => "a number of at least 0",
            Self::BelowOne => "a number from 0 to below 1",
            Self::Factor => "a number above 0 (0.000001 to 1000000)",
            Self::Epochs => "a number above 0 (1e-9 to 1000000)",
            Self::Temperature => "a number of at least 0 (0, or 0.00001 to 100000)",
            Self::Share => "a number above 0 and at most 1",
            Self::Minutes => "minutes from 0 (off) to 5256000 (ten years)",
        }
    }

    /// What to add for a number of the right sign.
    fn limits(self, x: f64) -> &'static str {
        match self {
            Self::Positive | Self::NonNegative if x.is_finite() && x > 0.0 => " (1e-37 to 1e37)",
            _ => "",
        }
    }
}

/// One value with its dotted key.
#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    pub(super) node: &'a Node,
    pub(super) key: String,
    /// Where the key is.
    pub(super) place: &'a Location,
    pub(super) problems: &'a Problems,
}

impl<'a> Item<'a> {
    /// The value of an entry of the table `parent`.
    pub(super) fn entry(entry: &'a Entry, parent: &str, problems: &'a Problems) -> Self {
        let key = dotted(parent, &entry.name);
        Self { node: &entry.node, key, place: &entry.place, problems }
    }

    /// Adds a mistake at the value; `message` says what was expected and what was found.
    pub(super) fn problem(&self, message: String) {
        let (place, key) = (self.node.place.clone(), self.key.clone());
        self.problems.add(Problem { place, key, message, hint: None });
    }

    pub(super) fn wrong<T>(&self, what: &str, expected: &str) -> Option<T> {
        self.problem(format!("{what}; expected {expected}, got {}", self.node.describe()));
        None
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.node.content, TomlValue::Text(_))
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.node.content, TomlValue::Table(_))
    }

    pub(super) fn text(&self) -> Option<String> {
        match &self.node.content {
            TomlValue::Text(text) => Some(text.clone()),
            _ => self.wrong("wrong type", "text in quotes"),
        }
    }

    /// Text that is not empty.
    pub(super) fn word(&self) -> Option<String> {
        let text = self.text()?;
        if text.is_empty() { self.wrong("empty", "some text") } else { Some(text) }
    }

    /// The folder that the relative path or pattern `name` counts from: that of the recipe; for a
    /// word of the command line the working directory, if there is such a file.
    pub(super) fn folder_of(&self, name: &str, recipe: &Path) -> PathBuf {
        let here = if self.node.place == Location::CommandLine { current_dir().ok() } else { None };
        // Exactly this name, or a pattern that matches something there.
        let has = |folder: &PathBuf| {
            let pattern = PathPattern::new(folder, name);
            folder.join(name).exists() || pattern.is_ok_and(|it| it.expand(&self.key).is_ok())
        };
        here.filter(has).unwrap_or_else(|| recipe.to_owned())
    }

    /// A path, absolute if `recipe` is.
    pub(super) fn path(&self, recipe: &Path) -> Option<PathBuf> {
        let name = self.word()?;
        Some(self.folder_of(&name, recipe).join(name))
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.node.content {
            TomlValue::Boolean(answer) => Some(answer),
            _ => self.wrong("wrong type", "true or false"),
        }
    }

    /// A whole number of at least `least`.
    pub(super) fn whole(&self, least: u64) -> Option<u64> {
        let expected = format!("a whole number of at least {least}");
        match self.node.content {
            TomlValue::Integer(number) => match u64::try_from(number) {
                Ok(number) if number >= least => Some(number),
                _ => self.wrong("out of range", &expected),
            },
            _ => self.wrong("wrong type", &expected),
        }
    }

    /// A whole number from `-most` to below `most`.
    pub(super) fn signed(&self, most: i64) -> Option<i64> {
        let expected = format!("a whole number from -{most} to below {most}");
        match self.node.content {
            TomlValue::Integer(number) if (-most..most).contains(&number) => Some(number),
            TomlValue::Integer(_) => self.wrong("out of range", &expected),
            _ => self.wrong("wrong type", &expected),
        }
    }

    /// A whole number of some range.
    pub(super) fn whole_between(&self, least: u64, most: u64) -> Option<u64> {
        let number = self.whole(least)?;
        if number > most {
            return self.wrong("out of range", &format!("a whole number up to {most}"));
        }
        Some(number)
    }

    /// A whole number from 1 that counts things in memory; products of two of them fit 64 bits.
    pub(super) fn count(&self) -> Option<usize> {
        self.whole_between(1, u32::MAX.into()).map(|number| number as usize)
    }

    pub(super) fn number(&self, bound: Bound) -> Option<f64> {
        let number = match self.node.content {
            TomlValue::Integer(number) => number as f64,
            TomlValue::Float(number) => number,
            _ => return self.wrong("wrong type", bound.describe()),
        };
        if bound.holds(number) {
            Some(number)
        } else {
            let expected = format!("{}{}", bound.describe(), bound.limits(number));
            self.wrong("out of range", &expected)
        }
    }

    /// One of a few words, each standing for a value.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let found = match &self.node.content {
            TomlValue::Text(text) => choices.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if let Some((_, value)) = found {
            return Some(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.wrong("unknown choice", &words.join(" or "))
    }

    /// The values of a list; `expected` says of what.
    pub(super) fn list(&self, expected: &str) -> Option<Vec<Self>> {
        match &self.node.content {
            TomlValue::List(nodes) => Some(nodes.iter().map(|node| self.element(node)).collect()),
            _ => self.wrong("wrong type", expected),
        }
    }

    fn element(&self, node: &'a Node) -> Self {
        // Elements have no names: a message shows the key of the list and the element's place.
        Self { node, key: self.key.clone(), place: &node.place, problems: self.problems }
    }

    /// The values of a table whose keys are the user's own names.
    pub(super) fn named(&self, expected: &str) -> Option<Vec<(&'a str, Self)>> {
        let TomlValue::Table(entries) = &self.node.content else {
            return self.wrong("wrong type", expected);
        };
        let item =
            |entry: &'a Entry| (entry.name.as_str(), Self::entry(entry, &self.key, self.problems));
        Some(entries.iter().map(item).collect())
    }
}

/// A key within a table.
pub(super) fn dotted(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.into() } else { format!("{parent}.{name}") }
}

/// The word of a choice: [`Item::choice`] the other way round.
pub(super) fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, choice)| *choice == value);
    found.expect("every choice has its word").0
}
