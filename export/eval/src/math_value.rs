//! Answers in LaTeX as values: numbers and formulas, points and intervals, sets, matrices, words.

use crate::math_algebra::Algebraic;
use crate::math_formula::{MAX_DEPTH, read};

/// Letters of the longest answer that is read.
const MAX_LENGTH: usize = 2000;
/// What an answer stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MathValue {
    Number(Algebraic),
    /// With its brackets: `(1,2)`, `[0,\infty)`.
    Ordered(char, Vec<Self>, char),
    /// In any order.
    Set(Vec<Self>),
    Matrix(Vec<Vec<Self>>),
    /// Both sides of an equation, as what is 0.
    Equation(Algebraic),
    /// Letters that are no formula.
    Words(String),
}

/// Whether two answers are equal. A decimal number equals another value that is the same to six
/// places.
pub(crate) fn are_same(a: &MathValue, b: &MathValue) -> bool {
    use MathValue::{Equation, Matrix, Number, Ordered, Set, Words};
    let all = |a: &[MathValue], b: &[MathValue]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| are_same(a, b))
    };
    match (a, b) {
        (Number(a), Number(b)) => a.is_same(b) == Some(true) || are_near(a, b),
        (Ordered(open, a, close), Ordered(other_open, b, other_close)) => {
            open == other_open && close == other_close && all(a, b)
        }
        (Set(a), Set(b)) => {
            let holds = |set: &[MathValue], one| set.iter().any(|it| are_same(it, one));
            a.len() == b.len() && a.iter().all(|it| holds(b, it)) && b.iter().all(|it| holds(a, it))
        }
        (Matrix(a), Matrix(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| all(a, b)),
        // `2x = 4y` is `x = 2y`: one is a multiple of the other.
        (Equation(a), Equation(b)) => a.is_multiple(b) == Some(true),
        (Words(a), Words(b)) => a == b,
        _ => false,
    }
}

fn are_near(a: &Algebraic, b: &Algebraic) -> bool {
    let rounded = |it: &Algebraic| it.decimal().map(|it| (it * 1e6).round());
    rounded(a).is_some_and(|a| a.is_finite() && Some(a) == rounded(b))
}

/// The value of an answer; `None` where it is none that is known here.
pub(crate) fn value(text: &str) -> Option<MathValue> {
    (text.len() <= MAX_LENGTH).then_some(())?;
    let plain = plain(text);
    if let Some(words) = words(&plain) {
        return Some(MathValue::Words(words));
    }
    whole(&without_units(&plain), 0)
}

/// A formula alone.
pub(crate) fn formula(text: &str) -> Option<Algebraic> {
    (text.len() <= MAX_LENGTH).then_some(())?;
    read(&plain(text), false)
}

/// Without what only looks different.
fn plain(text: &str) -> String {
    let same = [
        // The end of a row, before its second backslash is taken for one that begins a sign.
        ("\n", " "),
        ("\\\\", "\n"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\!", ""),
        ("\\,", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("~", " "),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("\\div", "/"),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
        ("\\%", "%"),
        ("{,}", ","),
        ("\\displaystyle", ""),
        ("−", "-"),
        ("\\lbrace", "\\{"),
        ("\\rbrace", "\\}"),
        ("\\mathrm", "\\text"),
        ("\\textbf", "\\text"),
        ("\\mbox", "\\text"),
        ("\\operatorname", "\\text"),
        ("$", ""),
        ("\\text{ and }", ","),
        ("\\text{ or }", ","),
    ];
    let text = same.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    text.trim().trim_end_matches('.').trim().to_owned()
}

/// The letters of an answer that is one `\text{…}`; shares in per cent and inequalities are compared
/// as they are written.
fn words(text: &str) -> Option<String> {
    if ["%", "<", ">", "\\le", "\\ge", "\\lt", "\\gt"].iter().any(|sign| text.contains(sign)) {
        return Some(text.replace(' ', ""));
    }
    let inner = text.strip_prefix("\\text{")?.strip_suffix('}')?;
    (!inner.contains(['{', '}'])).then(|| inner.trim().trim_matches(['(', ')']).to_lowercase())
}

/// Text beside a formula is a unit.
fn without_units(text: &str) -> String {
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("\\text") {
        made += before;
        let after = after.trim_start();
        // `\text{cm}^2` is the unit with its power.
        let unit = after.strip_prefix('{').and_then(|it| it.split_once('}'));
        let left = unit.map_or(after, |(_, left)| left);
        rest = left.strip_prefix("^2").or(left.strip_prefix("^3")).unwrap_or(left);
    }
    made + rest
}

/// The parts of a text between signs that stand in no bracket.
fn split(text: &str, at: &str) -> Option<Vec<String>> {
    let (mut depth, mut parts, mut from) = (0i32, Vec::new(), 0);
    for (place, letter) in text.char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ if depth == 0 && place >= from && text[place..].starts_with(at) => {
                parts.push(text[from..place].to_owned());
                from = place + at.len();
            }
            _ => {}
        }
    }
    parts.push(text[from..].to_owned());
    (depth == 0).then_some(parts)
}

