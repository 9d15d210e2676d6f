//! An error on its way out: as text on stderr, and as one JSON object on stdout where `--json` asks
//! for it.

use std::io::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::facts::{ErrorFacts, in_our_form};
use crate::{Stream, colours, printable, printable_json};

/// Characters of a line of a message, at most: the names and values of foreign files have any length.
const LONGEST_LINE: usize = 2000;
/// Between the problems of one report.
const NEXT_PROBLEM: &str = "\nerror: ";

/// `{"error": …}`: the first problem's parts, and all of them where there are several.
#[derive(Debug, Serialize)]
struct ErrorReport {
    error: ErrorBody,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    code: u8,
    class: &'static str,
    #[serde(flatten)]
    first: ErrorFacts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<ErrorFacts>,
}

/// Whether the command line asks for JSON. It is asked before the command line is known to be valid.
pub fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json")
}

/// Reports an error that ends the program with `code`. A message may hold several problems, each
/// after the first with its own `error: `.
pub fn report(message: &str, code: u8) {
    let message = shortened(&in_our_form(message));
    let stopped = class(code) == "interrupted";
    let text = if stopped { message.clone() } else { format!("error: {message}") };
    show(&labelled(&printable(&text), colours(Stream::Stderr)));
    let given: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let facts = |problem| ErrorFacts::of(problem, &given);
    let problems: Vec<_> = message.split(NEXT_PROBLEM).map(facts).collect();
    report_json(code, problems);
}

/// The message with the middle of its overlong lines left out; what is expected stands at their ends.
fn shortened(message: &str) -> String {
    let line = |line: &str| {
        let count = line.chars().count();
        if count <= LONGEST_LINE {
            return line.to_owned();
        }
        let (half, left_out) = (LONGEST_LINE / 2, count - LONGEST_LINE);
        let first: String = line.chars().take(half).collect();
        let last: String = line.chars().skip(count - half).collect();
        format!("{first} [... {left_out} characters ...] {last}")
    };
    message.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

pub(crate) fn report_json(code: u8, problems: Vec<ErrorFacts>) {
    if wants_json() {
        // A closed stdout cannot be reported anywhere.
        let _ = writeln!(std::io::stdout().lock(), "{}", json(code, problems));
    }
}

fn json(code: u8, problems: Vec<ErrorFacts>) -> String {
    let first = problems.first().cloned().unwrap_or_default();
    let problems = if problems.len() > 1 { problems } else { Vec::new() };
    let report = ErrorReport { error: ErrorBody { code, class: class(code), first, problems } };
    let text = serde_json::to_string(&report).expect("text and numbers always serialise");
    printable_json(&text).into_owned()
}

/// The word for an exit code.
fn class(code: u8) -> &'static str {
    match code {
        2 => "usage",
        3 => "recipe",
        4 => "input",
        5 => "environment",
        6 => "diverged",
        7 => "refused",
        129 | 130 | 143 => "interrupted",
        _ => "internal",
    }
}

/// The text with the labels that begin its lines coloured, where that stream may be.
pub fn highlighted(text: &str, stream: Stream) -> String {
    labelled(text, colours(stream))
}

/// The text with its labels coloured.
fn labelled(text: &str, coloured: bool) -> String {
    if !coloured {
        return text.to_owned();
    }
    let labels = [
        ("error:", AnsiColor::Red),
        ("hint:", AnsiColor::Cyan),
        ("note:", AnsiColor::Cyan),
        ("warning:", AnsiColor::Yellow),
        ("verified:", AnsiColor::Green),
        ("== stage", AnsiColor::Blue),
    ];
    let line = |line: &str| {
        let found = labels.iter().find(|(label, _)| line.starts_with(label));
        found.map_or_else(
            || line.to_owned(),
            |(label, colour)| {
                let style = Style::new().bold().fg_color(Some((*colour).into()));
                format!("{style}{label}{style:#}{}", &line[label.len()..])
            },
        )
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes to stderr in one call, so that output of other processes does not interleave.
pub(crate) fn show(text: &str) {
    // A closed stderr cannot be reported anywhere.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_is_flat_and_several_are_listed() {
        let of = |text| ErrorFacts::of(text, &[]);
        let one = json(4, vec![of("a.txt:3: not UTF-8; expected text, got byte 0xff")]);
        assert_eq!(
            one,
            r#"{"error":{"code":4,"class":"input","message":"a.txt:3: not UTF-8; expected text, got byte 0xff","file":"a.txt","line":3,"expected":"text","got":"byte 0xff"}}"#
        );
        let two: Vec<_> = ["r.toml:1:2 [a]: x", "r.toml:2:1 [b]: y"].map(of).into();
        let two: serde_json::Value = serde_json::from_str(&json(3, two)).unwrap();
        assert_eq!(two["error"]["class"], "recipe");
        assert_eq!(two["error"]["field"], "a");
        assert_eq!(two["error"]["problems"][1]["field"], "b");
    }

    #[test]
    fn a_line_of_any_length_is_shown_by_its_ends() {
        let usual = "a.toml:3:1 [a]: unknown key; expected b, got c\nhint: d";
        assert_eq!(shortened(usual), usual);
        let long =
            format!("a.toml:3:1 [{}]: unknown key; expected é\nhint: d", "k".repeat(100_000));
        let short = shortened(&long);
        assert!(short.starts_with("a.toml:3:1 [kkk") && short.ends_with("expected é\nhint: d"));
        assert!(short.len() < 2200 && short.contains("[... 98"), "{short}");
    }

    #[test]
    fn every_documented_code_has_a_word() {
        let words = [1, 2, 3, 4, 5, 6, 7, 129, 130, 143].map(class);
        assert_eq!(words.iter().filter(|word| **word == "interrupted").count(), 3);
        assert_eq!(words.iter().filter(|word| **word == "internal").count(), 1);
    }

    #[test]
    fn only_labels_at_the_beginning_of_a_line_are_coloured() {
        assert_eq!(labelled("error: an error: x\nhint: y", false), "error: an error: x\nhint: y");
        let coloured = labelled("error: an error: x\nhint: y", true);
        assert_eq!(coloured.matches("\u{1b}[1m").count(), 2, "{coloured:?}");
        assert!(coloured.contains(" an error: x"), "{coloured:?}");
    }
}
