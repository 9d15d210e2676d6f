//! Filters and tests of Jinja that the template engine lacks or has otherwise.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};

use super::arguments::Arguments;
use super::message::is_python_space;
use super::methods;
use super::repr::str_of;

/// Installs all of them.
pub(super) fn install(environment: &mut Environment) {
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("string", |value: &Value| str_of(value));
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("indent", indent);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("unique", unique);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// What has a length and places: text too, in Python.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || (is_iterable(value) && value.len().is_some())
}

/// `None` is not a list in Python, and what is undefined is an empty one.
fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

fn trim(text: String, letters: Option<String>) -> String {
    text.trim_matches(methods::cut(letters)).to_owned()
}

fn replace(text: String, old: &str, new: &str, count: Option<i64>) -> String {
    match count.map(usize::try_from) {
        Some(Ok(count)) => text.replacen(old, new, count),
        _ => text.replace(old, new),
    }
}

/// The number that a text spells, else `default`, 0.
fn int(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let default = arguments.next("default")?.unwrap_or_else(|| Value::from(0));
    let base = arguments.number("base")?.unwrap_or(10);
    arguments.end()?;
    let truncated = |number: f64| number.is_finite().then(|| Value::from(number.trunc() as i128));
    let number = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => truncated(f64::try_from(value.clone())?),
        ValueKind::String => {
            let digits = digits_of(value.as_str().unwrap_or_default());
            integer(&digits, base).or_else(|| digits.parse().ok().and_then(truncated))
        }
        _ => None,
    };
    Ok(number.unwrap_or(default))
}

/// `int(digits, base)`.
fn integer(digits: &str, base: i64) -> Option<Value> {
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        3..=36 => "",
        _ => return None,
    };
    let (sign, rest) = digits.strip_prefix('-').map_or((1, digits), |rest| (-1, rest));
    let rest = rest.strip_prefix('+').unwrap_or(rest).to_lowercase();
    let rest = rest.strip_prefix(prefix).unwrap_or(&rest);
    if rest.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(rest, u32::try_from(base).ok()?)
        .ok()
        .map(|number| Value::from(sign * number))
}

/// The number that a text spells, else `default`, 0.0.
fn float(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let default = arguments.next("default")?.unwrap_or_else(|| Value::from(0.0));
    arguments.end()?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => digits_of(value.as_str().unwrap_or_default()).parse().ok(),
        _ => None,
    };
    Ok(number.map_or(default, Value::from))
}

/// Without the spaces around a number and the underscores in it.
fn digits_of(text: &str) -> String {
    text.trim_matches(is_python_space).replace('_', "")
}

/// `indent(width=4, first=False, blank=False)`; the width may be a text.
fn indent(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let width = arguments.next("width")?.unwrap_or_else(|| Value::from(4));
    let (first, blank) = (arguments.flag("first")?, arguments.flag("blank")?);
    arguments.end()?;
    let indent = match width.as_str() {
        Some(text) => text.to_owned(),
        None => methods::spaces(i64::try_from(width)?)?,
    };
    let lines = methods::split_lines(&text, false);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out += &indent;
        }
        out += line;
        out.push('\n');
    }
    // Jinja adds a line end before it splits, so that of the text stays.
    if !text.ends_with('\n') {
        out.pop();
    }
    Ok(out)
}

fn center(text: &str, width: Option<i64>) -> Result<String, Error> {
    methods::centered(text, width.unwrap_or(80), ' ')
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let letters = |number: Option<i64>, default| {
        number.map_or(default, |number| usize::try_from(number).unwrap_or(0))
    };
    let length = letters(arguments.number("length")?, 255);
    let inside_words = arguments.flag("killwords")?;
    let end = arguments.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = letters(arguments.number("leeway")?, 5);
    arguments.end()?;
    if text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words);
    Ok(format!("{}{end}", if inside_words { &*kept } else { words }))
}

fn wordcount(text: &str) -> usize {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.split(|letter| !is_word(letter)).filter(|word| !word.is_empty()).count()
}

/// `dictsort(case_sensitive=False, by='key', reverse=False)`.
fn dictsort(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let options: Kwargs = [
        ("case_sensitive", Value::from(arguments.flag("case_sensitive")?)),
        ("by", Value::from(arguments.text("by")?.unwrap_or_else(|| "key".to_owned()))),
        ("reverse", Value::from(arguments.flag("reverse")?)),
    ]
    .into_iter()
    .collect();
    arguments.end()?;
    filters::dictsort(value, options)
}

/// `unique(case_sensitive=False, attribute=None)`.
fn unique(state: &State, values: Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let case = [("case_sensitive", Value::from(arguments.flag("case_sensitive")?))];
    let attribute = arguments.next("attribute")?.map(|it| ("attribute", it));
    arguments.end()?;
    filters::unique(state, values, case.into_iter().chain(attribute).collect())
}
