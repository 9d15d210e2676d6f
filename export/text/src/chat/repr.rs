//! Values as Python writes them: `str` of what a template puts out, `repr` of what stands in a list.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::ValueKind;

/// Nested deeper, values are written as `...`.
const MAX_DEPTH: usize = 200;

/// `str(value)`.
pub(super) fn str_of(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    let mut out = String::new();
    repr(&mut out, value, 0);
    out
}

/// `repr(value)` behind `out`.
fn repr(out: &mut String, value: &Value, depth: usize) {
    match value.kind() {
        _ if depth > MAX_DEPTH => *out += "...",
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            *out += &f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float);
        }
        ValueKind::Seq => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let count = items(out, value, |out, item| repr(out, item, depth + 1));
            if is_tuple && count == 1 {
                out.push(',');
            }
            out.push(if is_tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            items(out, value, |out, key| {
                repr(out, key, depth + 1);
                *out += ": ";
                repr(out, &value.get_item(key).unwrap_or_default(), depth + 1);
            });
            out.push('}');
        }
        // Objects that only the engine knows.
        _ => drop(write!(out, "{value}")),
    }
}

/// Each item behind a comma; returns how many there are.
fn items(out: &mut String, value: &Value, mut each: impl FnMut(&mut String, &Value)) -> usize {
    let mut count = 0;
    for item in value.try_iter().into_iter().flatten() {
        if count > 0 {
            *out += ", ";
        }
        each(out, &item);
        count += 1;
    }
    count
}

/// The shortest decimal that is this number again; with an exponent from 1e16 on and below 1e-4.
pub(super) fn float(number: f64) -> String {
    let text = match number {
        _ if number.is_nan() => return "nan".to_owned(),
        _ if number.is_infinite() => return if number > 0.0 { "inf" } else { "-inf" }.to_owned(),
        _ => format!("{number:?}"),
    };
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |it| ('-', it));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// In single quotes, unless only those are in it.
fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            '\\' => *out += "\\\\",
            _ if letter == quote => {
                out.push('\\');
                out.push(letter);
            }
            _ if is_printable(letter) => out.push(letter),
            _ => escaped(out, letter),
        }
    }
    out.push(quote);
}

fn escaped(out: &mut String, letter: char) {
    let code = u32::from(letter);
    let _ = match code {
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// Whether `str.isprintable` holds: no control sign, no format sign, no space but the plain one.
/// Those that `marks` puts into texts count as printable.
pub(super) fn is_printable(letter: char) -> bool {
    let is_format = matches!(
        letter,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    let is_private = matches!(letter, '\u{e000}'..='\u{f8ff}');
    letter == ' ' || !(letter.is_control() || letter.is_whitespace() || is_format || is_private)
}
