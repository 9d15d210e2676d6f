//! What Python's `str` does and Rust's does otherwise: the harness's scores depend on it.

/// The characters that `string.punctuation` holds.
pub(crate) const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// `str.isspace` of one character: Unicode whitespace and four ASCII separators.
pub(crate) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

/// `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.isupper()`: letters that have a case, and all of them upper case.
pub(crate) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// `str.islower()`.
pub(crate) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// `str.capitalize()`: the first character as in a title, all others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    // Lower case depends on the whole word (the final sigma), so the rest is cut from that.
    let lower = text.to_lowercase();
    let skipped = first.to_lowercase().count();
    title(first) + &lower.chars().skip(skipped).collect::<String>()
}

/// A character in title case: its upper case, except for digraphs and what becomes several letters.
fn title(letter: char) -> String {
    match letter {
        '\u{1c4}'..='\u{1c6}' => '\u{1c5}'.into(),
        '\u{1c7}'..='\u{1c9}' => '\u{1c8}'.into(),
        '\u{1ca}'..='\u{1cc}' => '\u{1cb}'.into(),
        '\u{1f1}'..='\u{1f3}' => '\u{1f2}'.into(),
        // Georgian has no title case; Greek letters with a written iota have one of their own.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => letter.into(),
        '\u{1f80}'..='\u{1faf}' => char::from_u32(letter as u32 | 8).unwrap_or(letter).into(),
        'ŉ' => "ʼN".to_owned(),
        '\u{1fb3}' | '\u{1fbc}' => '\u{1fbc}'.into(),
        '\u{1fc3}' | '\u{1fcc}' => '\u{1fcc}'.into(),
        '\u{1ff3}' | '\u{1ffc}' => '\u{1ffc}'.into(),
        '\u{1fb2}' | '\u{1fb4}' | '\u{1fb7}' | '\u{1fc2}' | '\u{1fc4}' | '\u{1fc7}'
        | '\u{1ff2}' | '\u{1ff4}' | '\u{1ff7}' => with_small_iota(letter),
        _ => several(letter),
    }
}

/// The iota becomes a mark below, as in title case.
fn with_small_iota(letter: char) -> String {
    letter.to_uppercase().map(|part| if part == '\u{399}' { '\u{345}' } else { part }).collect()
}

/// The upper case; of several letters only the first stays large.
fn several(letter: char) -> String {
    let mut parts = letter.to_uppercase();
    let first = parts.next().unwrap_or(letter);
    let rest: String = parts.flat_map(char::to_lowercase).collect();
    format!("{first}{rest}")
}

/// `len(re.split(r"\s+", text))`.
pub(crate) fn count_words(text: &str) -> usize {
    let (mut words, mut inside) = (1, false);
    for letter in text.chars() {
        words += usize::from(is_space(letter) && !inside);
        inside = is_space(letter);
    }
    words
}

/// Whether `int(text)` is a number.
pub(crate) fn is_int(text: &str) -> bool {
    let digits = strip(text).trim_start_matches(['+', '-']);
    let signs = strip(text).len() - digits.len();
    let whole = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    signs <= 1 && digits.split('_').all(whole)
}

/// `float(text)`, where that is a number.
pub(crate) fn float(text: &str) -> Option<f64> {
    let text = strip(text);
    let between_digits = |(at, _): (usize, &str)| {
        let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
        at > 0 && digit(text.as_bytes().get(at - 1)) && digit(text.as_bytes().get(at + 1))
    };
    if !text.match_indices('_').all(between_digits) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `str(number)`.
pub(crate) fn float_text(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string().to_lowercase();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("an exponent");
    let exponent: i32 = exponent.parse().expect("a number");
    match exponent {
        -4..16 if number.fract() == 0.0 => format!("{number:.1}"),
        -4..16 => number.to_string(),
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// Index of the largest value as `numpy.argmax` finds it: the first of equals.
pub(crate) fn argmax(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitalize_lowers_what_follows_as_python_does() {
        for (text, expected) in [
            ("", ""),
            ("he Puts IT", "He puts it"),
            (" He", " he"),
            ("ßa", "Ssa"),
            ("ǆA", "ǅa"),
            ("ﬁSH", "Fish"),
            ("ΑΣ", "Ας"),
            ("İx", "İx"),
            ("ŉA", "ʼNa"),
            ("ᾳA", "ᾼa"),
        ] {
            assert_eq!(capitalize(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_read_and_written_as_python_does() {
        for (text, written) in [
            ("5", "5.0"),
            (" -2.50", "-2.5"),
            ("1_000", "1000.0"),
            ("1e16", "1e+16"),
            ("123456789012345678", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("Infinity", "inf"),
            ("-inf", "-inf"),
            ("nan", "nan"),
        ] {
            assert_eq!(float_text(float(text).unwrap()), written, "{text}");
        }
        for text in ["", "a", "1__0", "_1", "1_", "1,5", "0x1"] {
            assert_eq!(float(text), None, "{text}");
        }
        assert!(is_int("12") && is_int("+1_0") && is_int(" -7"));
        assert!(!is_int("") && !is_int("--1") && !is_int("1.0") && !is_int("1__0"));
    }

    #[test]
    fn spaces_and_words_are_pythons() {
        assert_eq!(strip("\u{1c}\u{a0} a\u{200b}\n"), "a\u{200b}");
        assert_eq!(count_words("a b\n\nc"), 3);
        assert_eq!(count_words(" a "), 3, "the empty strings at both ends count");
        assert_eq!(argmax([1.0, 3.0, 3.0]), 1);
    }
}
