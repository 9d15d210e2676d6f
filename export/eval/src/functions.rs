//! What some tasks of the harness do in Python, by the names that their files use.

use fancy_regex::{Captures, Regex};
use serde_json::{Value, json};

use crate::code_runner::CodeRunner;
use crate::metrics::MetricValue;
use crate::python;
use crate::{drop_answers, instructions, math_answers};

/// Something that is made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFunction {
    Hellaswag,
    WinograndeText,
    WinograndeTarget,
    WinograndeChoice,
    WikitextDetokenizer,
    Math,
    Drop,
}

/// Scores of a row that are no standard metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResultsFunction {
    TruthfulqaMc2,
    Wikitext,
    Math,
    Drop,
    Instructions,
    Programs,
}

/// All names, for messages.
pub(crate) const NAMES: &str = "utils.process_docs (of hellaswag, hendrycks_math and drop), preprocess_winogrande.doc_to_text, \
    .doc_to_target and .doc_to_choice, preprocess_wikitext.wikitext_detokenizer and .process_results, \
    utils.process_results_mc2 (of truthfulqa), utils.process_results (of hendrycks_math, drop and ifeval), \
    utils.pass_at_k (of humaneval)";

impl RowFunction {
    /// By the name in a task file; `task` and its data tell files with the same names apart.
    pub(crate) fn named(name: &str, task: &str) -> Option<Self> {
        Some(match name {
            "utils.process_docs" if task.contains("hellaswag") => Self::Hellaswag,
            "utils.process_docs" if is_math(task) => Self::Math,
            "utils.process_docs" if task.contains("drop") => Self::Drop,
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
            Self::Math => {
                let answer = math_answers::boxed(text(row, "solution")?);
                let missing = || wrong("solution", "expected an answer in \\boxed{}");
                Ok(with(row, "answer", answer.ok_or_else(missing)?.into()))
            }
            Self::Drop => {
                let answers = drop_answers::answers(row);
                let expected =
                    "expected number, date and spans, and lists of them as validated_answers";
                Ok(with(row, "answers", answers.ok_or_else(|| wrong("answer", expected))?))
            }
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
            "utils.process_results" if task.contains("drop") => Self::Drop,
            "utils.process_results" if task.contains("ifeval") => Self::Instructions,
            "utils.pass_at_k" => Self::Programs,
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
            Self::Drop => &["em", "f1"],
            Self::Instructions => &[
                "prompt_level_strict_acc",
                "inst_level_strict_acc",
                "prompt_level_loose_acc",
                "inst_level_loose_acc",
            ],
            Self::Programs => &["pass@1"],
        }
    }

    /// Whether it runs what the model wrote.
    pub(crate) fn runs_code(self) -> bool {
        self == Self::Programs
    }

    /// The metrics of a row from a generated text; `code` runs programs.
    ///
    /// # Errors
    /// The field that is missing or of another kind.
    pub(crate) fn of_text(
        self,
        row: &Value,
        said: &str,
        code: Option<&CodeRunner>,
    ) -> Result<Vec<(String, MetricValue)>, (String, String)> {
        Ok(match self {
            Self::TruthfulqaMc2 | Self::Wikitext => {
                return Err(wrong("process_results", "needs a task that scores"));
            }
            Self::Math => {
                let equal = math_answers::equal(math_answers::asked(said), text(row, "answer")?);
                numbers([("exact_match", f64::from(equal))])
            }
            Self::Drop => {
                let answers = serde_json::from_value::<Vec<Vec<String>>>(row["answers"].clone());
                let answers = answers.map_err(|it| wrong("answers", &it.to_string()))?;
                let (exact, f1) = drop_answers::scores(said, &answers);
                numbers([("em", exact), ("f1", f1)])
            }
            Self::Instructions => instruction_metrics(&instructions::followed(row, said)?),
            Self::Programs => {
                let code = code.ok_or_else(|| wrong("process_results", "may not run programs"))?;
                let [prompt, test, name] =
                    [text(row, "prompt")?, text(row, "test")?, text(row, "entry_point")?];
                // The order of HumanEval's files: the function's head, its body by the model, the
                // tests.
                let program = format!("{prompt}{said}\n{test}\ncheck({name})");
                let passes = code.passes(&program);
                let passes = passes.map_err(|error| wrong("prompt", &error.to_string()))?;
                numbers([("pass@1", f64::from(passes))])
            }
        })
    }
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

fn hellaswag(row: &Value) -> Result<Value, (String, String)> {
    let (label, before) = (text(row, "activity_label")?, text(row, "ctx_a")?);
    let after = python::capitalize(text(row, "ctx_b")?);
    let endings = row["endings"].as_array();
    let endings: Option<Vec<&str>> =
        endings.and_then(|endings| endings.iter().map(Value::as_str).collect());
    let endings = endings.ok_or_else(|| wrong("endings", "expected a list of texts"))?;
    let mut row = row.clone();
    // `process_docs` of the harness; the template of the task names these three fields.
    row["query"] = hellaswag_text(&format!("{label}: {before} {after}")).into();
    row["choices"] = endings.into_iter().map(hellaswag_text).collect();
    // Test rows of the hub have an empty label.
    row["gold"] = json!(row["label"].as_str().and_then(|label| label.parse::<i64>().ok()));
    Ok(row)
}

fn hellaswag_text(text: &str) -> String {
    // WikiHow's marks: a title ends a sentence, all other brackets go.
    let text = python::strip(text).replace(" [title]", ". ");
    sub(r"\[.*?\]", "", &text).replace("  ", " ")
}

fn winogrande_answer(row: &Value) -> Result<i64, (String, String)> {
    match text(row, "answer")? {
        "1" => Ok(0),
        "2" => Ok(1),
        other => Err(wrong("answer", &format!("expected \"1\" or \"2\", got {other:?}"))),
    }
}

/// What stands before and after the blank.
fn winogrande_halves(row: &Value) -> Result<(&str, &str), (String, String)> {
    let blank = text(row, "sentence")?.split_once('_');
    blank.ok_or_else(|| wrong("sentence", "expected a blank, written _"))
}

/// `wikitext_detokenizer`: the replacements of the harness in its order.
fn wikitext(page: &str) -> String {
    let text = page.replace("s '", "s'");
    let text = sub(r"/' [0-9]/", r"/'[0-9]/", &text);
    // WikiText was cut into words, with spaces around signs; what is scored is the text before
    // that.
    let pairs = [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ];
    let mut text = pairs.iter().fold(text, |text, (from, to)| text.replace(from, to));
    let quotes = [
        (r"\(\s*([^\)]*?)\s*\)", ["(", ")"]),
        (r"\[\s*([^\]]*?)\s*\]", ["[", "]"]),
        (r"\{\s*([^}]*?)\s*\}", ["{", "}"]),
        ("\"\\s*([^\"]*?)\\s*\"", ["\"", "\""]),
        (r"'\s*([^']*?)\s*'", ["'", "'"]),
    ];
    for (pattern, [open, close]) in quotes {
        let regex = Regex::new(pattern).expect("a valid pattern");
        let inner = |found: &Captures| format!("{open}{}{close}", &found[1]);
        text = regex.replace_all(&text, inner).into_owned();
    }
    // The longest first: `= = =` stands inside of `= = = =`.
    let pairs = [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ];
    pairs.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// `re.sub` with a text that names no group.
fn sub(pattern: &str, with: &str, text: &str) -> String {
    let regex = Regex::new(pattern).expect("a valid pattern");
    regex.replace_all(text, fancy_regex::NoExpand(with)).into_owned()
}

fn text<'a>(row: &'a Value, field: &str) -> Result<&'a str, (String, String)> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text),
        None => Err(wrong(field, "is missing; expected a text")),
        Some(_) => Err(wrong(field, "expected a text")),
    }
}

