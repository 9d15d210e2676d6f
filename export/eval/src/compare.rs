//! Two models on the same rows: the difference of each metric with its standard error, paired by
//! row, and `McNemar`'s test where rows are right or wrong.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::data::read_file;
use crate::error::EvalError;
use crate::metrics::sample_deviation;

/// A metric of a task by filter.
type Key = (String, String, String);

/// How one metric differs between two files.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// Rows that both files hold.
    pub rows: usize,
    /// The means over these rows.
    pub means: [f64; 2],
    /// Standard error of the second mean less the first, from the differences of the rows; `None`
    /// with one row.
    pub stderr: Option<f64>,
    /// Rows that only the first, and only the second, got right, and the two-sided probability of a
    /// split at least as uneven; `None` where values are not 0 and 1.
    pub mcnemar: Option<(usize, usize, f64)>,
}

/// Compares two files of `--log-samples`, of this program or of the harness.
///
/// # Errors
/// A file that holds no such lines; two that share no row.
pub fn compare(a: &Path, b: &Path) -> Result<Vec<Difference>, EvalError> {
    let (first, second) = (rows(a)?, rows(b)?);
    let mut found = Vec::new();
    for (key, own) in &first {
        let Some(other) = second.get(key) else { continue };
        let differs = |(id, row): &(&u64, &Row)| other.get(*id).is_some_and(|it| !row.may_be(it));
        if let Some((id, row)) = own.iter().find(differs) {
            let what =
                format!("row {id} is another one in {}; expected the same data", b.display());
            return Err(EvalError::row(a, row.line, "doc_id", what));
        }
        let pairs: Vec<(f64, f64)> =
            // Rows are paired by `doc_id`: two runs with other limits share their first rows.
            own.iter().filter_map(|(id, row)| Some((row.value, other.get(id)?.value))).collect();
        if !pairs.is_empty() {
            found.push(difference(key, &pairs));
        }
    }
    if found.is_empty() {
        let what =
            format!("shares no row and metric with {}; expected the same tasks", b.display());
        return Err(EvalError::row(a, 1, "doc_id", what));
    }
    Ok(found)
}

/// A metric of one row.
struct Row {
    value: f64,
    /// In the file, from 1.
    line: usize,
    /// Hashes of the fields' names and of all that the row asks, where the file says it.
    doc: Option<[blake3::Hash; 2]>,
}

impl Row {
    /// Whether both may be about the same question. The harness adds fields of its own to some tasks'
    /// rows: other names prove nothing.
    fn may_be(&self, other: &Self) -> bool {
        let [Some([names, own]), Some([other_names, others])] = [self.doc, other.doc] else {
            return true;
        };
        names != other_names || own == others
    }
}

/// Values by metric and row.
fn rows(path: &Path) -> Result<BTreeMap<Key, BTreeMap<u64, Row>>, EvalError> {
    let file = read_file(path)?;
    let mut all: BTreeMap<Key, BTreeMap<u64, Row>> = BTreeMap::new();
    for (at, row) in file.rows.iter().enumerate() {
        let missing =
            |field: &str| file.wrong(at, field, "is missing; expected a line of --log-samples");
        let id = row["doc_id"].as_u64().ok_or_else(|| missing("doc_id"))?;
        // The harness writes one file a task and names it there.
        let task = row["task"].as_str().unwrap_or_default().to_owned();
        let doc = row["doc"].as_object().map(hashes);
        // Lines without a filter count as those of a task that has none.
        let filter = row["filter"].as_str().unwrap_or("none").to_owned();
        let names = row["metrics"].as_array().ok_or_else(|| missing("metrics"))?;
        for name in names.iter().filter_map(Value::as_str) {
            // Values that are lists (sums with their weights) have no difference a row.
            if let Some(value) = row[name].as_f64() {
                let key = (task.clone(), name.to_owned(), filter.clone());
                all.entry(key).or_default().insert(id, Row { value, line: at + 1, doc });
            }
        }
    }
    Ok(all)
}

/// Of the names and of everything, whatever the order of fields.
fn hashes(doc: &Map<String, Value>) -> [blake3::Hash; 2] {
    let mut doc = Value::from(doc.clone());
    doc.sort_all_objects();
    let names: Vec<&String> = doc.as_object().into_iter().flat_map(Map::keys).collect();
    [format!("{names:?}"), doc.to_string()].map(|text| blake3::hash(text.as_bytes()))
}

