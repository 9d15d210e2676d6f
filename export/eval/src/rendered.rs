//! Data that already is requests: `context` and `choices` with the right one's number as `gold`,
//! `contexts` with a `continuation`, or `context` and `target`.

use std::path::Path;

use serde_json::{Value, json};

use crate::data::{DataFile, read_file};
use crate::error::EvalError;
use crate::task::Task;
use crate::task_file;

/// Refuses `DIR/<name>.jsonl`, if that file is there, since it holds no requests.
pub(crate) fn refuse(name: &str, dir: &Path) -> Result<(), EvalError> {
    let path = dir.join(format!("{name}.jsonl"));
    if !path.is_file() {
        return Ok(());
    }
    let expected = "expected a request: context, choices and gold; contexts, continuation and gold; or context and target";
    Err(EvalError::row(&path, 1, "context", expected))
}

/// The task and the rows of `DIR/<name>.jsonl`, if that file holds requests.
pub(crate) fn open(name: &str, dir: &Path) -> Result<Option<(Task, DataFile)>, EvalError> {
    let path = dir.join(format!("{name}.jsonl"));
    if !path.is_file() {
        return Ok(None);
    }
    let mut rows = read_file(&path)?;
    // The first row decides for the file; another row that lacks a field is named when it is read.
    let has = |field: &str| rows.rows[0].get(field).is_some();
    let (kind, text, target, choice, metrics): (_, _, _, _, &[&str]) = match () {
        () if has("contexts") => ("multiple_choice", "gold", "continuation", "contexts", &["acc"]),
        () if has("choices") => {
            ("multiple_choice", "context", "gold", "choices", &["acc", "acc_norm"])
        }
        () if has("target") && has("context") => {
            ("loglikelihood", "context", "target", "", &["perplexity", "acc"])
        }
        () => return Ok(None),
    };
    if kind == "multiple_choice" {
        for at in 0..rows.rows.len() {
            without_delimiter(&mut rows, at)?;
        }
    }
    let metrics: Vec<Value> = metrics.iter().map(|name| json!({"metric": name})).collect();
    // Written as a task file would say it, and read by the one reader of those: no second way in.
    let mut config = json!({"task": name, "test_split": "rows", "output_type": kind,
        "doc_to_text": text, "doc_to_target": target, "metric_list": metrics,
        "metadata": {"version": "requests"}});
    if !choice.is_empty() {
        config["doc_to_choice"] = choice.into();
    }
    let task = task_file::task(&path, config.as_object().cloned().unwrap_or_default())?;
    Ok(Some((task, rows)))
}

/// Takes away the space before what continues: the task adds it, and lengths are counted without
/// it.
fn without_delimiter(rows: &mut DataFile, at: usize) -> Result<(), EvalError> {
    let field = if rows.rows[at].get("contexts").is_some() { "continuation" } else { "choices" };
    let expected = || rows.wrong(at, field, "expected texts that begin with a space");
    let cut = |value: &Value| Some(Value::from(value.as_str()?.strip_prefix(' ')?));
    let made = match &rows.rows[at][field] {
        Value::Array(items) => items.iter().map(cut).collect::<Option<Vec<_>>>().map(Value::from),
        one => cut(one),
    };
    let made = made.ok_or_else(expected)?;
    rows.rows[at][field] = made;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_recognised_by_their_fields() {
        let dir = tempfile::tempdir().unwrap();
        let opened = |text: &str| {
            fs_err::write(dir.path().join("x.jsonl"), text).unwrap();
            open("x", dir.path())
        };
        let (_, rows) = opened("{\"context\": \"a\", \"choices\": [\" b\", \" c\"], \"gold\": 1}")
            .unwrap()
            .unwrap();
        assert_eq!(rows.rows[0]["choices"], json!(["b", "c"]));
        assert!(
            opened("{\"contexts\": [\"a\"], \"continuation\": \" b\", \"gold\": 0}")
                .unwrap()
                .is_some()
        );
        assert!(opened("{\"context\": \"a\", \"target\": \" b\"}").unwrap().is_some());
        assert!(opened("{\"question\": \"a\"}").unwrap().is_none());
        let error = opened("{\"context\": \"a\", \"choices\": [\"b\"], \"gold\": 0}").unwrap_err();
        assert!(error.to_string().contains("x.jsonl:1 [choices]: expected texts that begin"));
        assert!(open("y", dir.path()).unwrap().is_none());
    }
}
