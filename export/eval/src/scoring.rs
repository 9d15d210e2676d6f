//! From what the model answered about a row to the row's metrics.

use serde_json::Value;

use crate::document::{RightAnswer, RowDocument, RowQuestion, python_text};
use crate::functions::{ScoringAids, rolling_metrics};
use crate::metrics::MetricValue;
use crate::python::{argmax, count_words};
use crate::scheduler::ContinuationScore;
use crate::task::{OutputType, Task, TaskMetric};

/// The metrics of a row, in the order of the task.
pub(crate) type RowMetrics = Vec<(String, MetricValue)>;

/// The metrics of tasks whose files name no function for their results.
pub(crate) fn metrics(output: OutputType) -> &'static [&'static str] {
    match output {
        OutputType::MultipleChoice => &["acc", "acc_norm", "acc_bytes", "exact_match", "f1", "mcc"],
        OutputType::Loglikelihood => &["perplexity", "acc"],
        OutputType::LoglikelihoodRolling => {
            &["word_perplexity", "byte_perplexity", "bits_per_byte"]
        }
        OutputType::GenerateUntil => &["exact_match"],
    }
}

/// Metrics of a row whose continuations were scored.
pub(crate) fn of_scores(
    task: &Task,
    row: &Value,
    document: &RowDocument,
    scores: &[ContinuationScore],
) -> Result<RowMetrics, (String, String)> {
    let logs: Vec<f64> = scores.iter().map(|it| it.loglikelihood).collect();
    if let Some(function) = task.process_results {
        return function.call(row, &logs);
    }
    // A task of one continuation: LAMBADA. Its file may list choices all the same.
    if task.output == OutputType::Loglikelihood {
        return Ok(of_one(task, scores[0]));
    }
    let gold = right_choices(document).map_err(|what| ("doc_to_target".to_owned(), what))?;
    let values = task.metrics.iter().map(|metric| {
        let value = of_choices(metric, &document.choices, scores, &gold);
        value.map(|value| (metric.name.clone(), value))
    });
    Ok(values.flatten().collect())
}

fn of_one(task: &Task, score: ContinuationScore) -> RowMetrics {
    let value = |metric: &TaskMetric| match metric.name.as_str() {
        "perplexity" => Some(score.loglikelihood),
        "acc" => Some(f64::from(score.is_greedy)),
        _ => None,
    };
    let named =
        |metric: &TaskMetric| Some((metric.name.clone(), MetricValue::Number(value(metric)?)));
    task.metrics.iter().filter_map(named).collect()
}

/// Metrics of a whole text.
pub(crate) fn of_rolling(
    task: &Task,
    row: &Value,
    document: &RowDocument,
    log: f64,
) -> Result<RowMetrics, (String, String)> {
    if let Some(function) = task.process_results {
        return function.call(row, &[log]);
    }
    let text = match &document.answer {
        RightAnswer::Text(text) => text.as_str(),
        _ => "",
    };
    // By words and bytes, not by tokens: models with different tokenizers compare.
    let all = rolling_metrics(log, count_words(text), text.len());
    let asked = |name: &String| task.metrics.iter().any(|metric| metric.name == *name);
    Ok(all.into_iter().filter(|(name, _)| asked(name)).collect())
}

/// Metrics of a generated text that went through a filter.
pub(crate) fn of_text(
    task: &Task,
    row: &Value,
    document: &RowDocument,
    text: &str,
    aids: ScoringAids,
) -> Result<RowMetrics, (String, String)> {
    match task.process_results {
        Some(function) => function.of_text(row, text, aids),
        None => Ok(exact_matches(task, document, text)),
    }
}

