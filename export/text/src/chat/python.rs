//! What `transformers` adds to Jinja: JSON, the day, an exception, the marks of what is trained; and
//! values as Python writes them.

use std::fmt::Write;

use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::json::tojson;
use super::repr::str_of;

/// Installs filters, tests and functions.
pub(super) fn install(environment: &mut Environment) {
    // transformers replaces this filter too: Jinja's own writes `<`, `>` and `&` as escapes for
    // HTML.
    environment.add_filter("tojson", tojson);
    environment.add_filter("generation", generation);
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

/// As `str` of Python.
fn write_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text),
        // An undefined value is nothing.
        None if value.is_undefined() => Ok(()),
        None => out.write_str(&str_of(value)),
    }
    .map_err(Error::from)
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("{format:?} is no format of a date"))
    })?;
    Ok(text)
}
