//! What Jinja in `transformers` does and the template engine does otherwise: JSON and numbers as
//! Python writes them, Python's idea of whitespace, the day, and what can be iterated.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::message::is_python_space;

/// Installs filters, tests and functions.
pub(super) fn install(environment: &mut Environment) {
    // transformers replaces this filter too: Jinja's own writes `<`, `>` and `&` as escapes for
    // HTML.
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter("generation", generation);
    environment.add_test("iterable", is_iterable);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("raise_exception", raise);
    environment.set_formatter(write_value);
}

/// A JSON value as the template engine has it; the order of keys stays.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

/// The context variable that holds the two marks of [`generation`].
pub(super) const GENERATION_MARKS: &str = "generation_marks";

/// Encloses what is trained in two marks.
fn generation(state: &State, body: String) -> Result<String, Error> {
    // The marks are part of each rendering and not of the environment, which all renderings share.
    let marks = state.lookup(GENERATION_MARKS).unwrap_or_default();
    Ok(format!("{}{body}{}", marks.get_item_by_index(0)?, marks.get_item_by_index(1)?))
}

fn raise(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `None`, `True` and `False`; all else as the engine writes it.
fn write_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.kind() {
        ValueKind::None => write!(out, "None"),
        ValueKind::Bool => write!(out, "{}", if value.is_true() { "True" } else { "False" }),
        _ => write!(out, "{value}"),
    };
    written.map_err(Error::from)
}

/// `None` is not a list in Python.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && !value.is_undefined() && value.try_iter().is_ok()
}

fn trim(text: String, letters: Option<String>) -> String {
    // The argument of Python's `strip` is a set of letters, not a word.
    let cut =
        |letter: char| letters.as_ref().map_or(is_python_space(letter), |set| set.contains(letter));
    text.trim_matches(cut).to_owned()
}

fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no format of a date"))
    })?;
    Ok(text)
}

/// `json.dumps` with `ensure_ascii=False`.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(broken)?;
    if sort == Some(true) {
        json.sort_all_objects();
    }
    match indent {
        None => dump(&json, PythonFormatter),
        Some(width) => {
            dump(&json, PrettyFormatter::with_indent(" ".repeat(width.min(16)).as_bytes()))
        }
    }
}

fn dump(json: &serde_json::Value, formatter: impl Formatter) -> Result<String, Error> {
    let mut bytes = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(broken)?;
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

fn broken(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, error.to_string())
}

/// A space after every comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