fn whole(text: &str, depth: usize) -> Option<MathValue> {
    (depth < MAX_DEPTH).then_some(())?;
    let text = text.trim();
    let all = |parts: Vec<String>| -> Option<Vec<MathValue>> {
        parts.iter().map(|part| whole(part, depth + 1)).collect()
    };
    if let Some((_, set)) = text.split_once("\\in ") {
        return whole(set, depth + 1);
    }
    if text.contains("\\cup") {
        return Some(MathValue::Set(all(text.split("\\cup").map(str::to_owned).collect())?));
    }
    if let Some(inner) = text.strip_prefix("\\{").and_then(|it| it.strip_suffix("\\}")) {
        return Some(MathValue::Set(all(split(inner, ",")?)?));
    }
    if text.starts_with("\\begin{") {
        return matrix(text, depth);
    }
    if let Some(number) = grouped(text) {
        return Some(MathValue::Number(number));
    }
    let parts = split_half_open(text);
    if let Some((open, parts, close)) = parts {
        return Some(MathValue::Ordered(open, all(parts)?, close));
    }
    let listed = split(text, ",")?;
    if listed.len() > 1 {
        return Some(MathValue::Set(all(listed)?));
    }
    if text.contains('=') {
        return equation(text, depth);
    }
    let signs = split(text, "\\pm")?;
    if let [before, after] = &signs[..] {
        let both = [format!("{before}+{after}"), format!("{before}-({after})")];
        return Some(MathValue::Set(all(both.to_vec())?));
    }
    read(text, true).map(MathValue::Number)
}

/// A point or an interval: at least two parts in one pair of brackets, which may be of two kinds.
fn split_half_open(text: &str) -> Option<(char, Vec<String>, char)> {
    let open = text.chars().next().filter(|it| "([".contains(*it))?;
    let close = text.chars().last().filter(|it| ")]".contains(*it))?;
    let inner = text.get(1..text.len() - 1)?;
    let parts = split(inner, ",").filter(|parts| parts.len() > 1)?;
    // `(1,2),(3,4)` begins and ends with brackets that do not belong together.
    let balanced = parts.iter().all(|part| split(part, ",").is_some());
    balanced.then_some((open, parts, close))
}

/// `\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}`
fn matrix(text: &str, depth: usize) -> Option<MathValue> {
    let (kind, rest) = text.strip_prefix("\\begin{")?.split_once('}')?;
    let inner = rest.trim_end().strip_suffix(&format!("\\end{{{kind}}}"))?;
    kind.ends_with("matrix").then_some(())?;
    let row = |row: &str| row.split('&').map(|cell| whole(cell, depth + 1)).collect();
    let rows = inner.split('\n').filter(|row| !row.trim().is_empty()).map(row);
    rows.collect::<Option<Vec<_>>>().map(MathValue::Matrix)
}

/// `1,000,000`
fn grouped(text: &str) -> Option<Algebraic> {
    let mut groups = text.strip_prefix('-').unwrap_or(text).split(',');
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let fits = digits(first) && first.len() <= 3 && !rest.is_empty();
    (fits && rest.iter().all(|it| it.len() == 3 && digits(it))).then_some(())?;
    formula(&text.replace(',', ""))
}

/// `x = 5` is 5; any other equation is itself.
fn equation(text: &str, depth: usize) -> Option<MathValue> {
    let (left, right) = text.split_once('=').filter(|(_, right)| !right.contains('='))?;
    let name = left.trim().trim_end_matches(|it: char| it.is_ascii_digit() || "_{}".contains(it));
    let is_name = name.chars().count() == 1 || name.ends_with("(x)") || name.ends_with("(n)");
    if is_name {
        return whole(right, depth + 1);
    }
    read(left, true)?.minus(&read(right, true)?).map(MathValue::Equation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        are_same(&value(a).unwrap(), &value(b).unwrap())
    }

    #[test]
    fn forms_of_one_answer_are_the_same() {
        for (a, b) in [
            ("\\left( 3, \\dfrac{\\pi}{2} \\right)", "(3,0.5\\pi)"),
            ("[-2, 7)", "\\left[-2,7\\right)"),
            ("\\{1, 2, 3\\}", "3,1,2"),
            ("x \\in [0, 1]", "[0,1]"),
            ("2x = 4y", "x - 2y = 0"),
            ("1\\frac34", "\\frac{7}{4}"),
            ("12\\text{ cm}^2", "12"),
            ("1{,}000{,}000", "10^6"),
            ("\\text{Monday}", "\\text{monday}"),
            ("a_1 + a_{2}", "a_2+a_1"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn other_answers_are_not() {
        for (a, b) in [
            ("(1,2)", "(2,1)"),
            ("(1,2)", "[1,2]"),
            ("\\{1,2\\}", "\\{1,2,3\\}"),
            ("2x = 4y", "x = y"),
            ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\end{pmatrix}"),
            ("\\text{A}", "\\text{B}"),
            ("10\\%", "0.1"),
            ("\\infty", "-\\infty"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn what_is_no_answer_has_no_value() {
        for text in ["", "(1", "\\frac{1}", "1/0", "x = y = z", "\\unknown{3}", "3..5", "\\sqrt"] {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&"(".repeat(1000)), None);
        assert_eq!(value(&format!("{}1{}", "(".repeat(900), ")".repeat(900))), None);
    }
}
