//! Methods of Python's `str`, `list`, `tuple` and `dict` that templates call: those that the
//! template engine's own set lacks or answers otherwise. All others are left to that set.

use std::sync::LazyLock;

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;

use super::arguments::{Arguments, invalid};
use super::message::is_python_space;
use super::repr::is_printable;

/// Digits that make numbers, of any script.
static DECIMAL: LazyLock<Regex> = LazyLock::new(|| regex(r"^\p{Nd}+$"));
/// Those, and digits that make none: raised, lowered and in circles.
static DIGITS: LazyLock<Regex> = LazyLock::new(|| regex(r"^[\p{Nd}²³¹⁰⁴-⁹₀-₉①-⑨]+$"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is ours")
}

/// A method's result; `None` where this set has no such method.
type Answer = Result<Option<Value>, Error>;

/// Calls `value.method(args)`.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => of_text(text, method, args)?,
        (ValueKind::Seq, _) => of_sequence(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    own.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
}

fn of_sequence(value: &Value, method: &str, args: &[Value]) -> Answer {
    match method {
        "copy" if !value.is_tuple() => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (sought,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *sought);
            let missing = || invalid(format!("{sought} is not in the list"));
            Ok(Some(Value::from(at.ok_or_else(missing)?)))
        }
        _ => Ok(None),
    }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Answer {
    for family in [searched, split, padded, stripped, changed, asked] {
        if let Some(answer) = family(text, method, args)? {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

/// `text[start:end]`, and the letters before it; `None` where it begins behind the end.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    let letters = text.chars().count();
    let place = |at: i64| {
        let back = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 { letters.saturating_sub(back) } else { back }
    };
    let (start, end) = (start.map_or(0, place), end.map_or(letters, place).min(letters));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start <= end).then(|| (start, &text[byte(start)..byte(end)]))
}

/// Where something is in the text, how often, and how the text begins and ends.
fn searched(text: &str, method: &str, args: &[Value]) -> Answer {
    if !matches!(
        method,
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith"
    ) {
        return Ok(None);
    }
    let (sought, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let part = slice(text, start, end);
    if matches!(method, "startswith" | "endswith") {
        let words =
            if sought.is_tuple() { sought.try_iter()?.collect() } else { vec![sought.clone()] };
        let mut found = false;
        for word in &words {
            let word = text_of(word, method)?;
            found |= part.is_some_and(|(_, part)| match method {
                "startswith" => part.starts_with(word),
                _ => part.ends_with(word),
            });
        }
        return Ok(Some(Value::from(found)));
    }
    let sought = text_of(sought, method)?;
    if method == "count" {
        return Ok(Some(Value::from(part.map_or(0, |(_, part)| part.matches(sought).count()))));
    }
    let at = part.and_then(|(before, part)| {
        let from_left = matches!(method, "find" | "index");
        let byte = if from_left { part.find(sought) } else { part.rfind(sought) };
        byte.map(|byte| before + part[..byte].chars().count())
    });
    match at {
        Some(at) => Ok(Some(Value::from(at))),
        None if matches!(method, "find" | "rfind") => Ok(Some(Value::from(-1))),
        None => Err(invalid(format!("{method}: {sought:?} is not in the text"))),
    }
}

fn text_of<'a>(value: &'a Value, method: &str) -> Result<&'a str, Error> {
    let wrong = || invalid(format!("{method} takes text, not {}", value.kind()));
    value.as_str().ok_or_else(wrong)
}

/// Parts of the text.
fn split(text: &str, method: &str, args: &[Value]) -> Answer {
    match method {
        "split" | "rsplit" => {
            let mut arguments = Arguments::of(args)?;
            let separator = arguments.text("sep")?;
            let most = arguments.number("maxsplit")?.unwrap_or(-1);
            arguments.end()?;
            let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
            let from_left = method == "split";
            let parts = match &separator {
                None => split_at_spaces(text, most, from_left),
                Some(separator) => split_at(text, separator, most, from_left)?,
            };
            Ok(Some(parts.into_iter().map(Value::from).collect()))
        }
        "splitlines" => {
            let mut arguments = Arguments::of(args)?;
            let keep = arguments.flag("keepends")?;
            arguments.end()?;
            Ok(Some(split_lines(text, keep).into_iter().map(Value::from).collect()))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid(format!("{method} takes a text that is not empty")));
            }
            let parts = match method {
                "partition" => text.split_once(separator).ok_or([text, "", ""]),
                _ => text.rsplit_once(separator).ok_or(["", "", text]),
            };
            let parts =
                parts.map_or_else(|whole| whole, |(before, after)| [before, separator, after]);
            Ok(Some(Value::from(Tuple::from(parts.map(Value::from)))))
        }
        _ => Ok(None),
    }
}

fn split_at<'a>(
    text: &'a str,
    separator: &str,
    most: usize,
    from_left: bool,
) -> Result<Vec<&'a str>, Error> {
    if separator.is_empty() {
        return Err(invalid("split takes a separator that is not empty"));
    }
    if from_left {
        return Ok(text.splitn(most.saturating_add(1), separator).collect());
    }
    let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
    parts.reverse();
    Ok(parts)
}

