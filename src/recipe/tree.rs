//! TOML as a tree whose every value knows where it was written.
//!
//! This file knows TOML and positions, nothing about recipes.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bitnet_format::foreign::{recognise, without_mark};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Location, Problem};

/// No recipe or config is longer; a larger file is a mistake.
const LARGEST_FILE: u64 = 256 << 10;

/// A value and where it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Location,
    pub(super) content: TomlValue,
}

/// What TOML can hold.
#[derive(Clone, Debug)]
pub(super) enum TomlValue {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// What no recipe uses: dates, and whole numbers beyond 64 bits.
    Other(String),
}

/// A key of a table with its value, in the order of the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the key is; for `[table]` within the header.
    pub(super) place: Location,
    pub(super) node: Node,
}

impl Node {
    /// The value as a message shows it.
    pub(super) fn describe(&self) -> String {
        match &self.content {
            TomlValue::Text(text) => format!("{text:?}"),
            TomlValue::Integer(number) => number.to_string(),
            TomlValue::Float(number) => number.to_string(),
            TomlValue::Boolean(answer) => answer.to_string(),
            TomlValue::List(_) => "a list".into(),
            TomlValue::Table(_) => "a table".into(),
            TomlValue::Other(text) => text.clone(),
        }
    }

    /// The keys of a table; none for any other value.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.content {
            TomlValue::Table(entries) => entries,
            _ => &[],
        }
    }
}

/// The text of a recipe or config, refused beyond any sensible size.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    // "a zip archive" says more than the UTF-8 error that reading one as text would give.
    if let Some(kind) = recognise(path) {
        return Err(kind.name().to_owned());
    }
    let mut text = String::new();
    // A pipe would be waited for.
    if !fs_err::metadata(path).map_err(|error| reason(&error))?.is_file() {
        return Err("no file".to_owned());
    }
    let file = fs_err::File::open(path).map_err(|error| reason(&error))?;
    // One byte above the limit tells a file that is too long from one that just fits.
    file.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(|error| reason(&error))?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(format!("a file of more than {} KiB", LARGEST_FILE >> 10));
    }
    Ok(without_mark(&text).to_owned())
}

/// What the system said, without the path in backticks that the caller names anyway.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.rsplit_once("`: ").map_or(text.as_str(), |(_, reason)| reason).to_owned()
}

/// A whole TOML file; every syntax error of it where it is not one.
pub(super) fn parse(path: &Path, text: &str) -> Result<Node, Vec<Problem>> {
    let lines = Lines::new(path, text);
    // It goes on after an error, so that one reading shows all of them.
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let entries = table_entries(table.get_ref(), &|offset| lines.place(offset));
        return Ok(Node { place: lines.place(0), content: TomlValue::Table(entries) });
    }
    Err(syntax_problems(text, &lines, &errors))
}

/// What is wrong, and of a key that stands twice which one.
fn syntax_message(text: &str, error: &toml::de::Error) -> String {
    // The parser's message may have several lines; a problem is one.
    let message = error.message().replace('\n', ", ");
    let place = error.span().filter(|_| message == "duplicate key");
    match place.and_then(|span| text.get(span)) {
        Some(key) => format!("{message} `{key}`"),
        None => message,
    }
}

/// The first error of every line; what follows it there is mostly its echo.
fn syntax_problems(text: &str, lines: &Lines<'_>, errors: &[toml::de::Error]) -> Vec<Problem> {
    let problem = |error: &toml::de::Error| Problem {
        place: lines.place(error.span().map_or(0, |span| span.start)),
        key: String::new(),
        message: format!("not valid TOML: {}", syntax_message(text, error)),
        hint: None,
    };
    let mut problems: Vec<_> = errors.iter().map(problem).collect();
    // By place: `dedup_by_key` sees only neighbours, and keeps the first.
    problems.sort();
    problems.dedup_by_key(|problem| problem.place.line());
    problems
}

/// A value typed on the command line: TOML where it is TOML, otherwise the text itself.
pub(super) fn parse_word(word: &str) -> Node {
    match DeValue::parse(word) {
        Ok(value) => node(&value, &|_| Location::CommandLine),
        Err(_) => Node { place: Location::CommandLine, content: TomlValue::Text(word.into()) },
    }
}

