//! What some tasks of the harness do in Python, by the names that their files use.

use serde_json::Value;

use crate::code_runner::CodeRunner;
use crate::metrics::MetricValue;
use crate::python;
use crate::rewritten_rows::{
    hellaswag, text, wikitext, winogrande_answer, winogrande_halves, wrong,
};
use crate::squad_answers::{self, SpanScore};
use crate::{drop_answers, instructions, math_answers, math_minerva};

/// Something that is made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFunction {
    Hellaswag,
    WinograndeText,
    WinograndeTarget,
    WinograndeChoice,
    WikitextDetokenizer,
    Math,
    Minerva,
    Drop,
    CoqaText,
    CoqaAnswers,
}

/// Scores of a row that are no standard metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResultsFunction {
    TruthfulqaMc2,
    Wikitext,
    Math,
    Minerva,
    Drop,
    Instructions,
    Programs,
    Squad2,
    SquadCompletion,
    Coqa,
}

/// What scores of a generated text may need beside its row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ScoringAids<'a> {
    /// Runs programs, where that is allowed.
    pub(crate) code: Option<&'a CodeRunner>,
    /// The log-likelihood of [`ResultsFunction::scored_beside`].
    pub(crate) beside: Option<f64>,
}

/// All names, for messages.
pub(crate) const NAMES: &str = "utils.process_docs (of hellaswag, hendrycks_math, minerva_math and drop), preprocess_winogrande.doc_to_text, \
    .doc_to_target and .doc_to_choice, preprocess_wikitext.wikitext_detokenizer and .process_results, \
    utils.process_results_mc2 (of truthfulqa), utils.process_results (of hendrycks_math, minerva_math, drop, ifeval and coqa), \
    utils.pass_at_k (of humaneval), utils.doc_to_text and .doc_to_target (of coqa), task.SQuAD2, \
    task.SQUADCompletion";

/// What a row of CoQA holds.
const COQA: &str = "expected story, questions.input_text and answers.input_text";

impl RowFunction {
    /// By the name in a task file; `task` and its data tell files with the same names apart.
    pub(crate) fn named(name: &str, task: &str) -> Option<Self> {
        Some(match name {
            "utils.process_docs" if task.contains("hellaswag") => Self::Hellaswag,
            "utils.process_docs" if is_math(task) => Self::Math,
            "utils.process_docs" if is_minerva(task) => Self::Minerva,
            "utils.process_docs" if task.contains("drop") => Self::Drop,
            "utils.doc_to_text" if task.contains("coqa") => Self::CoqaText,
            "utils.doc_to_target" if task.contains("coqa") => Self::CoqaAnswers,
            "preprocess_winogrande.doc_to_text" => Self::WinograndeText,
            "preprocess_winogrande.doc_to_target" => Self::WinograndeTarget,
            "preprocess_winogrande.doc_to_choice" => Self::WinograndeChoice,
            "preprocess_wikitext.wikitext_detokenizer" => Self::WikitextDetokenizer,
            _ => return None,
        })
    }

    /// # Errors
    /// The field that is missing or of another kind.
    pub(crate) fn call(self, row: &Value) -> Result<Value, (String, String)> {
        match self {
            Self::Hellaswag => hellaswag(row),
            // Winogrande is scored the other way round: the two options make two contexts, and what
            // follows the blank is the one continuation. The "text" is the number of the right
            // context.
            Self::WinograndeText => winogrande_answer(row).map(Value::from),
            Self::WinograndeTarget => {
                winogrande_halves(row).map(|(_, after)| python::strip(after).into())
            }
            Self::WinograndeChoice => {
                let (before, _) = winogrande_halves(row)?;
                let options = [text(row, "option1")?, text(row, "option2")?];
                Ok(options.map(|option| format!("{before}{option}")).to_vec().into())
            }
            Self::WikitextDetokenizer => Ok(wikitext(text(row, "page")?).into()),
            Self::Math => Ok(with(row, "answer", boxed(row)?.into())),
            Self::Minerva => Ok(with(row, "answer", math_minerva::normalised(&boxed(row)?).into())),
            Self::Drop => {
                let answers = drop_answers::answers(row);
                let expected =
                    "expected number, date and spans, and lists of them as validated_answers";
                Ok(with(row, "answers", answers.ok_or_else(|| wrong("answer", expected))?))
            }
            Self::CoqaText => {
                let made = squad_answers::coqa_text(row).ok_or_else(|| wrong("questions", COQA))?;
                Ok(made.into())
            }
            Self::CoqaAnswers => coqa_answers(row).map(Value::from),
        }
    }
}

