//! Placeholders for what was said, and finding them again in what a template rendered. The
//! template is run in `jinja`; tokens are made in `rendered`.

use super::Speaker;

/// Both of a private use area: no template has a reason to write them.
const OPEN: char = '\u{f0000}';
const CLOSE: char = '\u{f0001}';

/// A piece of rendered text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// The template's own words; never empty.
    Literal(&'a str),
    /// What the message of this number says.
    Content(usize),
}

/// What stands for the content of message `index`. It has letters of both cases, a quote and an
/// angle bracket, so that a template that rewrites contents (`lower`, `tojson`, `escape`) shows.
pub(super) fn placeholder(index: usize) -> String {
    format!("{OPEN}aB\"<{index}{CLOSE}")
}

/// The pieces of a rendered conversation, in which every placeholder must be, once and in order.
pub(super) fn pieces<'a>(
    rendered: &'a str,
    speakers: &[Speaker],
) -> Result<Vec<Piece<'a>>, String> {
    let mut pieces = Vec::with_capacity(2 * speakers.len() + 1);
    let mut rest = rendered;
    for index in 0..speakers.len() {
        let (literal, tail) = rest.split_at(next_mark(rest));
        let placeholder = placeholder(index);
        let Some(after) = tail.strip_prefix(&placeholder) else {
            return Err(complaint(rendered, tail, index, speakers));
        };
        pieces.push(Piece::Literal(literal));
        pieces.push(Piece::Content(index));
        rest = after;
    }
    let (literal, tail) = rest.split_at(next_mark(rest));
    if !tail.is_empty() {
        return Err(complaint(rendered, tail, speakers.len(), speakers));
    }
    pieces.push(Piece::Literal(literal));
    pieces.retain(|piece| *piece != Piece::Literal(""));
    Ok(pieces)
}

fn next_mark(text: &str) -> usize {
    text.find([OPEN, CLOSE]).unwrap_or(text.len())
}

/// Why `tail` does not begin with the placeholder that is due.
fn complaint(rendered: &str, tail: &str, due: usize, speakers: &[Speaker]) -> String {
    let named = |index: usize| format!("messages.{index} ({})", speakers[index].word());
    let found = (0..speakers.len()).find(|index| tail.starts_with(&placeholder(*index)));
    let (index, what) = match found {
        Some(index) if index < due => (index, "rendered twice"),
        _ if due == speakers.len() => return "contents are taken apart; expected each once".into(),
        Some(_) if rendered.contains(&placeholder(due)) => (due, "out of order"),
        None if !tail.is_empty() => (due, "rewritten"),
        _ => (due, "left out"),
    };
    format!("{}: {what}; expected each content once, unchanged and in order", named(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Speaker::{Assistant, System, User};

    const SPEAKERS: [Speaker; 3] = [System, User, Assistant];

    fn wrong(rendered: &str) -> String {
        pieces(rendered, &SPEAKERS).unwrap_err()
    }

    #[test]
    fn pieces_are_literals_and_contents() {
        let (a, b, c) = (placeholder(0), placeholder(1), placeholder(2));
        assert_eq!(
            pieces(&format!("S:{a}{b}\n{c}"), &SPEAKERS).unwrap(),
            [
                Piece::Literal("S:"),
                Piece::Content(0),
                Piece::Content(1),
                Piece::Literal("\n"),
                Piece::Content(2)
            ]
        );
        assert_eq!(pieces("hi", &[]).unwrap(), [Piece::Literal("hi")]);
        assert_eq!(pieces("", &[]).unwrap(), []);
    }

    #[test]
    fn ten_and_one_are_not_confused() {
        let rendered: String = (0..12).map(placeholder).collect();
        let expected: Vec<_> = (0..12).map(Piece::Content).collect();
        assert_eq!(pieces(&rendered, &[User; 12]).unwrap(), expected);
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