fn difference(key: &Key, pairs: &[(f64, f64)]) -> Difference {
    let count = pairs.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| pairs.iter().map(value).sum::<f64>() / count;
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
    // Of the differences and not of the two means: rows that are hard for one model are hard for
    // the other, and pairing takes that out.
    let stderr = (pairs.len() > 1).then(|| sample_deviation(&differences) / count.sqrt());
    let mcnemar = outcomes(pairs).map(|outcomes| {
        let only = |own: (bool, bool)| outcomes.iter().filter(|it| **it == own).count();
        let (a, b) = (only((true, false)), only((false, true)));
        (a, b, two_sided(a, b))
    });
    let (task, metric, filter) = key.clone();
    let means = [mean(|pair| pair.0), mean(|pair| pair.1)];
    Difference { task, metric, filter, rows: pairs.len(), means, stderr, mcnemar }
}

/// Right or wrong in both files; `None` where a value is neither 0 nor 1.
fn outcomes(pairs: &[(f64, f64)]) -> Option<Vec<(bool, bool)>> {
    let outcome = |value: f64| match value {
        0.0 => Some(false),
        1.0 => Some(true),
        _ => None,
    };
    pairs.iter().map(|(a, b)| Some((outcome(*a)?, outcome(*b)?))).collect()
}

/// The exact binomial test of a fair coin: the probability of at least so uneven a split.
fn two_sided(a: usize, b: usize) -> f64 {
    let (total, few) = (a + b, a.min(b));
    // Logarithms of binomial coefficients: they overflow from 1,030 rows on.
    let (mut log, mut sum) = (-(total as f64) * std::f64::consts::LN_2, 0.0);
    for k in 0..=few {
        sum += log.exp();
        log += ((total - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_paired_by_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, values: &[(u64, f64)]| {
            let line = |(id, acc): &(u64, f64)| {
                serde_json::json!({"task": "t", "doc_id": id, "filter": "none", "metrics": ["acc"], "acc": acc})
                    .to_string()
            };
            let path = dir.path().join(name);
            fs_err::write(&path, values.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
            path
        };
        let a = write("a.jsonl", &[(0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0)]);
        let b = write("b.jsonl", &[(3, 1.0), (2, 1.0), (1, 1.0), (0, 1.0), (9, 0.0)]);
        let found = compare(&a, &b).unwrap();
        assert_eq!((found.len(), found[0].rows, found[0].means), (1, 4, [0.5, 1.0]));
        assert!((found[0].stderr.unwrap() - (1.0_f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
        assert_eq!(found[0].mcnemar, Some((0, 2, 0.5)));
        let other = write("c.jsonl", &[(7, 1.0)]);
        assert!(
            compare(&a, &other)
                .unwrap_err()
                .to_string()
                .contains("a.jsonl:1 [doc_id]: shares no row")
        );
        fs_err::write(&other, "{}").unwrap();
        assert!(
            compare(&a, &other).unwrap_err().to_string().contains("c.jsonl:1 [doc_id]: is missing")
        );
    }

    #[test]
    fn rows_of_other_data_are_not_paired() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, docs: [&str; 2]| {
            let line = |(id, doc): (usize, &str)| {
                format!(r#"{{"task":"t","doc_id":{id},"metrics":["acc"],"acc":1.0,"doc":{doc}}}"#)
            };
            let path = dir.path().join(name);
            let lines: Vec<String> = docs.into_iter().enumerate().map(line).collect();
            fs_err::write(&path, lines.join("\n")).unwrap();
            path
        };
        let a = write("a.jsonl", [r#"{"q":"x","a":1}"#, r#"{"q":"y","a":2}"#]);
        let same = write("b.jsonl", [r#"{"a":1,"q":"x"}"#, r#"{"q":"y","a":2}"#]);
        let harness = write("c.jsonl", [r#"{"q":"x","a":1,"query":"X"}"#, r#"{"q":"z"}"#]);
        assert_eq!(compare(&a, &same).unwrap()[0].rows, 2);
        assert_eq!(compare(&a, &harness).unwrap()[0].rows, 2);
        let other = write("d.jsonl", [r#"{"q":"x","a":1}"#, r#"{"q":"w","a":2}"#]);
        let error = compare(&a, &other).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:2 [doc_id]: row 1 is another one in "), "{error}");
    }

    #[test]
    fn the_test_is_exact_and_holds_for_many_rows() {
        assert_eq!(two_sided(0, 0), 1.0);
        assert!((two_sided(1, 8) - 20.0 / 512.0).abs() < 1e-12);
        assert!((two_sided(3000, 3000) - 1.0).abs() < 1e-9);
        assert!(two_sided(2000, 3000) < 1e-40);
    }
}