impl ResultsFunction {
    /// By the name in a task file; `task` and its data tell files with the same names apart.
    pub(crate) fn named(name: &str, task: &str) -> Option<Self> {
        Some(match name {
            "utils.process_results_mc2" => Self::TruthfulqaMc2,
            "preprocess_wikitext.process_results" => Self::Wikitext,
            "utils.process_results" if is_math(task) => Self::Math,
            "utils.process_results" if is_minerva(task) => Self::Minerva,
            "utils.process_results" if task.contains("drop") => Self::Drop,
            "utils.process_results" if task.contains("ifeval") => Self::Instructions,
            "utils.process_results" if task.contains("coqa") => Self::Coqa,
            "utils.pass_at_k" => Self::Programs,
            "task.SQuAD2" => Self::Squad2,
            "task.SQUADCompletion" => Self::SquadCompletion,
            _ => return None,
        })
    }

    /// The metrics of a row from its log-likelihoods.
    ///
    /// # Errors
    /// The field that is missing or of another kind.
    pub(crate) fn call(
        self,
        row: &Value,
        logs: &[f64],
    ) -> Result<Vec<(String, MetricValue)>, (String, String)> {
        match self {
            Self::TruthfulqaMc2 => {
                let labels = row["mc2_targets"]["labels"].as_array();
                let labels = labels.filter(|labels| labels.len() == logs.len());
                let wrong = || wrong("mc2_targets.labels", "expected one label a choice");
                let share = share_of_true(labels.ok_or_else(wrong)?, logs);
                Ok(vec![("acc".to_owned(), MetricValue::Number(share))])
            }
            Self::Wikitext => {
                let page = text(row, "page")?;
                Ok(rolling_metrics(logs[0], python::count_words(page), page.len()))
            }
            _ => Err(wrong("process_results", "needs a task that generates")),
        }
    }

    /// The metrics that it computes.
    pub(crate) fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::TruthfulqaMc2 => &["acc"],
            Self::Wikitext => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
            Self::Math => &["exact_match"],
            Self::Minerva => &["exact_match", "math_verify"],
            Self::Drop | Self::Coqa => &["em", "f1"],
            Self::Instructions => &[
                "prompt_level_strict_acc",
                "inst_level_strict_acc",
                "prompt_level_loose_acc",
                "inst_level_loose_acc",
            ],
            Self::Programs => &["pass@1"],
            Self::Squad2 => &SQUAD2_METRICS,
            Self::SquadCompletion => &["contains"],
        }
    }

    /// A continuation whose log-likelihood is asked for beside the text of the same prompt.
    pub(crate) fn scored_beside(self) -> Option<&'static str> {
        (self == Self::Squad2).then_some(" unanswerable")
    }

    /// Whether it runs what the model wrote.
    pub(crate) fn runs_code(self) -> bool {
        self == Self::Programs
    }

    /// The metrics of a row from a generated text.
    ///
    /// # Errors
    /// The field that is missing or of another kind.
    pub(crate) fn of_text(
        self,
        row: &Value,
        said: &str,
        aids: ScoringAids,
    ) -> Result<Vec<(String, MetricValue)>, (String, String)> {
        Ok(match self {
            Self::TruthfulqaMc2 | Self::Wikitext => {
                return Err(wrong("process_results", "needs a task that scores"));
            }
            Self::Math => {
                let equal = math_answers::equal(math_answers::asked(said), text(row, "answer")?);
                numbers([("exact_match", f64::from(equal))])
            }
            Self::Minerva => {
                let answer = math_minerva::normalised(&math_minerva::said(said));
                let exact = math_minerva::is_exact(&answer, text(row, "answer")?);
                let verified = math_minerva::is_verified(text(row, "solution")?, said);
                numbers([("exact_match", f64::from(exact)), ("math_verify", f64::from(verified))])
            }
            Self::Drop => {
                let answers = serde_json::from_value::<Vec<Vec<String>>>(row["answers"].clone());
                let answers = answers.map_err(|it| wrong("answers", &it.to_string()))?;
                let (exact, f1) = drop_answers::scores(said, &answers);
                numbers([("em", exact), ("f1", f1)])
            }
            Self::Instructions => instruction_metrics(&instructions::followed(row, said)?),
            Self::Programs => {
                let code =
                    aids.code.ok_or_else(|| wrong("process_results", "may not run programs"))?;
                let [prompt, test, name] =
                    [text(row, "prompt")?, text(row, "test")?, text(row, "entry_point")?];
                // The order of HumanEval's files: the function's head, its body by the model, the
                // tests.
                let program = format!("{prompt}{said}\n{test}\ncheck({name})");
                let passes = code.passes(&program);
                let passes = passes.map_err(|error| wrong("prompt", &error.to_string()))?;
                numbers([("pass@1", f64::from(passes))])
            }
            Self::Squad2 => {
                let missing = || wrong("process_results", "needs a log-likelihood beside the text");
                squad2_metrics(row, said, aids.beside.ok_or_else(missing)?)?
            }
            Self::SquadCompletion => {
                numbers([("contains", squad_answers::contains(text(row, "value")?, said))])
            }
            Self::Coqa => {
                let line = python::strip(said).split('\n').next().unwrap_or_default();
                let (exact, f1) = squad_answers::left_out_scores(&coqa_answers(row)?, line);
                numbers([("em", exact), ("f1", f1)])
            }
        })
    }
}

