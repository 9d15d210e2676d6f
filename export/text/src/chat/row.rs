//! Jinja templates over rows of data, as evaluation tasks write their prompts: with the settings of
//! lm-evaluation-harness (undefined names are errors, line ends stay), in the sandbox of chat
//! templates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::jinja::{
    LimitedOutput, MAX_DEPTH, MAX_SOURCE_BYTES, MAX_STEPS, chat_error, explain, with_limits,
};
use super::python;
use crate::error::TextError;

/// Rows that are rendered within one set of limits.
const ROWS: usize = 256;

const NAME: &str = "row";

/// A compiled template whose variables are the fields of a row.
#[derive(Clone)]
pub struct RowTemplate {
    path: PathBuf,
    environment: Arc<Environment<'static>>,
    /// The source between the braces, if it is one expression and nothing else.
    expression: Option<Arc<str>>,
}

impl RowTemplate {
    /// Compiles a template; `path` is only for messages.
    ///
    /// # Errors
    /// A source that is too long or does not parse.
    pub fn new(path: &Path, source: &str) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE_BYTES {
            let got = source.len();
            let what = format!("too large; expected at most {MAX_SOURCE_BYTES} bytes, got {got}");
            return Err(chat_error(path, None, what));
        }
        let (expression, source) = (only_expression(source), source.to_owned());
        let tried = expression.clone();
        let compiled = with_limits(move || compile(source, tried.as_deref()));
        let environment = compiled.map_err(|(line, what)| chat_error(path, line, what))?;
        Ok(Self { path: path.to_owned(), environment: Arc::new(environment), expression })
    }

    /// One result a row. A template that is one expression gives its value, any other a text.
    ///
    /// # Errors
    /// The outer error is a limit that was reached; the inner ones belong to single rows.
    pub fn render(
        &self,
        rows: &[serde_json::Value],
    ) -> Result<Vec<Result<serde_json::Value, TextError>>, TextError> {
        let mut all = Vec::with_capacity(rows.len());
        for rows in rows.chunks(ROWS) {
            let (environment, rows) = (Arc::clone(&self.environment), rows.to_vec());
            let expression = self.expression.clone();
            let one = move |row| render(&environment, expression.as_deref(), &row).map_err(explain);
            let found = with_limits(move || Ok(rows.into_iter().map(one).collect::<Vec<_>>()));
            let found = found.map_err(|(line, what)| chat_error(&self.path, line, what))?;
            let told = |(line, what)| chat_error(&self.path, line, what);
            all.extend(found.into_iter().map(|result| result.map_err(told)));
        }
        Ok(all)
    }
}

impl fmt::Debug for RowTemplate {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("RowTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

fn only_expression(source: &str) -> Option<Arc<str>> {
    let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
    // A lone expression keeps its kind: a list of choices stays a list, a number a number.
    let alone = !["{{", "}}", "{%", "{#"].iter().any(|mark| inner.contains(mark));
    alone.then(|| inner.into())
}

fn compile(source: String, expression: Option<&str>) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(true);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    // `StrictUndefined` of the harness: a misspelt field is an error, not an empty prompt.
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(method);
    python::install(&mut environment);
    environment.add_template_owned(NAME, source)?;
    if let Some(expression) = expression {
        environment.compile_expression(expression)?;
    }
    Ok(environment)
}

fn render(
    environment: &Environment,
    expression: Option<&str>,
    row: &serde_json::Value,
) -> Result<serde_json::Value, Error> {
    let row = python::from_json(row);
    let Some(expression) = expression else {
        let mut output = LimitedOutput::default();
        environment.get_template(NAME)?.render_captured_to(row, &mut output)?;
        return String::from_utf8(output.0)
            .map(serde_json::Value::String)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()));
    };
    let value = environment.compile_expression(expression)?.eval(row)?;
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python's methods; `index` of a list is missing in the library.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method != "index" || value.kind() != ValueKind::Seq {
        return unknown_method_callback(state, value, method, args);
    }
    let [wanted] = args else {
        return Err(Error::new(ErrorKind::MissingArgument, "index takes one value"));
    };
    let found = value.try_iter()?.position(|item| item == *wanted);
    let missing = || Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in list"));
    found.map(Value::from).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(source: &str, row: serde_json::Value) -> Result<serde_json::Value, String> {
        let template =
            RowTemplate::new(Path::new("t.yaml"), source).map_err(|it| it.to_string())?;
        let mut all = template.render(&[row]).map_err(|it| it.to_string())?;
        all.remove(0).map_err(|it| it.to_string())
    }

    #[test]
    fn prompts_of_the_harness_are_rendered_as_it_renders_them() {
        let arc = json!({"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]},
                         "answerKey": "2", "text": "a b  c", "label": 1});
        for (source, expected) in [
            ("Question: {{question}}\nAnswer:", json!("Question: Why?\nAnswer:")),
            ("{{question}}\n\n", json!("Why?\n\n")),
            ("{{choices.label.index(answerKey)}}", json!(1)),
            ("{{choices.text}}", json!(["a", "b"])),
            ("{{[question, text]}}", json!(["Why?", "a b  c"])),
            ("{{text.split(' ')[:-1]|join(' ')}}", json!("a b ")),
            ("{{' '+text.split(' ')[-1]}}", json!(" c")),
            ("A. {{choices['text'][0]}}", json!("A. a")),
            ("{% set q = 'x' %}{{q + '\n' + question}}", json!("x\nWhy?")),
            ("{{label}}", json!(1)),
            ("{{ '{{' }}", json!("{{")),
        ] {
            assert_eq!(one(source, arc.clone()), Ok(expected), "{source}");
        }
    }

    #[test]
    fn a_missing_value_or_an_endless_template_is_reported() {
        for (source, expected) in [
            ("{{question", "t.yaml:1: syntax error"),
            ("{{question}}", "undefined value"),
            ("a {{question}}", "undefined value"),
            ("{{[1].index(2)}}", "2 is not in list"),
            (
                "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}",
                "does not end",
            ),
        ] {
            let error = one(source, json!({})).unwrap_err();
            assert!(error.contains(expected), "{source}: {error}");
        }
    }
}
