//! The keys of a task file, taken one after the other with what each may hold.

use std::path::Path;

use bitnet_text::RowTemplate;
use serde_json::{Map, Value};

use crate::error::EvalError;
use crate::functions::{self, RowFunction};
use crate::task::Source;
use crate::yaml::FUNCTION;

/// Keys that change nothing here.
const IGNORED: [&str; 6] = [
    "tag",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "dataset_kwargs",
    "unsafe_code",
    "group",
];

/// The keys of one file; what is taken is gone.
pub(crate) struct Keys<'a> {
    pub(crate) path: &'a Path,
    pub(crate) fields: Map<String, Value>,
}

impl Keys<'_> {
    pub(crate) fn wrong(&self, key: &str, what: impl Into<String>) -> EvalError {
        EvalError::task_file(self.path, key, what)
    }

    pub(crate) fn value(&mut self, key: &str) -> Option<Value> {
        // Taken, so that `finish` sees what nobody read; null is how YAML writes "not set".
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, EvalError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, format!("expected a text, got {other}"))),
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<usize>, EvalError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let what = format!("expected a whole number from 0, got {value}");
        number.map(Some).ok_or_else(|| self.wrong(key, what))
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, EvalError> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(key, format!("expected true or false, got {other}"))),
        }
    }

    /// Mappings in a list.
    pub(crate) fn mappings(
        &mut self,
        key: &str,
    ) -> Result<Option<Vec<Map<String, Value>>>, EvalError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let items = value.as_array().map(|items| items.iter().map(|it| it.as_object().cloned()));
        let mappings = items.and_then(Iterator::collect::<Option<Vec<_>>>);
        mappings.map(Some).ok_or_else(|| self.wrong(key, "expected a list of mappings"))
    }

    pub(crate) fn function(
        &mut self,
        key: &str,
        task: &str,
    ) -> Result<Option<RowFunction>, EvalError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        self.row_function(key, &text, task).map(Some)
    }

    fn row_function(&self, key: &str, text: &str, task: &str) -> Result<RowFunction, EvalError> {
        let name = text.strip_prefix(FUNCTION).unwrap_or(text);
        RowFunction::named(name, task).ok_or_else(|| self.wrong(key, unknown_function(name)))
    }

    /// How a value is made of a row.
    pub(crate) fn source(&mut self, key: &str, task: &str) -> Result<Option<Source>, EvalError> {
        let expected = "expected a template, a list of texts or a number";
        Ok(Some(match self.value(key) {
            None => return Ok(None),
            Some(Value::String(text)) if text.starts_with(FUNCTION) => {
                Source::Function(self.row_function(key, &text, task)?)
            }
            Some(Value::String(text)) => {
                let template = self.template(key, &text)?;
                Source::Text(text, template)
            }
            Some(Value::Array(items)) => {
                let items: Option<Vec<String>> = items.iter().map(plain_text).collect();
                Source::List(items.ok_or_else(|| self.wrong(key, expected))?)
            }
            // A mapping of labels to choices: the choices count, in their order.
            Some(Value::Object(fields)) => {
                let items: Option<Vec<String>> = fields.values().map(plain_text).collect();
                Source::List(items.ok_or_else(|| self.wrong(key, expected))?)
            }
            Some(other) => Source::Number(other.as_i64().ok_or_else(|| self.wrong(key, expected))?),
        }))
    }

    pub(crate) fn template(&self, key: &str, text: &str) -> Result<RowTemplate, EvalError> {
        let place = self.path.with_file_name(format!("{} [{key}]", file_name(self.path)));
        Ok(RowTemplate::new(&place, text)?)
    }

    /// An error for the first key that nobody took.
    pub(crate) fn finish(self, known: &[&str]) -> Result<(), EvalError> {
        let mut left = self.fields.keys().filter(|key| !IGNORED.contains(&key.as_str()));
        let Some(key) = left.next() else { return Ok(()) };
        let near = known.iter().map(|name| (strsim::damerau_levenshtein(key, name), name)).min();
        let hint = match near {
            Some((distance, name)) if 2 * distance < key.len() => format!("; did you mean {name}?"),
            _ => "; this program does not run such tasks".to_owned(),
        };
        Err(EvalError::task_file(self.path, key, format!("is not a known key{hint}")))
    }
}

pub(crate) fn unknown_function(name: &str) -> String {
    format!("{name} is Python; known here: {}", functions::NAMES)
}

pub(crate) fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
