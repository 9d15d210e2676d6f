//! Placeholders that stand for message contents while a template renders, and finding them again
//! in its output. `jinja` runs the template, `to_tokens` encodes the result.

use super::message::Role;

/// Both are private-use characters, which templates have no reason to write.
const OPEN: char = '\u{f0000}';
const CLOSE: char = '\u{f0001}';

/// A part of rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RenderedPart<'a> {
    /// Text of the template; never empty.
    Literal(&'a str),
    /// The content of the message with this index.
    Content(usize),
}

/// Stands for the content of message `index`. Its letters of both cases, quote and angle bracket
/// reveal a template that rewrites contents (`lower`, `tojson`, `escape`).
pub(super) fn placeholder(index: usize) -> String {
    format!("{OPEN}aB\"<{index}{CLOSE}")
}

/// Splits a rendered conversation, which must contain each placeholder once and in order.
pub(super) fn split_at_placeholders<'a>(
    rendered: &'a str,
    roles: &[Role],
) -> Result<Vec<RenderedPart<'a>>, String> {
    let mut pieces = Vec::with_capacity(2 * roles.len() + 1);
    let mut rest = rendered;
    for index in 0..roles.len() {
        let (literal, tail) = rest.split_at(next_mark(rest));
        let placeholder = placeholder(index);
        let Some(after) = tail.strip_prefix(&placeholder) else {
            return Err(complaint(rendered, tail, index, roles));
        };
        pieces.push(RenderedPart::Literal(literal));
        pieces.push(RenderedPart::Content(index));
        rest = after;
    }
    let (literal, tail) = rest.split_at(next_mark(rest));
    if !tail.is_empty() {
        return Err(complaint(rendered, tail, roles.len(), roles));
    }
    pieces.push(RenderedPart::Literal(literal));
    pieces.retain(|piece| *piece != RenderedPart::Literal(""));
    Ok(pieces)
}

fn next_mark(text: &str) -> usize {
    text.find([OPEN, CLOSE]).unwrap_or(text.len())
}

/// Why `tail` does not begin with the placeholder that is due.
fn complaint(rendered: &str, tail: &str, due: usize, roles: &[Role]) -> String {
    let named = |index: usize| format!("messages.{index} ({})", roles[index].name());
    let found = (0..roles.len()).find(|index| tail.starts_with(&placeholder(*index)));
    let (index, what) = match found {
        Some(index) if index < due => (index, "rendered twice"),
        _ if due == roles.len() => return "contents are taken apart; expected each once".into(),
        Some(_) if rendered.contains(&placeholder(due)) => (due, "out of order"),
        None if !tail.is_empty() => (due, "rewritten"),
        _ => (due, "left out"),
    };
    format!("{}: {what}; expected each content once, unchanged and in order", named(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Role::{Assistant, System, User};

    const ROLES: [Role; 3] = [System, User, Assistant];

    fn wrong(rendered: &str) -> String {
        split_at_placeholders(rendered, &ROLES).unwrap_err()
    }

    #[test]
    fn pieces_are_literals_and_contents() {
        let (a, b, c) = (placeholder(0), placeholder(1), placeholder(2));
        assert_eq!(
            split_at_placeholders(&format!("S:{a}{b}\n{c}"), &ROLES).unwrap(),
            [
                RenderedPart::Literal("S:"),
                RenderedPart::Content(0),
                RenderedPart::Content(1),
                RenderedPart::Literal("\n"),
                RenderedPart::Content(2)
            ]
        );
        assert_eq!(split_at_placeholders("hi", &[]).unwrap(), [RenderedPart::Literal("hi")]);
        assert_eq!(split_at_placeholders("", &[]).unwrap(), []);
    }

    #[test]
    fn ten_and_one_are_not_confused() {
        let rendered: String = (0..12).map(placeholder).collect();
        let expected: Vec<_> = (0..12).map(RenderedPart::Content).collect();
        assert_eq!(split_at_placeholders(&rendered, &[User; 12]).unwrap(), expected);
    }

    #[test]
    fn every_mistreated_message_is_named() {
        let (a, b, c) = (placeholder(0), placeholder(1), placeholder(2));
        let rule = "expected each content once, unchanged and in order";
        for (rendered, what) in [
            (String::new(), "messages.0 (system): left out"),
            (format!("{b}{c}"), "messages.0 (system): left out"),
            (format!("{a}{c}"), "messages.1 (user): left out"),
            (format!("{a}{b}"), "messages.2 (assistant): left out"),
            (format!("{a}{c}{b}"), "messages.1 (user): out of order"),
            (format!("{a}{b}{b}{c}"), "messages.1 (user): rendered twice"),
            (format!("{a}{b}{c}{a}"), "messages.0 (system): rendered twice"),
            (format!("{a}{}{c}", b.to_lowercase()), "messages.1 (user): rewritten"),
            (format!("{a}{b}{}", &c[4..]), "messages.2 (assistant): rewritten"),
            (format!("{}{b}{c}", a.replace('"', "\\\"")), "messages.0 (system): rewritten"),
        ] {
            assert_eq!(wrong(&rendered), format!("{what}; {rule}"));
        }
        let half = format!("{a}{b}{c}{OPEN}");
        assert_eq!(wrong(&half), "contents are taken apart; expected each once");
    }
}