fn node(value: &Spanned<DeValue<'_>>, place: &dyn Fn(usize) -> Location) -> Node {
    let content = match value.get_ref() {
        DeValue::String(text) => TomlValue::Text(text.to_string()),
        // TOML has whole numbers in base 2, 8 and 16 too.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => TomlValue::Integer(number),
            Err(_) => TomlValue::Other(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => TomlValue::Float(number),
            Err(_) => TomlValue::Other(number.as_str().into()),
        },
        DeValue::Boolean(answer) => TomlValue::Boolean(*answer),
        DeValue::Datetime(date) => TomlValue::Other(date.to_string()),
        DeValue::Array(values) => {
            TomlValue::List(values.iter().map(|value| node(value, place)).collect())
        }
        DeValue::Table(table) => TomlValue::Table(table_entries(table, place)),
    };
    Node { place: place(value.span().start), content }
}

fn table_entries(table: &DeTable<'_>, place: &dyn Fn(usize) -> Location) -> Vec<Entry> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<_>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        Entry { name: name.to_string(), place: place(key.span().start), node: node(value, place) }
    };
    table.iter().map(entry).collect()
}

/// Offsets of a file as lines and columns.
struct Lines<'a> {
    path: Arc<Path>,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(path: &Path, text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { path: path.into(), text, starts: std::iter::once(0).chain(ends).collect() }
    }

    fn place(&self, offset: usize) -> Location {
        // `starts` begins with 0, so at least one of them is not after the offset: lines count
        // from 1.
        let line = self.starts.partition_point(|&start| start <= offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        Location::File { path: self.path.clone(), line, column }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(place: &Location) -> (usize, usize) {
        match place {
            Location::File { line, column, .. } => (*line, *column),
            Location::CommandLine => (0, 0),
        }
    }

    #[test]
    fn keys_and_values_know_their_line_and_column() {
        let tree = parse(Path::new("r"), "a = 1\n[b]\n\"ü\" = \"x\"\n[[c]]\nd = 2\n").unwrap();
        let [a, b, c] = tree.entries() else { panic!("{tree:?}") };
        assert_eq!((position(&a.place), position(&a.node.place)), ((1, 1), (1, 5)));
        assert_eq!(position(&b.place), (2, 2));
        assert_eq!(position(&b.node.entries()[0].node.place), (3, 7));
        let TomlValue::List(items) = &c.node.content else { panic!("{c:?}") };
        assert_eq!(position(&items[0].place).0, 4);
    }

    #[test]
    fn every_syntax_error_is_reported_with_its_line() {
        let problems = parse(Path::new("r.toml"), "a = \nb = 1\nc = [1,\nd = \"").unwrap_err();
        assert!(problems.len() >= 2, "{problems:?}");
        assert_eq!(problems[0].place.line(), Some(1));
        assert!(problems[0].to_string().starts_with("r.toml:1:"), "{}", problems[0]);
    }

    #[test]
    fn a_word_that_is_not_toml_is_text() {
        assert!(matches!(parse_word("32").content, TomlValue::Integer(32)));
        assert!(matches!(parse_word("1e-3").content, TomlValue::Float(_)));
        assert!(matches!(parse_word("[\"a\"]").content, TomlValue::List(_)));
        assert!(
            matches!(parse_word("hf-packed").content, TomlValue::Text(text) if text == "hf-packed")
        );
        assert!(matches!(parse_word("1\nb = 2").content, TomlValue::Text(_)));
        assert!(matches!(parse_word("").content, TomlValue::Text(_)));
    }

    #[test]
    fn numbers_beyond_64_bits_are_kept_as_text() {
        let tree = parse(Path::new("r"), "a = 99999999999999999999\nb = 0x1_0").unwrap();
        assert_eq!(tree.entries()[0].node.describe(), "99999999999999999999");
        assert_eq!(tree.entries()[1].node.describe(), "16");
    }

    #[test]
    fn an_oversized_file_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.toml");
        fs_err::write(&path, "#".repeat(300 << 10)).unwrap();
        assert_eq!(read_text(&path).unwrap_err(), "a file of more than 256 KiB");
        let missing = read_text(Path::new("/no/such.toml")).unwrap_err();
        assert!(missing.starts_with("No such file"), "{missing}");
    }
}
