//! Expressions and small templates against the text that Jinja makes of them in the sandbox of
//! transformers. `scripts/make_jinja.py` wrote them.

use serde_json::Value;

use crate::chat::jinja::rendered_with;

const CASES: &str = include_str!("../../../tests/jinja.json");

#[test]
fn expressions_render_as_in_transformers() {
    let file: Value = serde_json::from_str(CASES).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let differing: Vec<String> = cases.iter().filter_map(|case| differs(case, &file)).collect();
    assert!(differing.is_empty(), "{} differ:\n{}", differing.len(), differing.join("\n"));
}

/// What is wrong with a case, if anything.
fn differs(case: &Value, file: &Value) -> Option<String> {
    let source = case[0].as_str().unwrap();
    let ours = rendered_with(source, &file["variables"]);
    let same = match (&ours, case[1].as_str()) {
        (Ok(ours), Some(expected)) => ours == expected,
        (Err(_), None) => true,
        _ => false,
    };
    (!same).then(|| format!("{source}\n    expected {}\n    got      {ours:?}", case[1]))
}
