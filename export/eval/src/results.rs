//! Results in the shape of the harness, so that what reads its files reads ours: `results`,
//! `groups`, `versions`, `n-shot`, `n-samples`; and beside them, under `bitnet`, what a number
//! depends on.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::evaluate::{MetricResult, SampleResult, TaskResult};
use crate::metrics::{MetricValue, pooled_stderr, unweighted_stderr};
use crate::registry::TaskGroup;
use crate::task::Task;

/// What of a finished task is kept: enough to print it, to average it and to write it again.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRecord {
    /// The task.
    pub name: String,
    /// As the harness shows it.
    pub alias: String,
    /// As its file says.
    pub version: Value,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Rows that were asked, and rows there are.
    pub rows: (usize, usize),
    /// The scores.
    pub metrics: Vec<MetricResult>,
    /// What the numbers depend on and what they took.
    pub details: Map<String, Value>,
}

impl TaskRecord {
    /// The record of a result; `details` say what it depends on.
    pub fn new(
        task: &Task,
        result: &TaskResult,
        all_rows: usize,
        details: Map<String, Value>,
    ) -> Self {
        let mut own = Map::new();
        own.insert("truncated".into(), result.truncated.into());
        own.insert("computed_tokens".into(), result.computed_tokens.into());
        own.insert("request_tokens".into(), result.request_tokens.into());
        own.extend(details);
        Self {
            name: task.name.clone(),
            alias: task.alias.clone(),
            version: task.version.clone(),
            num_fewshot: task.num_fewshot,
            rows: (result.rows, all_rows),
            metrics: result.metrics.clone(),
            details: own,
        }
    }

    /// As a file holds it.
    pub fn to_json(&self) -> Value {
        let metrics: Vec<Value> = self.metrics.iter().map(metric_json).collect();
        json!({"task": self.name, "alias": self.alias, "version": self.version,
            "num_fewshot": self.num_fewshot, "rows": [self.rows.0, self.rows.1],
            "metrics": metrics, "details": self.details})
    }

    /// What [`TaskRecord::to_json`] wrote; `None` for anything else.
    pub fn from_json(json: &Value) -> Option<Self> {
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        let number = |value: &Value| value.as_u64().and_then(|it| usize::try_from(it).ok());
        Some(Self {
            name: text("task")?,
            alias: text("alias")?,
            version: json["version"].clone(),
            num_fewshot: number(&json["num_fewshot"])?,
            rows: (number(&json["rows"][0])?, number(&json["rows"][1])?),
            metrics: json["metrics"].as_array()?.iter().map(metric_of).collect::<Option<_>>()?,
            details: json["details"].as_object()?.clone(),
        })
    }
}

fn metric_json(metric: &MetricResult) -> Value {
    json!({"metric": metric.metric, "filter": metric.filter, "score": metric.score,
        "stderr": metric.stderr, "is_percent": metric.is_percent,
        "higher_is_better": metric.higher_is_better})
}

fn metric_of(json: &Value) -> Option<MetricResult> {
    Some(MetricResult {
        metric: json["metric"].as_str()?.to_owned(),
        filter: json["filter"].as_str()?.to_owned(),
        score: json["score"].as_f64()?,
        stderr: json["stderr"].as_f64(),
        is_percent: json["is_percent"].as_bool().unwrap_or(false),
        higher_is_better: json["higher_is_better"].as_bool()?,
    })
}

