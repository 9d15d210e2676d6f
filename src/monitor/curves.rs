//! What a line of `metrics.jsonl` adds to the curves of `TensorBoard`. The log is the source: after a
//! kill, what is missing in the event files is drawn again from it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use fs_err::File;
use serde_json::Value;

/// Something to draw at a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Point {
    /// A value of a curve.
    Scalar(f64),
    /// Shares of the codes −1, 0 and +1.
    Codes([f64; 3]),
}

/// Keys of a step's line that hold no figure.
const NO_FIGURES: [&str; 7] =
    ["step", "phase", "loss_bits", "skipped", "rows", "ranks", "tokens_this_rank"];
/// Figures under another name in the curves.
const RENAMED: [(&str, &str); 1] = [("lr", "learning_rate")];

/// The step of a line with everything to draw of it, by tag.
pub(super) fn points(line: &Value) -> Option<(u64, Vec<(String, Point)>)> {
    let step = line["step"].as_u64()?;
    // The key beside the step is a line's kind; without one of these it is a training step.
    if let Some(sets) = line["eval"].as_object() {
        let value =
            |(set, it): (&String, &Value)| (format!("eval/{set}"), Point::Scalar(criterion(it)));
        return Some((step, sets.iter().map(value).collect()));
    }
    if let Some(tasks) = line["tasks"].as_object() {
        return Some((step, tasks.iter().flat_map(scores).collect()));
    }
    if let Some(kinds) = line["ternary"].as_object() {
        return Some((step, ternary(kinds)));
    }
    Some((step, figures(line)))
}

/// As `Evaluation::criterion`: the loss of preference pairs, else the loss of a token.
fn criterion(evaluation: &Value) -> f64 {
    number(evaluation.get("loss").unwrap_or(&evaluation["nll_per_token"]))
}

/// The metrics of a benchmark, without their standard errors and the number of rows.
fn scores((task, figures): (&String, &Value)) -> Vec<(String, Point)> {
    let metrics = figures.as_object().into_iter().flatten();
    let metrics = metrics.filter(|(name, _)| *name != "rows" && !name.ends_with("_stderr"));
    let named = |(metric, value): (&String, &Value)| {
        (format!("tasks/{task}/{metric}"), Point::Scalar(number(value)))
    };
    metrics.map(named).collect()
}

fn ternary(kinds: &serde_json::Map<String, Value>) -> Vec<(String, Point)> {
    let codes = |(kind, shares): (&String, &Value)| {
        let of = |name: &str| number(&shares[name]);
        (format!("codes/{kind}"), Point::Codes([of("minus"), of("zero"), of("plus")]))
    };
    let all = &kinds.get("all").unwrap_or(&Value::Null);
    let named =
        ["zero", "dead_rows", "flipped", "moved"].into_iter().filter(|name| all[name].is_number());
    let shares = named.map(|name| (format!("ternary/{name}"), Point::Scalar(number(&all[name]))));
    shares.chain(kinds.iter().map(codes)).collect()
}

fn figures(line: &Value) -> Vec<(String, Point)> {
    let keys = line.as_object().into_iter().flatten();
    // A null was a NaN; texts and lists are no figures.
    let figures = keys.filter(|(key, value)| {
        !NO_FIGURES.contains(&key.as_str()) && (value.is_number() || value.is_null())
    });
    let named = |(key, value): (&String, &Value)| {
        let name = RENAMED.iter().find(|(old, _)| old == key).map_or(key.as_str(), |(_, new)| new);
        (format!("train/{name}"), Point::Scalar(number(value)))
    };
    figures.map(named).collect()
}

/// JSON has no NaN and writes `null` for it.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// The lines of a log that belong to the run up to step `last` and lie after step `after`, in order of
/// their steps: those that were made again after a resume count once.
pub(super) fn missing(log: &Path, after: u64, last: u64) -> io::Result<Vec<Value>> {
    let mut steps: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for line in BufReader::new(File::open(log)?).split(b'\n') {
        // What is no record of ours, other bytes included, is somebody's note.
        let Ok(line) = serde_json::from_slice::<Value>(&line?) else { continue };
        // A resume: steps after this one were made again, and their lines before this mark are
        // void.
        if let Some(step) = line["from_step"].as_u64() {
            steps.retain(|&made, _| made <= step);
        }
        match line["step"].as_u64() {
            Some(step) if step > after && step <= last => steps.entry(step).or_default().push(line),
            _ => {}
        }
    }
    Ok(steps.into_values().flatten().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_line_has_its_points() {
        let step = json!({"step": 3, "phase": "main", "tokens": 9, "loss": 2.5, "loss_bits": "0",
                          "lr": 1e-3, "skipped": false, "ranks": 1, "margin": null});
        let (at, found) = points(&step).unwrap();
        let tags: Vec<_> = found.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["train/tokens", "train/loss", "train/learning_rate", "train/margin"]);
        assert_eq!((at, &found[1].1), (3, &Point::Scalar(2.5)));
        let eval = json!({"step": 4, "eval": {"a": {"nll_per_token": 1.5, "perplexity": 4.5},
                          "b": {"nll_per_token": 1.5, "loss": 0.7, "pairs": 3}}});
        let values = [("eval/a", 1.5), ("eval/b", 0.7)];
        let values = values.map(|(tag, value)| (tag.to_owned(), Point::Scalar(value)));
        assert_eq!(points(&eval).unwrap(), (4, values.to_vec()));
        let ternary = json!({"step": 5, "ternary": {"all":
            {"minus": 0.25, "zero": 0.5, "plus": 0.25, "flipped": null, "dead_rows": 0}}});
        let (_, found) = points(&ternary).unwrap();
        let tags: Vec<_> = found.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["ternary/zero", "ternary/dead_rows", "codes/all"]);
        assert_eq!(found[2].1, Point::Codes([0.25, 0.5, 0.25]));
        let tasks =
            json!({"step": 6, "tasks": {"piqa": {"rows": 9, "acc": 0.5, "acc_stderr": 0.1}}});
        let acc = ("tasks/piqa/acc".to_owned(), Point::Scalar(0.5));
        assert_eq!(points(&tasks), Some((6, vec![acc])));
        assert_eq!(points(&json!({"event": "resume", "from_step": 2})), None);
    }

    #[test]
    fn missing_points_are_those_that_the_run_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("metrics.jsonl");
        let lines = "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":3}\n\
                     {\"event\":\"resume\",\"from_step\":1}\n{\"step\":2,\"loss\":20}\n\
                     {\"step\":2,\"eval\":{}}\n{\"step\":3,\"loss\":30}\n{\"step\":4";
        fs_err::write(&log, lines).unwrap();
        let loss = |line: Value| (line["step"].as_u64(), line["loss"].as_u64());
        let found = |after, last| -> Vec<_> {
            missing(&log, after, last).unwrap().into_iter().map(loss).collect()
        };
        assert_eq!(found(0, 2), [(Some(1), Some(1)), (Some(2), Some(20)), (Some(2), None)]);
        assert_eq!(found(2, 9), [(Some(3), Some(30))]);
    }
}
