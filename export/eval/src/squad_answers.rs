//! Answers of the SQuAD family: equality and F1 after SQuAD's normalisation (`compute_score.py`),
//! what CoQA makes of several right answers (`coqa/utils.py`), and the best score over thresholds of
//! SQuAD 2.

use std::collections::HashMap;

use fancy_regex::Regex;
use serde_json::Value;

use crate::python::{self, PUNCTUATION};

/// What SQuAD 2 needs of a row to look for the best threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanScore {
    /// The row's exact match or F1.
    pub score: f64,
    /// Whether the question has an answer.
    pub has_answer: bool,
    /// Whether the model said something.
    pub is_answered: bool,
    /// The model's probability that there is no answer.
    pub no_answer: f64,
}

/// `normalize_answer`: lower case, without punctuation and articles, single spaces.
fn normalised(text: &str) -> String {
    let articles = Regex::new(r"\b(a|an|the)\b").expect("a valid pattern");
    let mut text = text.to_lowercase();
    text.retain(|letter| !PUNCTUATION.contains(letter));
    let text = articles.replace_all(&text, " ").into_owned();
    words(&text).join(" ")
}

fn words(text: &str) -> Vec<&str> {
    text.split(python::is_space).filter(|word| !word.is_empty()).collect()
}

fn exact(right: &str, said: &str) -> f64 {
    f64::from(normalised(right) == normalised(said))
}

/// Over words, as often as they stand there.
fn f1(right: &str, said: &str) -> f64 {
    let (right, said) = (normalised(right), normalised(said));
    let (right, said) = (words(&right), words(&said));
    if right.is_empty() || said.is_empty() {
        // Without an answer on one side only agreement counts.
        return f64::from(right == said);
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &right {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0.0;
    for word in &said {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1.0;
        }
    }
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / said.len() as f64, common / right.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

fn best(right: &[&str], score: impl Fn(&str) -> f64) -> f64 {
    right.iter().map(|right| score(right)).fold(0.0, f64::max)
}

/// Exact match and F1 of a text, the best over all right answers; a question without one is right
/// where nothing is said.
pub(crate) fn scores(right: &[&str], said: &str) -> (f64, f64) {
    let mut kept: Vec<&str> =
        right.iter().copied().filter(|text| !normalised(text).is_empty()).collect();
    if kept.is_empty() {
        kept.push("");
    }
    (best(&kept, |right| exact(right, said)), best(&kept, |right| f1(right, said)))
}

/// 1 where the text holds the right answer in any case of its letters.
pub(crate) fn contains(right: &str, said: &str) -> f64 {
    let pattern = format!("(?i){}", fancy_regex::escape(python::strip(right)));
    let regex = Regex::new(&pattern).expect("an escaped pattern");
    f64::from(regex.is_match(said).unwrap_or(false))
}

/// The mean over answers of the best among the others: each human is left out once, as in CoQA's
/// own script.
pub(crate) fn left_out_scores(right: &[String], said: &str) -> (f64, f64) {
    let all: Vec<&str> = right.iter().map(String::as_str).collect();
    if let [only] = all[..] {
        return (exact(only, said), f1(only, said));
    }
    let (mut exact_sum, mut f1_sum) = (0.0, 0.0);
    for left_out in 0..all.len() {
        let others = [&all[..left_out], &all[left_out + 1..]].concat();
        exact_sum += best(&others, |right| exact(right, said));
        f1_sum += best(&others, |right| f1(right, said));
    }
    let count = all.len().max(1) as f64;
    (exact_sum / count, f1_sum / count)
}

/// The conversation of a CoQA row with its last question, which has no answer yet.
pub(crate) fn coqa_text(row: &Value) -> Option<String> {
    let said = |field: &str| row[field]["input_text"].as_array();
    let (questions, answers) = (said("questions")?, said("answers")?);
    let mut text = format!("{}\n\n", row["story"].as_str()?);
    let before = answers.len().checked_sub(1)?;
    for at in 0..questions.len().max(before) {
        // Lists of two lengths end in Python's `None`.
        let question = questions.get(at).map_or(Some("None"), Value::as_str)?;
        text.extend(["Q: ", question, "\n\n"]);
        match answers[..before].get(at) {
            Some(answer) => text.extend(["A: ", answer.as_str()?, "\n\n"]),
            None => text += "A:",
        }
    }
    Some(text)
}

/// The right answers to the last question of a CoQA row, each once.
pub(crate) fn coqa_answers(row: &Value) -> Option<Vec<String>> {
    let last = row["questions"]["input_text"].as_array()?.len().checked_sub(1)?;
    let of = |answers: &Value| Some(answers["input_text"].get(last)?.as_str()?.to_owned());
    let mut all = vec![of(&row["answers"])?];
    let more = row.get("additional_answers").and_then(Value::as_object);
    for answers in more.into_iter().flat_map(|more| more.values()) {
        let answer = of(answers)?;
        if all.iter().all(|known| known.to_lowercase() != answer.to_lowercase()) {
            all.push(answer);
        }
    }
    Some(all)
}

/// In percent: the best score over thresholds on the probability that there is no answer. Below
/// the threshold the model's text counts, above it the row counts as left unanswered.
pub(crate) fn best_percent(rows: &[SpanScore]) -> f64 {
    let mut sorted: Vec<&SpanScore> = rows.iter().collect();
    sorted.sort_by(|a, b| a.no_answer.total_cmp(&b.no_answer));
    let mut score = rows.iter().filter(|row| !row.has_answer).count() as f64;
    let mut best = score;
    for row in sorted {
        score += match (row.has_answer, row.is_answered) {
            (true, _) => row.score,
            (false, true) => -1.0,
            (false, false) => 0.0,
        };
        best = best.max(score);
    }
    100.0 * best / rows.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
    }

    fn number(value: &Value) -> f64 {
        value.as_f64().unwrap()
    }

    /// What SQuAD's script and the harness's functions return for these
    /// (`scripts/eval_golden.py`).
    #[test]
    fn scores_are_those_of_the_scripts() {
        let cases: Value = serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        let all = |key: &str| cases[key].as_array().unwrap().clone();
        assert!(all("squad_scores").len() > 10);
        for case in all("squad_scores") {
            let found = scores(&texts(&case[1]), case[0].as_str().unwrap());
            assert_eq!(found, (number(&case[2]), number(&case[3])), "{case}");
        }
        for case in all("squad_contains") {
            let found = contains(case[1].as_str().unwrap(), case[0].as_str().unwrap());
            assert_eq!(found, number(&case[2]), "{case}");
        }
        for case in all("coqa") {
            let right = coqa_answers(&case["row"]).unwrap();
            assert_eq!(coqa_text(&case["row"]).unwrap(), case["text"].as_str().unwrap());
            assert_eq!(right, texts(&case["answers"]));
            let found = left_out_scores(&right, case["said"].as_str().unwrap());
            assert_eq!(found, (number(&case["em"]), number(&case["f1"])), "{case}");
        }
    }

    #[test]
    fn rows_that_lack_something_are_refused() {
        let row = serde_json::json!({"story": "s", "questions": {"input_text": []}});
        assert_eq!((coqa_text(&row), coqa_answers(&row)), (None, None));
    }
}
