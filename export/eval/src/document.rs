//! Rows as prompts: what a task's file makes of each, with the harness's rules for texts that are
//! numbers.

use serde_json::Value;

use crate::data::DataFile;
use crate::error::EvalError;
use crate::task::{Source, Task};

/// The question: a text, or the choices as contexts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RowQuestion {
    Text(String),
    /// The choices are contexts, and this is the right one.
    Contexts(usize),
}

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RightAnswer {
    Choice(i64),
    Text(String),
    /// Any of them.
    Any(Vec<Value>),
}

/// A row as a task sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowDocument {
    pub(crate) question: RowQuestion,
    pub(crate) answer: RightAnswer,
    /// Empty where the task has none.
    pub(crate) choices: Vec<String>,
    pub(crate) description: String,
}

/// A value with where it came from: the harness reads digits of a template as a number, and those
/// of a field as they are.
struct Found {
    value: Value,
    from_template: bool,
}

/// Documents of some rows, in their order; `at` are their indices in the file.
pub(crate) fn documents(
    task: &Task,
    rows: &DataFile,
    at: &[usize],
) -> Result<Vec<RowDocument>, EvalError> {
    // All rows are rendered in one call: it runs on a thread with limits of its own, which a call a
    // row would start for each.
    let chosen: Vec<Value> = at.iter().map(|index| rows.rows[*index].clone()).collect();
    let view = View { rows, chosen: &chosen, at };
    let questions = view.values(&task.text, "doc_to_text")?;
    let answers = view.values(&task.target, "doc_to_target")?;
    let choices = match &task.choice {
        Some(source) => view.values(source, "doc_to_choice")?.into_iter().map(Some).collect(),
        None => at.iter().map(|_| None).collect::<Vec<_>>(),
    };
    let descriptions = match &task.description {
        Some(template) => template.render(&chosen)?,
        None => at.iter().map(|_| Ok(Value::from(""))).collect(),
    };
    let all = questions.into_iter().zip(answers).zip(choices).zip(descriptions).zip(at);
    all.map(|((((question, answer), choices), description), at)| {
        let wrong = |field: &str, what: String| rows.wrong(*at, field, what);
        let has_choices = choices.is_some();
        let choices = choices.map_or(Ok(Vec::new()), |found| choice_list(&found.value));
        Ok(RowDocument {
            question: question_of(question, has_choices).map_err(|it| wrong("doc_to_text", it))?,
            answer: answer_of(answer, has_choices),
            choices: choices.map_err(|it| wrong("doc_to_choice", it))?,
            description: python_text(
                &description.map_err(|it| wrong("description", it.to_string()))?,
            ),
        })
    })
    .collect()
}

struct View<'a> {
    rows: &'a DataFile,
    chosen: &'a [Value],
    at: &'a [usize],
}

impl View<'_> {
    fn values(&self, source: &Source, key: &str) -> Result<Vec<Found>, EvalError> {
        let same = |value: Value| self.chosen.iter().map(|_| plain(value.clone())).collect();
        match source {
            Source::Number(number) => Ok(same((*number).into())),
            Source::List(items) => Ok(same(items.clone().into())),
            Source::Function(function) => {
                let call = |(row, at): (&Value, &usize)| {
                    let made = function.call(row).map(plain);
                    made.map_err(|(field, what)| self.rows.wrong(*at, &field, what))
                };
                self.chosen.iter().zip(self.at).map(call).collect()
            }
            // The harness asks the data set's columns whether `doc_to_text` names one; the first
            // row stands for them here.
            Source::Text(name, _) if self.rows.rows[0].get(name).is_some() => {
                let field = |(row, at): (&Value, &usize)| {
                    let missing = || self.rows.wrong(*at, name, "is missing; the first row has it");
                    row.get(name).cloned().map(plain).ok_or_else(missing)
                };
                self.chosen.iter().zip(self.at).map(field).collect()
            }
            Source::Text(_, template) => {
                let made = template.render(self.chosen)?.into_iter().zip(self.at);
                made.map(|(value, at)| {
                    let value =
                        value.map_err(|error| self.rows.wrong(*at, key, error.to_string()))?;
                    Ok(Found { value, from_template: true })
                })
                .collect()
            }
        }
    }
}

fn plain(value: Value) -> Found {
    Found { value, from_template: false }
}

fn question_of(found: Found, has_choices: bool) -> Result<RowQuestion, String> {
    match as_index(&found, has_choices) {
        Some(index) => usize::try_from(index)
            .map(RowQuestion::Contexts)
            .map_err(|_| format!("expected the number of a choice, got {index}")),
        None => Ok(RowQuestion::Text(python_text(&found.value))),
    }
}

fn answer_of(found: Found, has_choices: bool) -> RightAnswer {
    if let Some(index) = as_index(&found, has_choices) {
        return RightAnswer::Choice(index);
    }
    match found.value {
        Value::Array(items) => RightAnswer::Any(items),
        other => RightAnswer::Text(python_text(&other)),
    }
}

/// Digits that a template wrote, and numbers that are not text, name a choice where there are
/// choices.
fn as_index(found: &Found, has_choices: bool) -> Option<i64> {
    match &found.value {
        Value::String(text) => {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits && found.from_template && has_choices)
        }
        Value::Number(number) if has_choices => number.as_i64(),
        _ => None,
    }
}

fn choice_list(value: &Value) -> Result<Vec<String>, String> {
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| format!("expected a list of choices, got {value}"))?;
    let text = |item: &Value| match item {
        Value::String(text) if text.is_empty() => {
            Err("a choice is empty; expected text".to_owned())
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("expected choices that are texts, got {other}")),
    };
    items.iter().map(text).collect()
}

/// `str(value)`.
pub(crate) fn python_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        other => other.to_string(),
    }
}
