//! Task files as JSON values: YAML with the harness's two additions, `include` and `!function`.

use std::path::{Path, PathBuf};

use bitnet_format::input::read_text;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use crate::error::EvalError;

/// A task file is a page of text.
const LARGEST_FILE: u64 = 4 << 20;
/// Files that include each other.
const MAX_INCLUDES: usize = 16;

/// What a value with the tag `!function` begins with.
pub(crate) const FUNCTION: &str = "!function ";

/// Reads a file with what it includes; its own keys win.
pub(crate) fn read(path: &Path) -> Result<Map<String, Value>, EvalError> {
    read_nested(path, MAX_INCLUDES)
}

fn read_nested(path: &Path, depth: usize) -> Result<Map<String, Value>, EvalError> {
    if depth == 0 {
        let what = format!("is included in more than {MAX_INCLUDES} files in a row");
        return Err(EvalError::task_file(path, "include", what));
    }
    let mut own = parse(path, &read_text(path, LARGEST_FILE)?)?;
    let Some(included) = own.remove("include") else { return Ok(own) };
    let Some(name) = included.as_str() else {
        return Err(EvalError::task_file(path, "include", "expected the name of a file"));
    };
    let beside = path.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
    let mut all = read_nested(&beside, depth - 1)?;
    // After the included keys, so that the file's own replace them whole; nothing is merged inside
    // of a value.
    all.extend(own);
    Ok(all)
}

/// One document, a mapping; `path` is only for messages.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, EvalError> {
    let documents = Yaml::load_from_str(text).map_err(|error| {
        let line = error.marker().line();
        EvalError::task_file(path, &format!("line {line}"), error.info())
    })?;
    match documents.first().map(to_json) {
        Some(Ok(Value::Object(fields))) if documents.len() == 1 => Ok(fields),
        Some(Err(what)) => Err(EvalError::task_file(path, "yaml", what)),
        _ => Err(EvalError::task_file(path, "yaml", "expected one mapping of keys to values")),
    }
}

fn to_json(yaml: &Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => (*value).into(),
        Yaml::Value(Scalar::Integer(value)) => (*value).into(),
        Yaml::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        Yaml::Value(Scalar::String(text)) => text.as_ref().into(),
        Yaml::Sequence(items) => items.iter().map(to_json).collect::<Result<_, _>>()?,
        Yaml::Mapping(fields) => {
            let pair = |(key, value): (&Yaml, &Yaml)| Ok((key_text(key)?, to_json(value)?));
            fields.iter().map(pair).collect::<Result<Map<_, _>, String>>()?.into()
        }
        Yaml::Tagged(tag, inner) => match (tag.suffix.as_str(), inner.as_str()) {
            ("function", Some(name)) => format!("{FUNCTION}{name}").into(),
            (tag, _) => return Err(format!("!{tag} is not known; expected no tag or !function")),
        },
        _ => {
            return Err("holds something that is neither text, number, list nor mapping".to_owned());
        }
    })
}

fn key_text(key: &Yaml) -> Result<String, String> {
    match to_json(key)? {
        Value::String(text) => Ok(text),
        other @ (Value::Bool(_) | Value::Number(_)) => Ok(other.to_string()),
        _ => Err("has a key that is no text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_of_the_harness_are_read() {
        let text = "tag:\n  - a\ntask: t\ntest_split: null\nprocess_docs: !function utils.process_docs\n\
            doc_to_text: \"\\\n  {% set q = '\\\n  Q: a\\n\\\n  A: b\\\n  '%}\\\n  {{q}}\"\n\
            doc_to_choice: [\"no\", \"yes\"]\ndoc_to_target: \"{{a}}\" #\" {{b}}\"\nmetadata:\n  version: 1.0\n";
        let expected = json!({"tag": ["a"], "task": "t", "test_split": null,
            "process_docs": "!function utils.process_docs",
            "doc_to_text": "{% set q = 'Q: a\nA: b'%}{{q}}", "doc_to_choice": ["no", "yes"],
            "doc_to_target": "{{a}}", "metadata": {"version": 1.0}});
        assert_eq!(Value::Object(parse(Path::new("t.yaml"), text).unwrap()), expected);
    }

    #[test]
    fn own_keys_win_over_included_ones_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        write("base", "task: base\nmetadata: 1\n");
        write("t.yaml", "include: base\ntask: own\n");
        write("round.yaml", "include: round.yaml\n");
        let read = |name: &str| read(&dir.path().join(name));
        assert_eq!(Value::Object(read("t.yaml").unwrap()), json!({"task": "own", "metadata": 1}));
        assert!(read("round.yaml").unwrap_err().to_string().contains("[include]"));
        assert!(read("none.yaml").is_err());
        for text in ["- a\n", "a: !thing b\n", "a: [\n", "a: 1\n---\nb: 2\n"] {
            write("bad.yaml", text);
            assert!(read("bad.yaml").unwrap_err().to_string().contains("bad.yaml ["), "{text}");
        }
    }
}