fn exact_matches(task: &Task, document: &RowDocument, text: &str) -> RowMetrics {
    let right: Vec<String> = match &document.answer {
        RightAnswer::Text(right) => vec![right.clone()],
        RightAnswer::Choice(index) => {
            let choice = usize::try_from(*index).ok().and_then(|at| document.choices.get(at));
            vec![choice.cloned().unwrap_or_else(|| index.to_string())]
        }
        RightAnswer::Any(items) => items.iter().map(python_text).collect(),
    };
    let exact = task.metrics.iter().filter(|metric| metric.name == "exact_match");
    exact
        .map(|metric| {
            let equal = right.iter().any(|right| metric.exact_match.equal(right, text));
            (metric.name.clone(), MetricValue::Number(f64::from(equal)))
        })
        .collect()
}

/// The right choices by their numbers.
fn right_choices(document: &RowDocument) -> Result<Vec<usize>, String> {
    let count = document.choices.len();
    let within = |index: i64| {
        let found = usize::try_from(index).ok().filter(|at| *at < count);
        found.ok_or_else(|| format!("label {index} is out of range; expected below {count}"))
    };
    // Winogrande: the answer is the continuation, and the question says which context is right.
    if let RowQuestion::Contexts(right) = document.question {
        return Ok(vec![within(right as i64)?]);
    }
    match &document.answer {
        RightAnswer::Choice(index) => Ok(vec![within(*index)?]),
        RightAnswer::Any(items) => {
            let index =
                |item: &Value| item.as_i64().ok_or("expected numbers of choices".to_owned());
            items.iter().map(|item| within(index(item)?)).collect()
        }
        RightAnswer::Text(text) => {
            // A template may give the right choice by its text instead of its number.
            let found = document.choices.iter().position(|choice| choice == text);
            let missing = || format!("label {text:?} is none of the choices");
            Ok(vec![found.ok_or_else(missing)?])
        }
    }
}

