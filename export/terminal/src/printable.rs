//! Text of files, models and command lines on its way to a terminal.
//!
//! A control character could colour the terminal, move its cursor or write its clipboard, and a
//! change of the writing direction could show a name as another. Both are shown as escapes.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with every control character but line feed and tab as an escape such as `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_harmful(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// A JSON text with the same characters as JSON's own escapes, for every reader the same value.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_harmful) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_harmful(character) {
            // All of them are below U+10000; JSON writes those with four digits.
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

fn is_harmful(character: char) -> bool {
    let changes_direction = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    changes_direction || character.is_control() && !matches!(character, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_escapes_and_text_stays() {
        for text in ["", "plain", "two\nlines\tand a tab", "é 漢 🙂 \u{a0}"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable("a\u{1b}[31mb\u{7}"), "a\\u{1b}[31mb\\u{7}");
        assert_eq!(printable("a\rb\u{9b}2J\u{202e}c\0"), "a\\rb\\u{9b}2J\\u{202e}c\\u{0}");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"a\u{202e}": "b\u{9b}2J\u{7f}\u{1b}c"});
        let text = value.to_string();
        let safe = printable_json(&text);
        assert!(!safe.contains(is_harmful), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    proptest::proptest! {
        #[test]
        fn nothing_harmful_is_left(text: String) {
            let safe = printable(&text);
            proptest::prop_assert!(!safe.contains(is_harmful));
        }
    }
}
