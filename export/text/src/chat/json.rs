//! The filter `tojson` as `transformers` has it: `json.dumps` of Python.

use std::fmt::Write;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, Value};

use super::arguments::{Arguments, invalid};
use super::repr::float;

/// Deeper values are refused; a template cannot make one that is also useful.
const MAX_DEPTH: usize = 200;

/// How JSON is written.
struct Style {
    ensure_ascii: bool,
    /// Of one level; `None` for one line.
    indent: Option<String>,
    between_items: String,
    behind_key: String,
    sort_keys: bool,
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::of_filter(arguments)?;
    let ensure_ascii = arguments.flag("ensure_ascii")?;
    let indent = arguments.next("indent")?.map(|it| indent_of(&it)).transpose()?;
    let (between_items, behind_key) = match arguments.next("separators")? {
        Some(pair) => (text_at(&pair, 0)?, text_at(&pair, 1)?),
        // Lines end in no space.
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = arguments.flag("sort_keys")?;
    arguments.end()?;
    let style = Style { ensure_ascii, indent, between_items, behind_key, sort_keys };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(out)
}

/// A number of spaces, or a text.
fn indent_of(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let width = i64::try_from(value.clone())?;
    Ok(" ".repeat(usize::try_from(width).unwrap_or(0).min(16)))
}

fn text_at(pair: &Value, at: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(at)?;
    text.as_str().map(str::to_owned).ok_or_else(|| invalid("separators: expected two texts"))
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("nested too deeply"));
        }
        match value.kind() {
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(out, ('[', ']'), depth, items.len(), |out, at| {
                    self.write(out, &items[at], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let entries = self.entries(value)?;
                self.list(out, ('{', '}'), depth, entries.len(), |out, at| {
                    let (key, value) = &entries[at];
                    self.text(out, key);
                    *out += &self.behind_key;
                    self.write(out, value, depth + 1)
                })?;
            }
            _ => *out += &scalar(value)?,
        }
        Ok(())
    }

    /// The keys as text, with their values.
    fn entries(&self, value: &Value) -> Result<Vec<(String, Value)>, Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let item = value.get_item(&key)?;
            entries
                .push((key.as_str().map_or_else(|| scalar(&key), |it| Ok(it.to_owned()))?, item));
        }
        if self.sort_keys {
            entries.sort_by(|one, other| one.0.cmp(&other.0));
        }
        Ok(entries)
    }

    /// Brackets around `count` items, each on a line where there is an indent.
    fn list(
        &self,
        out: &mut String,
        (open, close): (char, char),
        depth: usize,
        count: usize,
        mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for at in 0..count {
            if at > 0 {
                *out += &self.between_items;
            }
            self.new_line(out, depth + 1);
            item(out, at)?;
        }
        if count > 0 {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| *out += indent);
        }
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => *out += "\\\"",
                '\\' => *out += "\\\\",
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\u{8}' => *out += "\\b",
                '\u{c}' => *out += "\\f",
                '\0'..='\u{1f}' => escaped(out, letter),
                _ if self.ensure_ascii && letter > '~' && !is_private(letter) => {
                    escaped(out, letter);
                }
                _ => out.push(letter),
            }
        }
        out.push('"');
    }
}

/// `marks` encloses texts in such characters and looks for them later.
fn is_private(letter: char) -> bool {
    letter >= '\u{f0000}'
}

/// As one or two units of UTF-16.
fn escaped(out: &mut String, letter: char) {
    for unit in letter.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// What is neither text nor a list.
fn scalar(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            number if number.is_nan() => "NaN".to_owned(),
            number if number.is_infinite() => {
                if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
            }
            number => float(number),
        },
        kind => return Err(invalid(format!("a value of kind {kind} is no JSON"))),
    })
}