fn of_choices(
    metric: &TaskMetric,
    choices: &[String],
    scores: &[ContinuationScore],
    gold: &[usize],
) -> Option<MetricValue> {
    let by = |length: &dyn Fn(&String) -> usize| {
        let shares = scores.iter().zip(choices);
        argmax(shares.map(|(score, choice)| score.loglikelihood / length(choice) as f64))
    };
    let best = || argmax(scores.iter().map(|it| it.loglikelihood));
    let hit = |found: usize| MetricValue::Number(f64::from(gold.contains(&found)));
    Some(match metric.name.as_str() {
        "acc" => hit(best()),
        // Python's `len`: characters, not bytes.
        "acc_norm" => hit(by(&|choice| choice.chars().count())),
        "acc_bytes" => hit(by(&String::len)),
        "exact_match" => {
            MetricValue::Number(f64::from(gold.iter().any(|at| scores[*at].is_greedy)))
        }
        "f1" | "mcc" => MetricValue::Classes(*gold.first()? as i64, best() as i64),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task_file;
    use serde_json::json;
    use std::path::Path;

    fn task(config: Value) -> Task {
        task_file::task(Path::new("t.yaml"), config.as_object().unwrap().clone()).unwrap()
    }

    fn choice_task() -> Task {
        let metrics = ["acc", "acc_norm", "acc_bytes", "exact_match", "f1"];
        let metrics: Vec<Value> = metrics.iter().map(|name| json!({"metric": name})).collect();
        task(json!({"task": "t", "output_type": "multiple_choice", "test_split": "test",
            "doc_to_text": "q", "doc_to_target": "a", "doc_to_choice": "c", "metric_list": metrics}))
    }

    fn document(answer: RightAnswer) -> RowDocument {
        RowDocument {
            question: RowQuestion::Text("q".to_owned()),
            answer,
            choices: ["no", "étéété", "yes, it is"].map(str::to_owned).into(),
            description: String::new(),
        }
    }

    fn scores(logs: [f64; 3]) -> Vec<ContinuationScore> {
        let score = |log: &f64| ContinuationScore { loglikelihood: *log, is_greedy: *log == -4.0 };
        logs.iter().map(score).collect()
    }

    fn numbers(answer: RightAnswer, logs: [f64; 3]) -> Vec<f64> {
        let row =
            of_scores(&choice_task(), &Value::Null, &document(answer), &scores(logs)).unwrap();
        row.into_iter()
            .map(|(_, value)| match value {
                MetricValue::Number(number) => number,
                MetricValue::Classes(gold, found) => (gold * 10 + found) as f64,
                other => panic!("neither a number nor a class: {other:?}"),
            })
            .collect()
    }

    /// 6 characters are 10 bytes.
    #[test]
    fn lengths_are_counted_in_characters_and_in_bytes() {
        let logs = [-4.0, -6.6, -9.0];
        assert_eq!(numbers(RightAnswer::Choice(0), logs), [1.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(numbers(RightAnswer::Choice(1), logs), [0.0, 0.0, 1.0, 0.0, 10.0]);
        assert_eq!(
            numbers(RightAnswer::Text("yes, it is".to_owned()), logs),
            [0.0, 1.0, 0.0, 0.0, 20.0]
        );
        let any = RightAnswer::Any(vec![json!(0), json!(2)]);
        assert_eq!(numbers(any, logs)[..3], [1.0, 1.0, 0.0]);
    }

    /// What a task file may ask for and what is computed are two lists; this keeps them one.
    #[test]
    fn every_metric_that_a_task_file_may_ask_for_is_computed() {
        let config = |output: &str, metrics: &[&str]| {
            let metrics: Vec<Value> = metrics.iter().map(|name| json!({"metric": name})).collect();
            task(json!({"task": "t", "output_type": output, "test_split": "test",
                "doc_to_text": "q", "doc_to_target": "a", "doc_to_choice": "c",
                "metric_list": metrics}))
        };
        let all = |output| metrics(output).iter().map(ToString::to_string).collect::<Vec<_>>();
        let names = |row: RowMetrics| row.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let (choice, text) = (RightAnswer::Choice(1), RightAnswer::Text("x".to_owned()));
        let (row, logs) = (Value::Null, scores([-4.0, -5.0, -6.0]));
        let asked = config("multiple_choice", metrics(OutputType::MultipleChoice));
        let found = of_scores(&asked, &row, &document(choice), &logs).unwrap();
        assert_eq!(names(found), all(OutputType::MultipleChoice));
        let asked = config("loglikelihood", metrics(OutputType::Loglikelihood));
        let found = of_scores(&asked, &row, &document(text.clone()), &logs[..1]).unwrap();
        assert_eq!(names(found), all(OutputType::Loglikelihood));
        let asked = config("loglikelihood_rolling", metrics(OutputType::LoglikelihoodRolling));
        let found = of_rolling(&asked, &row, &document(text.clone()), -1.0).unwrap();
        assert_eq!(names(found), all(OutputType::LoglikelihoodRolling));
        let asked = config("generate_until", metrics(OutputType::GenerateUntil));
        let found = of_text(&asked, &row, &document(text), "x", ScoringAids::default()).unwrap();
        assert_eq!(names(found), all(OutputType::GenerateUntil));
    }

    #[test]
    fn labels_out_of_range_are_reported() {
        let wrong = |answer| {
            let found =
                of_scores(&choice_task(), &Value::Null, &document(answer), &scores([0.0; 3]));
            found.unwrap_err().1
        };
        assert!(
            wrong(RightAnswer::Choice(3)).contains("label 3 is out of range; expected below 3")
        );
        assert!(wrong(RightAnswer::Text("maybe".to_owned())).contains("none of the choices"));
    }

    #[test]
    fn one_of_several_right_texts_is_enough() {
        let task = task(json!({"task": "t", "test_split": "test", "doc_to_text": "q",
            "doc_to_target": "a", "metric_list": [{"metric": "exact_match", "ignore_case": true}]}));
        let any = RightAnswer::Any(vec![json!("Paris"), json!("Lutetia")]);
        let right = |text| exact_matches(&task, &document(any.clone()), text)[0].1;
        assert_eq!(right("lutetia"), MetricValue::Number(1.0));
        assert_eq!(right("Rome"), MetricValue::Number(0.0));
    }
}