/// Runs of whitespace separate; the rest behind the last split stays as it is.
fn split_at_spaces(text: &str, most: usize, from_left: bool) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        rest = if from_left {
            rest.trim_start_matches(is_python_space)
        } else {
            rest.trim_end_matches(is_python_space)
        };
        if rest.is_empty() {
            break;
        }
        let cut = if from_left { rest.find(is_python_space) } else { rest.rfind(is_python_space) };
        match cut.filter(|_| parts.len() < most) {
            None => {
                parts.push(rest);
                break;
            }
            Some(at) if from_left => {
                parts.push(&rest[..at]);
                rest = &rest[at..];
            }
            Some(at) => {
                let behind = at + rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(&rest[behind..]);
                rest = &rest[..at];
            }
        }
    }
    if !from_left {
        parts.reverse();
    }
    parts
}

/// Python ends lines at more letters than `\n`.
pub(super) fn split_lines(text: &str, keep: bool) -> Vec<&str> {
    let is_end = |letter: char| {
        matches!(
            letter,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") {
            at + 2
        } else {
            at + rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// The text with letters around it.
fn padded(text: &str, method: &str, args: &[Value]) -> Answer {
    let letters = text.chars().count();
    let padded = match method {
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            let (lacking, fill) = (lacking(width, letters)?, fill.unwrap_or(' '));
            match method {
                "ljust" => text.to_owned() + &repeated(fill, lacking),
                "rjust" => repeated(fill, lacking) + text,
                _ => centered(text, width, fill)?,
            }
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", repeated('0', lacking(width, letters)?))
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            expand_tabs(text, size.unwrap_or(8).min(1 << 10))
        }
        _ => return Ok(None),
    };
    Ok(Some(Value::from(padded)))
}

fn repeated(letter: char, count: usize) -> String {
    std::iter::repeat_n(letter, count).collect()
}

/// As many spaces.
pub(super) fn spaces(count: i64) -> Result<String, Error> {
    Ok(repeated(' ', lacking(count, 0)?))
}

/// `str.center`.
pub(super) fn centered(text: &str, width: i64, fill: char) -> Result<String, Error> {
    let lacking = lacking(width, text.chars().count())?;
    // Python's rule for what does not halve.
    let left = lacking / 2 + (lacking & 1 & usize::try_from(width).unwrap_or(0));
    Ok(format!("{}{text}{}", repeated(fill, left), repeated(fill, lacking - left)))
}

/// How many letters a text of `letters` needs to be `width` wide.
fn lacking(width: i64, letters: usize) -> Result<usize, Error> {
    let lacking = usize::try_from(width).unwrap_or(0).saturating_sub(letters);
    // A template may ask for any number.
    if lacking > 1 << 20 {
        return Err(invalid("padded string is too large"));
    }
    Ok(lacking)
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for letter in text.chars() {
        match letter {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out += &" ".repeat(spaces);
                column += spaces;
            }
            '\t' => {}
            _ => {
                out.push(letter);
                column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// What `str.strip` takes away: a set of letters, not a word; whitespace where none is given.
pub(super) fn cut(letters: Option<String>) -> impl Fn(char) -> bool {
    move |letter| letters.as_ref().map_or(is_python_space(letter), |set| set.contains(letter))
}

/// The text without letters or words at its ends.
fn stripped(text: &str, method: &str, args: &[Value]) -> Answer {
    let rest = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (letters,): (Option<String>,) = from_args(args)?;
            let cut = cut(letters);
            match method {
                "strip" => text.trim_matches(cut),
                "lstrip" => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            }
        }
        "removeprefix" => {
            let (word,): (&str,) = from_args(args)?;
            text.strip_prefix(word).unwrap_or(text)
        }
        "removesuffix" => {
            let (word,): (&str,) = from_args(args)?;
            text.strip_suffix(word).unwrap_or(text)
        }
        _ => return Ok(None),
    };
    Ok(Some(Value::from(rest)))
}

/// The text in other letters.
fn changed(text: &str, method: &str, args: &[Value]) -> Answer {
    let changed = match method {
        "swapcase" => text.chars().map(swapped).collect(),
        // Full case folding but for the letters that only it changes: `ß`, final sigma.
        "casefold" => text.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
        "title" => titled(text),
        "capitalize" => {
            let mut letters = text.chars();
            let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
            first + &letters.as_str().to_lowercase()
        }
        _ => return Ok(None),
    };
    let () = from_args(args)?;
    Ok(Some(Value::from(changed)))
}

fn swapped(letter: char) -> String {
    if letter.is_uppercase() {
        letter.to_lowercase().collect()
    } else {
        letter.to_uppercase().collect()
    }
}

/// Every letter behind one that is none begins a word.
fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase());
        } else {
            out.extend(letter.to_uppercase());
        }
        inside = is_cased(letter);
    }
    out
}

fn is_cased(letter: char) -> bool {
    letter.is_lowercase() || letter.is_uppercase()
}

/// What kinds of letters the text has.
fn asked(text: &str, method: &str, args: &[Value]) -> Answer {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let holds = match method {
        "isdecimal" => DECIMAL.is_match(text),
        "isdigit" => DIGITS.is_match(text),
        "isspace" => all(is_python_space),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let first = text.chars().next();
            first.is_some_and(|first| first == '_' || first.is_alphabetic())
                && text.chars().all(|letter| letter == '_' || letter.is_alphanumeric())
        }
        "istitle" => text.chars().any(is_cased) && titled(text) == text,
        _ => return Ok(None),
    };
    let () = from_args(args)?;
    Ok(Some(Value::from(holds)))
}