fn wrong(field: &str, what: &str) -> (String, String) {
    (field.to_owned(), what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellaswag_rows_are_cleaned_once() {
        let row = json!({"activity_label": "Trim", "ctx_a": "A  [x] b", "ctx_b": "he Says    so",
            "endings": ["c [title] D  [y]", " e"], "label": "1"});
        let made = RowFunction::Hellaswag.call(&row).unwrap();
        assert_eq!(made["query"], "Trim: A  b He says  so", "one pass over double spaces");
        assert_eq!(made["choices"], json!(["c. D ", "e"]));
        assert_eq!(made["gold"], 1);
        let missing = RowFunction::Hellaswag.call(&json!({"activity_label": "x"}));
        assert_eq!(missing.unwrap_err().0, "ctx_a");
    }

    #[test]
    fn winogrande_has_two_contexts_and_one_continuation() {
        let row = json!({"sentence": "Ann beat Bob, so _ won. ", "option1": "Ann", "option2": "Bob",
            "answer": "2"});
        assert_eq!(RowFunction::WinograndeText.call(&row).unwrap(), 1);
        assert_eq!(RowFunction::WinograndeTarget.call(&row).unwrap(), "won.");
        let choices = RowFunction::WinograndeChoice.call(&row).unwrap();
        assert_eq!(choices, json!(["Ann beat Bob, so Ann", "Ann beat Bob, so Bob"]));
        let bad = json!({"sentence": "no blank", "answer": ""});
        assert_eq!(RowFunction::WinograndeText.call(&bad).unwrap_err().0, "answer");
        assert_eq!(RowFunction::WinograndeTarget.call(&bad).unwrap_err().0, "sentence");
    }

    /// The text of the harness's own function.
    #[test]
    fn wikitext_pages_are_written_as_they_were() {
        let page = " = Title = \n It 's 1 @,@ 000 N km ( a b ) , \" so \" : [ x ] ; dogs ' own . = = S = = \n";
        let plain = " = Title =\nIt's 1,000 1 km (a b), \"so\": [x]; dogs' own. == S ==\n";
        assert_eq!(wikitext(page), plain);
        let scores = ResultsFunction::Wikitext.call(&json!({"page": "a b"}), &[-2.0]).unwrap();
        assert_eq!(scores[0], ("word_perplexity".to_owned(), MetricValue::Weighted(-2.0, 2.0)));
    }

    #[test]
    fn generated_texts_are_scored_by_what_their_rows_ask_for() {
        let row = RowFunction::Math.call(&json!({"solution": "so \\boxed{\\frac12}"})).unwrap();
        let score = |text| ResultsFunction::Math.of_text(&row, text, None).unwrap();
        assert_eq!(score("It is $1/2$."), numbers([("exact_match", 1.0)]));
        assert_eq!(score("1"), numbers([("exact_match", 0.0)]));
        assert_eq!(RowFunction::Math.call(&json!({"solution": "2"})).unwrap_err().0, "solution");
        let row = json!({"answers": [["5"], ["Ann", "Bob"]]});
        let found = ResultsFunction::Drop.of_text(&row, "the 5", None).unwrap();
        assert_eq!(found, numbers([("em", 1.0), ("f1", 1.0)]));
        let row = json!({"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]});
        let found = ResultsFunction::Instructions.of_text(&row, "a b", None).unwrap();
        assert_eq!(found[0].1, MetricValue::Number(0.0));
        assert_eq!(found[1], ("inst_level_strict_acc".to_owned(), MetricValue::Weighted(1.0, 2.0)));
        let row = json!({"prompt": "def f():\n", "test": "def check(f): assert f() == 1", "entry_point": "f"});
        assert!(ResultsFunction::Programs.of_text(&row, "    return 1", None).is_err());
        if let Ok(code) = CodeRunner::new("python3".as_ref()) {
            let score = |text| ResultsFunction::Programs.of_text(&row, text, Some(&code)).unwrap();
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
}