/// The scores of a group over those of its tasks that ran: the harness's mean and its standard
/// error.
pub fn group_metrics(group: &TaskGroup, records: &[TaskRecord]) -> Vec<MetricResult> {
    let members: Vec<&TaskRecord> =
        records.iter().filter(|record| group.members.contains(&record.name)).collect();
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for metric in members.iter().flat_map(|record| &record.metrics) {
        let kind = (metric.metric.as_str(), metric.filter.as_str());
        // A metric after another filter is another score, and is averaged by itself.
        if group.metrics.iter().any(|name| name == kind.0) && !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let average = |(name, filter): (&str, &str)| {
        let own = |metric: &&MetricResult| metric.metric == name && metric.filter == filter;
        let found: Vec<(&MetricResult, usize)> = members
            .iter()
            .filter_map(|record| Some((record.metrics.iter().find(own)?, record.rows.0)))
            .collect();
        let weight = |size: usize| if group.weight_by_size { size as f64 } else { 1.0 };
        let weights: f64 = found.iter().map(|(_, size)| weight(*size)).sum();
        let sum: f64 = found.iter().map(|(metric, size)| metric.score * weight(*size)).sum();
        let errors: Option<Vec<(f64, usize)>> =
            // One member without an error (of one row, or of a kind that has none) leaves the group
            // without.
            found.iter().map(|(metric, size)| Some((metric.stderr?, *size))).collect();
        let error = |parts: Vec<(f64, usize)>| {
            if group.weight_by_size { pooled_stderr(&parts) } else { unweighted_stderr(&parts) }
        };
        MetricResult {
            metric: name.to_owned(),
            filter: filter.to_owned(),
            score: sum / weights,
            stderr: errors.map(error),
            is_percent: found[0].0.is_percent,
            higher_is_better: found[0].0.higher_is_better,
        }
    };
    kinds.into_iter().map(average).collect()
}

/// All results in the harness's shape; `about` says what computed them.
pub fn harness_json(
    records: &[TaskRecord],
    groups: &[TaskGroup],
    about: &Map<String, Value>,
) -> Value {
    let mut results = Map::new();
    let mut group_results = Map::new();
    let mut subtasks = Map::new();
    let mut sorted: [BTreeMap<String, Value>; 3] = Default::default();
    let [versions, shots, better] = &mut sorted;
    let (mut samples, mut details) = (Map::new(), Map::new());
    for record in records {
        results.insert(record.name.clone(), scores(&record.alias, record.rows.0, &record.metrics));
        versions.insert(record.name.clone(), record.version.clone());
        shots.insert(record.name.clone(), record.num_fewshot.into());
        let higher =
            record.metrics.iter().map(|it| (it.metric.clone(), it.higher_is_better.into()));
        better.insert(record.name.clone(), Value::Object(higher.collect()));
        let counts = json!({"original": record.rows.1, "effective": record.rows.0});
        samples.insert(record.name.clone(), counts);
        details.insert(record.name.clone(), record.details.clone().into());
    }
    for group in groups {
        let members = records.iter().filter(|record| group.members.contains(&record.name));
        let rows = members.clone().map(|record| record.rows.0).sum();
        let found = scores(&group.name, rows, &group_metrics(group, records));
        // The harness writes groups twice: among the results and by themselves.
        results.insert(group.name.clone(), found.clone());
        group_results.insert(group.name.clone(), found);
        versions.insert(group.name.clone(), group.version.clone());
        subtasks.insert(group.name.clone(), members.map(|it| it.name.clone()).collect());
    }
    let mut about = about.clone();
    about.insert("tasks".into(), details.into());
    let mut all = json!({"results": results});
    if !group_results.is_empty() {
        all["groups"] = group_results.into();
    }
    all["group_subtasks"] = subtasks.into();
    for (key, values) in ["versions", "n-shot", "higher_is_better"].into_iter().zip(sorted) {
        all[key] = values.into_iter().collect::<Map<_, _>>().into();
    }
    all["n-samples"] = samples.into();
    all["bitnet"] = about.into();
    all
}

fn scores(alias: &str, rows: usize, metrics: &[MetricResult]) -> Value {
    let mut scores = json!({"alias": alias, "sample_len": rows});
    for MetricResult { metric, filter, score, stderr, .. } in metrics {
        scores[format!("{metric},{filter}")] = json!(score);
        // "N/A" and not null: the harness's table reads the word.
        scores[format!("{metric}_stderr,{filter}")] = stderr.map_or("N/A".into(), Value::from);
    }
    scores
}

/// A row as a line of `--log-samples`.
pub fn sample_json(task: &str, sample: &SampleResult) -> Value {
    let mut line = json!({"task": task, "doc_id": sample.doc_id, "filter": sample.filter,
        "doc": sample.doc, "arguments": sample.arguments, "resps": sample.responses});
    let names: Vec<&str> = sample.metrics.iter().map(|(name, _)| name.as_str()).collect();
    line["metrics"] = json!(names);
    for (name, value) in &sample.metrics {
        line[name.as_str()] = match value {
            MetricValue::Number(number) => json!(number),
            MetricValue::Weighted(sum, weight) => json!([sum, weight]),
            MetricValue::Classes(gold, found) => json!([gold, found]),
            MetricValue::Span(span) => json!(span.score),
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, score: f64, stderr: f64, rows: usize) -> TaskRecord {
        let metric = MetricResult {
            metric: "acc".to_owned(),
            filter: "none".to_owned(),
            score,
            stderr: Some(stderr),
            is_percent: false,
            higher_is_better: true,
        };
        TaskRecord {
            name: name.to_owned(),
            alias: name.to_owned(),
            version: json!(1.0),
            num_fewshot: 5,
            rows: (rows, 100),
            metrics: vec![metric],
            details: Map::new(),
        }
    }

    fn group(weight_by_size: bool) -> TaskGroup {
        TaskGroup {
            name: "both".to_owned(),
            members: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
            metrics: vec!["acc".to_owned()],
            weight_by_size,
            version: json!(2),
        }
    }

    #[test]
    fn groups_are_means_over_rows_or_over_tasks() {
        let records = [record("a", 0.5, 0.1, 10), record("b", 0.2, 0.2, 5)];
        let weighted = &group_metrics(&group(true), &records)[0];
        assert!((weighted.score - 0.4).abs() < 1e-12);
        assert_eq!(weighted.stderr, Some(pooled_stderr(&[(0.1, 10), (0.2, 5)])));
        let plain = &group_metrics(&group(false), &records)[0];
        assert!((plain.score - 0.35).abs() < 1e-12);
    }

    #[test]
    fn results_have_the_harness_shape_and_records_read_back() {
        let records = [record("a", 0.5, 0.1, 10), record("b", 0.2, 0.2, 5)];
        let all = harness_json(&records, &[group(true)], &Map::new());
        assert_eq!(all["results"]["a"]["acc,none"], 0.5);
        assert_eq!(all["results"]["a"]["acc_stderr,none"], 0.1);
        assert_eq!(all["groups"]["both"]["sample_len"], 15);
        assert_eq!(all["group_subtasks"]["both"], json!(["a", "b"]));
        assert_eq!(all["n-shot"]["b"], 5);
        assert_eq!(all["n-samples"]["a"], json!({"original": 100, "effective": 10}));
        assert_eq!(TaskRecord::from_json(&records[0].to_json()).as_ref(), Some(&records[0]));
        assert_eq!(TaskRecord::from_json(&json!({"task": "a"})), None);
    }
}
