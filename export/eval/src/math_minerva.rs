//! Answers of the Minerva form of the MATH sets (`minerva_math/utils.py`): what an answer says last,
//! without units and words, and whether two are equal. The replacements are the harness's; equality
//! is our own algebra where the harness asks SymPy and Math-Verify.

use fancy_regex::{Captures, Regex};

use crate::math_answers::boxed;
use crate::math_value::{MathValue, are_same, formula, value};

const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];
/// Units and words, and signs that say nothing.
const REMOVED: [&str; 41] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    "\"",
];
/// Replacements of LaTeX, in their order; `$` stands for a group of the pattern.
const REWRITTEN: [(&str, &str); 8] = [
    (r"(.*?)(\$)(.*?)(\$)(.*)", "$$${3}$$"),
    (r"(\\text\{)(.*?)(\})", "${2}"),
    (r"(\\textbf\{)(.*?)(\})", "${2}"),
    (r"(\\overline\{)(.*?)(\})", "${2}"),
    (r"(\\boxed\{)(.*)(\})", "${2}"),
    (r"(frac)([^{])(.)", "frac{${2}}{${3}}"),
    (r"(sqrt)(\[[^\]]*\])(\w)", "${1}${2}{${3}}"),
    (r"(sqrt)(?!\[)([^{])", "sqrt{${2}}"),
];
/// What an answer says without a final one.
const INVALID: &str = "[invalidanswer]";

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a valid pattern")
}

/// `normalize_final_answer`
pub(crate) fn normalised(answer: &str) -> String {
    let last = answer.rsplit('=').next().unwrap_or_default();
    let is_word = |text: &&&str| text.bytes().all(|it| it.is_ascii_alphabetic());
    let words: Vec<&str> = REMOVED.iter().filter(is_word).copied().collect();
    let apart = regex(&format!(r"(?<!\\)\b(?:{})\b", words.join("|")));
    let text = apart.replace_all(last, "").into_owned();
    let text = SUBSTITUTIONS.iter().fold(text, |text, (from, to)| text.replace(from, to));
    let removed = REMOVED.iter().chain([&"\\dots"]).fold(text, |text, part| {
        if is_word(&part) { outside_commands(&text, part) } else { text.replace(part, "") }
    });
    let rewrite = |text: String, (pattern, with): &(&str, &str)| {
        regex(pattern).replace_all(&text, *with).into_owned()
    };
    let text = REWRITTEN.iter().fold(removed, rewrite).replace('$', "");
    // Thousands, and no point of two numbers.
    let thousands = regex(r"\A-?\d{1,3}(,\d{3})+\z").is_match(&text).unwrap_or(false);
    if thousands { text.replace(',', "") } else { text }
}

/// A unit goes where it is no part of a command: `ft` stays in `\left`.
fn outside_commands(text: &str, unit: &str) -> String {
    let pattern = regex(&format!(r"(\\[a-zA-Z]+)|{unit}"));
    let kept = |found: &Captures| found.get(1).map_or("", |it| it.as_str()).to_owned();
    pattern.replace_all(text, kept).into_owned()
}

/// `get_unnormalized_answer`
pub(crate) fn said(text: &str) -> String {
    let text = format!("{text}I hope it is correct.");
    let pattern = regex(r"Final Answer: The final answer is(.*?). I hope it is correct.");
    let found = pattern.captures(&text).ok().flatten();
    let answer = found.and_then(|it| Some(crate::python::strip(it.get(1)?.as_str()).to_owned()));
    answer.unwrap_or_else(|| INVALID.to_owned())
}

/// Whether two normalised answers are one text or one formula.
pub(crate) fn is_exact(a: &str, b: &str) -> bool {
    let same = || formula(a)?.is_same(&formula(b)?);
    (!a.is_empty() && a == b) || same() == Some(true)
}

/// Whether an answer holds the value that a solution ends with.
pub(crate) fn is_verified(solution: &str, answer: &str) -> bool {
    let both = last_value(solution).zip(last_value(answer));
    both.is_some_and(|(right, said)| are_same(&right, &said))
}

/// The value that a text answers: after "final answer is", in the last box, in the last formula,
/// or the last number.
fn last_value(text: &str) -> Option<MathValue> {
    let last = |pattern: &str| {
        let found = regex(pattern).captures_iter(text).filter_map(Result::ok).last()?;
        Some(found.iter().skip(1).flatten().next()?.as_str().to_owned())
    };
    let formula = r"\$\$([\s\S]+?)\$\$|\$([^$]+?)\$|\\\(([\s\S]+?)\\\)|\\\[([\s\S]+?)\\\]";
    let after = format!(r"(?i:final answer is)[:\s]*(?:{formula})");
    let number = r"(-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?)";
    let all = [last(&after), boxed(text), last(formula), last(number)];
    all.into_iter().flatten().find_map(|found| value(&boxed(&found).unwrap_or(found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What the harness's functions, SymPy and Math-Verify say about these
    /// (`scripts/eval_golden.py`).
    #[test]
    fn answers_are_those_of_the_harness() {
        let cases: Value = serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        let all = |key: &str| cases[key].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for case in all("minerva_normal") {
            assert_eq!(normalised(&text(&case[0])), text(&case[1]), "{case}");
        }
        for case in all("minerva_said") {
            assert_eq!(said(&text(&case[0])), text(&case[1]), "{case}");
        }
        let mut other = Vec::new();
        for case in all("minerva_exact") {
            let found = is_exact(&text(&case[0]), &text(&case[1]));
            other.extend((case[2] != found).then(|| case.to_string()));
        }
        for case in all("minerva_verify") {
            let found = is_verified(&text(&case[0]), &text(&case[1]));
            other.extend((case[2] != found).then(|| case.to_string()));
        }
        assert!(other.is_empty(), "{}", other.join("\n"));
    }
}
