//! Names of files in messages: always on one line.

use std::borrow::Cow;
use std::path::Path;

/// A path or a name as messages show it. A name may hold line breaks, and what follows one would
/// read as a line of the program's own.
pub trait Shown {
    /// The name with every control character as an escape such as `\n` or `\u{1b}`.
    fn shown(&self) -> Cow<'_, str>;
}

impl Shown for Path {
    fn shown(&self) -> Cow<'_, str> {
        on_one_line(self.to_string_lossy())
    }
}

impl Shown for str {
    fn shown(&self) -> Cow<'_, str> {
        on_one_line(Cow::Borrowed(self))
    }
}

fn on_one_line(name: Cow<'_, str>) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return name;
    }
    let escaped = |character: char| {
        let text = character.escape_default().to_string();
        if character.is_control() { text } else { character.to_string() }
    };
    Cow::Owned(name.chars().map(escaped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line() {
        assert_eq!(Path::new("a b/é.jsonl").shown(), "a b/é.jsonl");
        assert_eq!("a\nerror: b\t\u{1b}c".shown(), "a\\nerror: b\\t\\u{1b}c");
    }
}