/// The metrics of SQuAD 2, in the order of its script.
const SQUAD2_METRICS: [&str; 8] = [
    "exact",
    "f1",
    "HasAns_exact",
    "HasAns_f1",
    "NoAns_exact",
    "NoAns_f1",
    "best_exact",
    "best_f1",
];

/// A row counts for the questions with an answer or for those without, and for all.
fn squad2_metrics(
    row: &Value,
    said: &str,
    unanswerable: f64,
) -> Result<Vec<(String, MetricValue)>, (String, String)> {
    let right = row["answers"]["text"].as_array();
    let right = right.and_then(|it| it.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let right = right.ok_or_else(|| wrong("answers.text", "expected a list of texts"))?;
    let (exact, f1) = squad_answers::scores(&right, said);
    let kind = if right.is_empty() { "NoAns" } else { "HasAns" };
    let span = |score| {
        MetricValue::Span(SpanScore {
            score,
            has_answer: !right.is_empty(),
            is_answered: !said.is_empty(),
            no_answer: unanswerable.exp(),
        })
    };
    let mut metrics = numbers([("exact", exact), ("f1", f1)]);
    metrics.push((format!("{kind}_exact"), MetricValue::Number(exact)));
    metrics.push((format!("{kind}_f1"), MetricValue::Number(f1)));
    metrics.push(("best_exact".to_owned(), span(exact)));
    metrics.push(("best_f1".to_owned(), span(f1)));
    Ok(metrics)
}

fn coqa_answers(row: &Value) -> Result<Vec<String>, (String, String)> {
    squad_answers::coqa_answers(row).ok_or_else(|| wrong("answers", COQA))
}

/// The answer in the last box of a solution.
fn boxed(row: &Value) -> Result<String, (String, String)> {
    let answer = math_answers::boxed(text(row, "solution")?);
    answer.ok_or_else(|| wrong("solution", "expected an answer in \\boxed{}"))
}

fn is_minerva(task: &str) -> bool {
    task.contains("minerva_math")
}

fn is_math(task: &str) -> bool {
    task.contains("hendrycks_math")
}

/// A row with a field more.
fn with(row: &Value, field: &str, value: Value) -> Value {
    let mut row = row.clone();
    row[field] = value;
    row
}

fn numbers<const N: usize>(all: [(&str, f64); N]) -> Vec<(String, MetricValue)> {
    all.map(|(name, value)| (name.to_owned(), MetricValue::Number(value))).into()
}

/// By prompt all instructions count together, otherwise each for itself.
fn instruction_metrics(followed: &[Vec<bool>; 2]) -> Vec<(String, MetricValue)> {
    let mut metrics = Vec::new();
    for (kind, followed) in ["strict", "loose"].iter().zip(followed) {
        let count = followed.iter().filter(|it| **it).count();
        let all = f64::from(count == followed.len());
        let share = MetricValue::Weighted(count as f64, followed.len() as f64);
        metrics.push((format!("prompt_level_{kind}_acc"), MetricValue::Number(all)));
        metrics.push((format!("inst_level_{kind}_acc"), share));
    }
    metrics
}

/// The three metrics of a rolling log-likelihood.
pub(crate) fn rolling_metrics(log: f64, words: usize, bytes: usize) -> Vec<(String, MetricValue)> {
    [("word_perplexity", words), ("byte_perplexity", bytes), ("bits_per_byte", bytes)]
        .map(|(name, count)| (name.to_owned(), MetricValue::Weighted(log, count as f64)))
        .into()
}

/// The share of the choices' probability that true ones have.
fn share_of_true(labels: &[Value], logs: &[f64]) -> f64 {
    // Not a softmax with its maximum taken off: numbers this small stay in f64 for answers of a
    // sentence, and the harness computes them so.
    let all: f64 = logs.iter().map(|log| log.exp()).sum();
    let is_true = |label: &Value| label.as_i64() == Some(1) || label.as_bool() == Some(true);
    let found = labels.iter().zip(logs).filter(|(label, _)| is_true(label));
    found.map(|(_, log)| log.exp() / all).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generated_texts_are_scored_by_what_their_rows_ask_for() {
        let row = RowFunction::Math.call(&json!({"solution": "so \\boxed{\\frac12}"})).unwrap();
        let score =
            |text| ResultsFunction::Math.of_text(&row, text, ScoringAids::default()).unwrap();
        assert_eq!(score("It is $1/2$."), numbers([("exact_match", 1.0)]));
        assert_eq!(score("1"), numbers([("exact_match", 0.0)]));
        assert_eq!(RowFunction::Math.call(&json!({"solution": "2"})).unwrap_err().0, "solution");
        let row = json!({"answers": [["5"], ["Ann", "Bob"]]});
        let found = ResultsFunction::Drop.of_text(&row, "the 5", ScoringAids::default()).unwrap();
        assert_eq!(found, numbers([("em", 1.0), ("f1", 1.0)]));
        let row = json!({"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]});
        let found =
            ResultsFunction::Instructions.of_text(&row, "a b", ScoringAids::default()).unwrap();
        assert_eq!(found[0].1, MetricValue::Number(0.0));
        assert_eq!(found[1], ("inst_level_strict_acc".to_owned(), MetricValue::Weighted(1.0, 2.0)));
        let row = json!({"prompt": "def f():\n", "test": "def check(f): assert f() == 1", "entry_point": "f"});
        assert!(
            ResultsFunction::Programs
                .of_text(&row, "    return 1", ScoringAids::default())
                .is_err()
        );
        if let Ok(code) = CodeRunner::new("python3".as_ref()) {
            let aids = ScoringAids { code: Some(&code), beside: None };
            let score = |text| ResultsFunction::Programs.of_text(&row, text, aids).unwrap();
            assert_eq!(score("    return 1"), numbers([("pass@1", 1.0)]));
            assert_eq!(score("    return 2"), numbers([("pass@1", 0.0)]));
        }
    }

    #[test]
    fn truthfulqa_counts_the_probability_of_true_answers() {
        let row = json!({"mc2_targets": {"labels": [1, 0, 1]}});
        let logs = [0.5_f64.ln(), 0.25_f64.ln(), 0.05_f64.ln()];
        let scores = ResultsFunction::TruthfulqaMc2.call(&row, &logs).unwrap();
        let MetricValue::Number(share) = scores[0].1 else { panic!("a number") };
        assert!((share - 0.55 / 0.8).abs() < 1e-12);
        assert!(ResultsFunction::TruthfulqaMc2.call(&row, &logs[..2]).is_err());
    }

    #[test]
    fn rows_of_squad_2_count_for_their_kind_and_for_the_threshold() {
        let score = |right: Value, said| {
            let row = json!({"answers": {"text": right}});
            let aids = ScoringAids { code: None, beside: Some(0.25_f64.ln()) };
            ResultsFunction::Squad2.of_text(&row, said, aids).unwrap()
        };
        let found = score(json!(["The Nile"]), " nile");
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["exact", "f1", "HasAns_exact", "HasAns_f1", "best_exact", "best_f1"]);
        assert_eq!(found[0].1, MetricValue::Number(1.0));
        let span = SpanScore { score: 1.0, has_answer: true, is_answered: true, no_answer: 0.25 };
        assert_eq!(found[4].1, MetricValue::Span(span));
        let found = score(json!([]), "");
        assert_eq!(found[2], ("NoAns_exact".to_owned(), MetricValue::Number(1.0)));
        let row = json!({"answers": {"text": []}});
        assert!(ResultsFunction::Squad2.of_text(&row, "", ScoringAids::default()).is_err());
    }
}
