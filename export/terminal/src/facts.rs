//! The parts of an error message, for programs that read it.
//!
//! Every message has the form `<file>[:line[:column]] [<field>]: <what>; expected …, got …`, with an
//! optional `hint:` on a line of its own. The parts are taken from the text, so that no error can
//! say one thing to people and another to programs.

use serde::Serialize;

/// An error message by its parts; what a message does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorFacts {
    /// The whole message without its hints.
    pub message: String,
    /// The file at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The key, tensor or flag at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What would have been right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What was there instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorFacts {
    /// The parts of one message. What it says is at fault is a file where it looks like one, and where
    /// `given`, the words of the command line, hold it: `missing`, `--model=missing`.
    pub fn of(text: &str, given: &[String]) -> Self {
        let (message, hint) = match text.split_once("\nhint: ") {
            Some((message, hint)) => (message, Some(hint.replace("\nhint: ", "; "))),
            None => (text, None),
        };
        let mut facts = Self { message: message.trim_end().to_owned(), hint, ..Self::default() };
        if let Some((head, what)) = message.split_once(": ") {
            facts.read_place(head, given);
            facts.read_expectation(what);
        }
        facts
    }

    /// Reads `<file>[:line[:column]] [<field>]`, or a flag.
    fn read_place(&mut self, head: &str, given: &[String]) {
        // A key may hold brackets, and so may a name; a name seldom holds a blank before one.
        let whole = head.strip_suffix(']');
        let parts = whole.and_then(|head| {
            head.strip_prefix('[').map(|field| ("", field)).or_else(|| head.split_once(" ["))
        });
        let (place, field) = match parts {
            Some((place, field)) => (place, Some(field.to_owned())),
            None if head.starts_with("--") => {
                ("", head.split([' ', '=']).next().map(str::to_owned))
            }
            None => (head, None),
        };
        let numbers = |place: &str| {
            let (rest, number) = place.rsplit_once(':')?;
            Some((rest.to_owned(), number.parse().ok()?))
        };
        let (file, line, column) = match numbers(place) {
            None => (place.to_owned(), None, None),
            Some((rest, last)) => match numbers(&rest) {
                None => (rest, Some(last), None),
                Some((file, line)) => (file, Some(line), Some(last)),
            },
        };
        (self.line, self.column) = (line, column);
        let is_file = line.is_some()
            || file.contains(['/', '\\', '.'])
            || field.is_some()
            || given.iter().any(|word| names(word, &file));
        self.file = Some(file).filter(|file| is_file && !file.is_empty() && file != "command line");
        self.field = field;
    }

    fn read_expectation(&mut self, what: &str) {
        let Some((_, expected)) = what.split_once("expected ") else { return };
        let (expected, got) = match expected.rsplit_once(", got ") {
            Some((expected, got)) => (expected, Some(got.trim_end().to_owned())),
            None => (expected, None),
        };
        (self.expected, self.got) = (Some(expected.trim_end().to_owned()), got);
    }
}

/// Whether a word of a command line is this value, alone, behind a `=`, or in a list of a recipe's key.
fn names(word: &str, value: &str) -> bool {
    let given = word.split_once('=').map_or(word, |(_, given)| given);
    let in_list = |text: &str| text.split(['[', ']', ',', '"', '\'', ' ']).any(|it| it == value);
    !value.starts_with('-') && (word == value || given == value || in_list(given))
}

/// A message of the operating system in our form: ``failed to open file `x`: …`` says what failed
/// before it says where.
pub(crate) fn in_our_form(message: &str) -> String {
    let parts = || {
        let (verb, rest) = message.strip_prefix("failed to ")?.split_once(" `")?;
        let (path, reason) = rest.split_once("`: ")?;
        let reason = reason.split(" (os error").next()?;
        let path = path.replace('\n', "\\n");
        Some(format!("{path}: cannot {verb}: {reason}"))
    };
    parts().unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> ErrorFacts {
        ErrorFacts::of(text, &[])
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn every_part_of_a_message_is_found() {
        let facts = of(
            "data/a b.jsonl:12:3 [messages.0]: wrong value; expected a list, got null\nhint: mend it",
        );
        assert_eq!(facts.file, text("data/a b.jsonl"));
        assert_eq!((facts.line, facts.column), (Some(12), Some(3)));
        assert_eq!(facts.field, text("messages.0"));
        assert_eq!((facts.expected, facts.got), (text("a list"), text("null")));
        assert_eq!(facts.hint, text("mend it"));
        assert!(facts.message.ends_with("got null"), "{}", facts.message);
    }

    #[test]
    fn what_a_message_does_not_say_is_absent() {
        let facts = of("x.jsonl:7: torn");
        assert_eq!((facts.file, facts.line, facts.column), (text("x.jsonl"), Some(7), None));
        let facts = of("/a/b: already exists");
        assert_eq!((facts.file, facts.field, facts.hint), (text("/a/b"), None, None));
        let facts = of("command line [train.step]: unknown key");
        assert_eq!((facts.file, facts.field), (None, text("train.step")));
        let facts = of("odd[1].toml:2:1 [k[0]]: unknown key");
        assert_eq!((facts.file, facts.field), (text("odd[1].toml"), text("k[0]")));
        let facts = of("--format: unknown; expected hf-bf16");
        assert_eq!(
            (facts.file, facts.field, facts.expected),
            (None, text("--format"), text("hf-bf16"))
        );
        let facts = of("step 4: loss was not finite");
        assert_eq!((facts.file, facts.line), (None, None));
        assert_eq!(of("interrupted").message, "interrupted");
    }

    #[test]
    fn the_systems_messages_begin_with_the_file_like_ours() {
        let system = "failed to open file `/a/b c`: No such file or directory (os error 2)";
        assert_eq!(in_our_form(system), "/a/b c: cannot open file: No such file or directory");
        assert_eq!(in_our_form("failed: `x`"), "failed: `x`");
        let broken = in_our_form("failed to open file `a\nb`: No such file or directory");
        assert_eq!(broken, "a\\nb: cannot open file: No such file or directory");
    }

    #[test]
    fn a_bare_name_of_the_command_line_is_a_file() {
        let given = ["eval", "--model=my model", "data.train=[\"a\", 'b']", "c"].map(str::to_owned);
        for name in ["my model", "a", "b", "c"] {
            let facts = ErrorFacts::of(&format!("{name}: no such file"), &given);
            assert_eq!(facts.file, text(name));
        }
        for text in ["step: was not finite", "--model: unknown", "interrupted: twice", ": nothing"]
        {
            assert_eq!(ErrorFacts::of(text, &given).file, None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let facts = ErrorFacts::of(&text, &[]);
            proptest::prop_assert!(facts.message.len() <= text.len());
        }
    }
}
