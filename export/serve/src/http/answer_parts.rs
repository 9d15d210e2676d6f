//! The text of an answer in parts: text and calls of functions, as they come.

use super::tool_form::ToolForm;

/// What came next in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    Text(String),
    /// A call of the function of this name.
    CallBegins(String),
    /// A piece of its arguments, a JSON object in all.
    Arguments(String),
    CallEnds,
}

/// A call of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub(crate) name: String,
    /// A JSON object.
    pub(crate) arguments: String,
}

/// Takes an answer apart.
#[derive(Clone, Debug)]
pub(crate) struct AnswerParts {
    /// How calls are written; `None`: all is text.
    form: Option<ToolForm>,
    place: Place,
    held: String,
    /// Whether something was said: the space that parts an answer from its header is left out.
    begun: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Text,
    Name,
    Arguments(ObjectEnd),
    After,
}

impl AnswerParts {
    pub(crate) fn new(form: Option<ToolForm>) -> Self {
        Self { form, place: Place::Text, held: String::new(), begun: false }
    }

    /// The parts that became certain by `text`.
    pub(crate) fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.held += text;
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// The parts of the last text of an answer.
    pub(crate) fn finish(&mut self, text: &str) -> Vec<AnswerPart> {
        let mut parts = self.push(text);
        // A call that was cut off has no end; its arguments so far were passed on as they came.
        if matches!(self.place, Place::Text) {
            let rest = std::mem::take(&mut self.held);
            self.say(&rest, &mut parts);
        }
        parts
    }

    /// Goes on to the next place, if its beginning is there.
    fn advance(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        let Some(form) = self.form else {
            let text = std::mem::take(&mut self.held);
            self.say(&text, parts);
            return false;
        };
        match &mut self.place {
            // Behind a call only another call may come; what stands between (line ends, closing
            // tags) is no text of the answer.
            Place::Text | Place::After => {
                let says = matches!(self.place, Place::Text);
                let found = self.held.find(form.open);
                // Text that might be the beginning of a call's mark is held back until more of it
                // is there.
                let end = found.unwrap_or_else(|| certain(&self.held, form.open));
                let rest = self.held.split_off(end);
                let text = std::mem::replace(&mut self.held, rest);
                if says {
                    self.say(&text, parts);
                }
                if found.is_some() {
                    self.held.drain(..form.open.len());
                    self.place = Place::Name;
                }
                found.is_some()
            }
            Place::Name => {
                // A name is passed on whole: a client cannot begin a call with half of one.
                let Some(end) = self.held.find(form.after_name) else { return false };
                // The grammar lets nothing but `before_name` stand before the name.
                let name = self.held[..end].trim_start_matches(form.before_name).to_owned();
                self.held.drain(..end + form.after_name.len());
                self.place = Place::Arguments(ObjectEnd::default());
                parts.push(AnswerPart::CallBegins(name));
                true
            }
            Place::Arguments(object) => {
                // Arguments stream as they come; counting braces outside of strings finds the end
                // without parsing.
                let end = object.find(&self.held);
                let rest = end.map_or_else(String::new, |end| self.held.split_off(end));
                let piece = std::mem::replace(&mut self.held, rest);
                parts.extend((!piece.is_empty()).then_some(AnswerPart::Arguments(piece)));
                if end.is_some() {
                    parts.push(AnswerPart::CallEnds);
                    self.place = Place::After;
                }
                end.is_some()
            }
        }
    }

    fn say(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        let text = if self.begun { text } else { text.trim_start() };
        self.begun |= !text.is_empty();
        parts.extend((!text.is_empty()).then(|| AnswerPart::Text(text.to_owned())));
    }
}

/// A whole answer: its text, and the calls that are complete.
pub(crate) fn whole(form: Option<ToolForm>, text: &str) -> (String, Vec<ToolCall>) {
    let (mut said, mut calls, mut open) = (String::new(), Vec::new(), ToolCall::default());
    for part in AnswerParts::new(form).finish(text) {
        match part {
            AnswerPart::Text(text) => said += &text,
            AnswerPart::CallBegins(name) => open.name = name,
            AnswerPart::Arguments(piece) => open.arguments += &piece,
            AnswerPart::CallEnds => calls.push(std::mem::take(&mut open)),
        }
    }
    (said, calls)
}

/// Length of the beginning of `held` that cannot be the beginning of `mark`.
fn certain(held: &str, mark: &str) -> usize {
    let ends = held.char_indices().map(|(at, _)| at);
    ends.into_iter().find(|at| mark.starts_with(&held[*at..])).unwrap_or(held.len())
}

/// Finds where a JSON object ends.
#[derive(Clone, Debug, Default)]
struct ObjectEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectEnd {
    /// Behind the brace that closes the object, if it is in the next piece.
    fn find(&mut self, piece: &str) -> Option<usize> {
        piece.bytes().position(|byte| self.closes(byte)).map(|at| at + 1)
    }

    fn closes(&mut self, byte: u8) -> bool {
        match byte {
            // Bytes and not letters: quotes, braces and backslashes are never part of a longer
            // UTF-8 character.
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' if !self.in_string => self.depth += 1,
            b'}' if !self.in_string => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_same_wherever_the_text_is_cut() {
        let (form, call) =
            crate::http::tool_form::sample_call("look", "{\"a\": \"}\\\"\", \"b\": {}}");
        let text = format!(" See <tool: {call}\n{call}");
        let (said, calls) = whole(Some(form), &text);
        assert_eq!(said, "See <tool: ");
        let expected = ToolCall {
            name: "look".to_owned(),
            arguments: "{\"a\": \"}\\\"\", \"b\": {}}".to_owned(),
        };
        assert_eq!(calls, [expected.clone(), expected]);
        for cut in (1..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let mut parts = AnswerParts::new(Some(form));
            let mut all = parts.push(&text[..cut]);
            all.extend(parts.finish(&text[cut..]));
            let count =
                |kind: fn(&AnswerPart) -> bool| all.iter().filter(|part| kind(part)).count();
            assert_eq!(count(|part| matches!(part, AnswerPart::CallEnds)), 2, "{cut}");
            let joined: String = all
                .iter()
                .filter_map(|part| match part {
                    AnswerPart::Text(text) => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            assert_eq!(joined, said, "{cut}");
        }
    }

    #[test]
    fn without_tools_all_is_text_and_a_call_that_is_cut_is_none() {
        let (form, call) = crate::http::tool_form::sample_call("look", "{}");
        assert_eq!(whole(None, &format!(" {call}")), (call.clone(), Vec::new()));
        assert_eq!(whole(Some(form), &call[..call.len() - 20]).1, []);
        assert_eq!(whole(Some(form), "a <tool").0, "a <tool");
    }
}
