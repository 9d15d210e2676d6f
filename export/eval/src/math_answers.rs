//! Answers of the MATH sets: the last box of a solution, and equality after the harness's
//! replacements (`hendrycks_math/utils.py`). Only texts are compared; nothing is simplified.

use crate::python;

/// What stands in the last `\boxed` or `\fbox` of a solution, as the harness cuts it out.
pub(crate) fn boxed(solution: &str) -> Option<String> {
    if let Some((_, after)) = solution.rsplit_once("\\boxed ") {
        return Some(after.split('$').next().unwrap_or_default().to_owned());
    }
    // An `\fbox` is found but not opened, as in the harness, where `remove_boxed` asserts
    // `\boxed{`.
    let begin = solution.rfind("\\boxed").or_else(|| solution.rfind("\\fbox"))?;
    let mut open = 0;
    for (at, letter) in solution[begin..].char_indices() {
        open += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == '}' && open == 0 {
            let inner = solution[begin..begin + at].strip_prefix("\\boxed{");
            return inner.map(str::to_owned);
        }
    }
    None
}

/// What a text answers: all between its first and its last dollar sign, or all of it.
pub(crate) fn asked(text: &str) -> &str {
    match (text.find('$'), text.rfind('$')) {
        (Some(first), Some(last)) if first < last => &text[first + 1..last],
        _ => text,
    }
}

/// Whether two answers are the same after the replacements; where one cannot be replaced, as they
/// are.
pub(crate) fn equal(a: &str, b: &str) -> bool {
    match (normalised(a), normalised(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// `strip_string`; `None` where that fails.
fn normalised(text: &str) -> Option<String> {
    let removed = ["\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"];
    // The order of `strip_string`; each replacement may make what a later one looks for.
    let text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    let text = text.replace("tfrac", "frac").replace("dfrac", "frac");
    let text = removed.iter().fold(text, |text, part| text.replace(part, ""));
    let text = without_units(&text)?.replace("\\%", "");
    let mut text = text.replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    let text = fix_roots(without_name(&text))?.replace(' ', "");
    let text = fix_fractions(&text)?;
    fix_slash(if text == "0.5" { "\\frac{1}{2}" } else { &text })
}

/// A unit stands after `\text{ `.
fn without_units(text: &str) -> Option<&str> {
    let mut parts = text.split("\\text{ ");
    let first = parts.next()?;
    (parts.count() <= 1).then_some(first)
}

/// `k = 3` is 3.
fn without_name(text: &str) -> &str {
    match text.split_once('=') {
        Some((name, value)) if !value.contains('=') && name.chars().count() <= 2 => value,
        _ => text,
    }
}

/// `\sqrt3` → `\sqrt{3}`
fn fix_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut made = parts.next()?.to_owned();
    for part in parts {
        made += "\\sqrt";
        // `None`, here and below: Python raises an error, and the harness compares the texts as
        // they are.
        match part.chars().next()? {
            '{' => made += part,
            first => made.extend(["{", &first.to_string(), "}", &part[first.len_utf8()..]]),
        }
    }
    Some(made)
}

/// `\frac12` → `\frac{1}{2}`, `\frac1{72}` → `\frac{1}{72}`
fn fix_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut made = parts.next()?.to_owned();
    for part in parts {
        made += "\\frac";
        let mut letters = part.chars();
        let first = letters.next()?;
        if first == '{' {
            made += part;
            continue;
        }
        // An assertion that the harness catches on the spot: the text stays, without an error.
        let Some(second) = letters.next() else { return Some(text.to_owned()) };
        let second = if second == '{' { "{".to_owned() } else { format!("{{{second}}}") };
        made.extend(["{", &first.to_string(), "}", &second, letters.as_str()]);
    }
    Some(made)
}

/// `1/2` → `\frac{1}{2}` where both are whole numbers as Python writes them.
fn fix_slash(text: &str) -> Option<String> {
    match text.split('/').collect::<Vec<_>>()[..] {
        // `int()` raises; only the assertion after it, that Python writes the numbers like this, is
        // caught there.
        [a, b] if !python::is_int(a) || !python::is_int(b) => None,
        [a, b] if is_written(a) && is_written(b) => Some(format!("\\frac{{{a}}}{{{b}}}")),
        _ => Some(text.to_owned()),
    }
}

/// Whether Python writes a number like this: no plus, no zeros before it.
fn is_written(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    let plain = !digits.starts_with('0') || number == "0";
    plain && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the harness's functions return for these (`scripts/eval_golden.py`).
    #[test]
    fn answers_are_those_of_the_harness() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        for case in cases["math_equal"].as_array().unwrap() {
            let (a, b) = (text(&case[0]), text(&case[1]));
            assert_eq!(equal(&a, &b), case[2].as_bool().unwrap(), "{a:?} {b:?}");
        }
        for case in cases["math_boxed"].as_array().unwrap() {
            assert_eq!(boxed(&text(&case[0])).as_deref(), case[1].as_str(), "{}", case[0]);
        }
        for case in cases["math_asked"].as_array().unwrap() {
            assert_eq!(asked(&text(&case[0])), text(&case[1]));
        }
    }
}
