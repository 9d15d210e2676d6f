//! Answers of DROP: numbers, dates or spans, and their F1 over words (`drop/utils.py`). A model
//! gives one text, so the best pairing of its words with several spans is the best single one.

use std::collections::BTreeSet;

use fancy_regex::Regex;
use serde_json::{Value, json};

use crate::python::{self, PUNCTUATION};

/// The answers that count as right, each a list of spans and each once.
pub(crate) fn answers(row: &Value) -> Option<Value> {
    let validated = &row["validated_answers"];
    let field = |name: &str, at: usize| validated[name].get(at).cloned();
    let mut all = vec![parse(&row["answer"])?];
    for at in 0..validated["number"].as_array()?.len() {
        let one = json!({"number": field("number", at)?, "date": field("date", at)?, "spans": field("spans", at)?});
        let found = parse(&one)?;
        if !all.contains(&found) {
            all.push(found);
        }
    }
    Some(json!(all))
}

fn parse(answer: &Value) -> Option<Vec<String>> {
    let number = answer["number"].as_str()?;
    if !number.is_empty() {
        // The order is the harness's. An answer has one of the three; the other two are empty.
        return Some(vec![number.to_owned()]);
    }
    let spans: Option<Vec<String>> =
        answer["spans"].as_array()?.iter().map(|it| Some(it.as_str()?.to_owned())).collect();
    let spans = spans?;
    if !spans.is_empty() {
        return Some(spans);
    }
    let part = |name: &str| answer["date"][name].as_str();
    let date = [part("day")?, part("month")?, part("year")?].join(" ");
    Some(vec![python::strip(&date).to_owned()])
}

/// Exact match and F1 of a text, the best over all answers.
pub(crate) fn scores(text: &str, answers: &[Vec<String>]) -> (f64, f64) {
    let said = normalised(text);
    let mut best = (0.0_f64, 0.0_f64);
    for spans in answers {
        // `if gold_answer[0].strip()`: an answer of nothing counts for nothing.
        if spans.first().is_none_or(|first| python::strip(first).is_empty()) {
            continue;
        }
        let right: Vec<String> = spans.iter().map(|span| normalised(span)).collect();
        // The model gives one span: with several right ones it cannot be exact.
        let exact = f64::from(right == [said.as_str()]);
        // The harness assigns said spans to right ones for the largest sum; of one said span that
        // is the best pair, divided by the number of right ones.
        let f1 = right.iter().map(|span| word_f1(&said, span)).fold(0.0, f64::max);
        // numpy rounds to two digits, halves to even.
        let f1 = (100.0 * (f1 / right.len() as f64)).round_ties_even() / 100.0;
        best = (best.0.max(exact), best.1.max(f1));
    }
    best
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(python::is_space).filter(|word| !word.is_empty()).collect()
}

/// Over different words; 0 where the gold answer has numbers and the prediction has none of them.
fn word_f1(said: &str, right: &str) -> f64 {
    let (said, right) = (words(said), words(right));
    let numbers: BTreeSet<&str> =
        right.iter().copied().filter(|word| python::float(word).is_some()).collect();
    if !numbers.is_empty() && numbers.is_disjoint(&said) {
        return 0.0;
    }
    let common = said.intersection(&right).count() as f64;
    // An empty side has all of its words in common, as in DROP's own script.
    let share = |all: usize| if all == 0 { 1.0 } else { common / all as f64 };
    let (precision, recall) = (share(said.len()), share(right.len()));
    if precision == 0.0 && recall == 0.0 {
        return 0.0;
    }
    2.0 * precision * recall / (precision + recall)
}

fn normalised(text: &str) -> String {
    let articles = Regex::new(r"\b(a|an|the)\b").expect("a valid pattern");
    let token = |token: &str| {
        let mut token = token.to_lowercase();
        if python::float(&token).is_none() {
            // Not in numbers: `1.5` must keep its point.
            token.retain(|letter| !PUNCTUATION.contains(letter));
        }
        if let Some(number) = python::float(&token) {
            token = python::float_text(number);
        }
        let token = articles.replace_all(&token, " ").into_owned();
        token.split(python::is_space).filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" ")
    };
    // Hyphens part words here, so they never reach the punctuation above.
    let tokens: Vec<String> = text.split([' ', '-']).map(token).collect();
    tokens.into_iter().filter(|token| !token.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the harness's functions return for these (`scripts/eval_golden.py`).
    #[test]
    fn scores_are_those_of_the_harness() {
        let cases: Value = serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        for case in cases["drop_scores"].as_array().unwrap() {
            let answers: Vec<Vec<String>> = serde_json::from_value(case[1].clone()).unwrap();
            let (exact, f1) = scores(case[0].as_str().unwrap(), &answers);
            assert_eq!(
                (exact, f1),
                (case[2].as_f64().unwrap(), case[3].as_f64().unwrap()),
                "{case}"
            );
        }
        for case in cases["drop_answers"].as_array().unwrap() {
            assert_eq!(answers(&case[0]), Some(case[1].clone()), "{}", case[0]);
        }
        assert_eq!(answers(&json!({"answer": {}})), None);
    }
}
