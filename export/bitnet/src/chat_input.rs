//! What is typed in a chat: lines with editing and history on a terminal, plain lines in a pipe,
//! and the commands among them.

use std::io::{BufRead, ErrorKind, IsTerminal, Read, stdin, stdout};

use crate::line_editor::LineEditor;

/// What `/help` says.
pub(crate) const HELP: &str = "\
/help         these lines
/reset        forgets what was said
/system TEXT  sets the system message and forgets what was said; without a text, removes it
/quit         leaves; so does Ctrl-D. Ctrl-C stops an answer
Anything else is a message to the model; put a space before one that begins with /";

/// A message of a pipe: no context holds a longer one.
const LONGEST_LINE: u64 = 64 << 20;

/// Where lines come from.
pub(crate) enum ChatInput {
    /// A terminal.
    Terminal(LineEditor),
    /// Anything else.
    Pipe,
}

/// A line that was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed<'a> {
    /// Nothing.
    Empty,
    /// For the model.
    Message(&'a str),
    Help,
    Reset,
    System(&'a str),
    Quit,
    /// A command that does not exist.
    Unknown(&'a str),
}

impl ChatInput {
    pub(crate) fn open() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // Both: keys cannot be read from a file, and a line is not edited into one.
        let terminal = stdin().is_terminal() && stdout().is_terminal() && !dumb;
        if terminal { Self::Terminal(LineEditor::default()) } else { Self::Pipe }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; `None` at the end of the input.
    pub(crate) fn next_line(&mut self) -> std::io::Result<Option<String>> {
        match self {
            Self::Terminal(editor) => editor.read_line("> "),
            Self::Pipe => {
                let wrong = |what: String| std::io::Error::new(ErrorKind::InvalidData, what);
                let mut line = Vec::new();
                let bytes = stdin().lock().take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
                if bytes as u64 > LONGEST_LINE {
                    return Err(wrong(format!(
                        "<stdin>: a line of more than {LONGEST_LINE} bytes"
                    )));
                }
                let line = String::from_utf8(line);
                let line =
                    line.map_err(|error| wrong(format!("<stdin>: is not UTF-8 text: {error}")))?;
                Ok((bytes > 0).then_some(line))
            }
        }
    }

    /// What `line` asks for. In a pipe, where nobody reads an explanation, only a known command is
    /// one.
    pub(crate) fn typed<'a>(&self, line: &'a str) -> Typed<'a> {
        match typed(line) {
            Typed::Unknown(_) if !self.is_terminal() => Typed::Message(line.trim()),
            typed => typed,
        }
    }
}

fn typed(line: &str) -> Typed<'_> {
    let text = line.trim();
    if text.is_empty() {
        return Typed::Empty;
    }
    // The untrimmed line: a space before the slash makes it a message.
    if !line.starts_with('/') {
        return Typed::Message(text);
    }
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match (command, rest.trim()) {
        ("/help", "") => Typed::Help,
        ("/reset", "") => Typed::Reset,
        ("/quit" | "/exit", "") => Typed::Quit,
        ("/system", system) => Typed::System(system),
        _ => Typed::Unknown(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        for (line, expected) in [
            ("", Typed::Empty),
            (" \n", Typed::Empty),
            ("hello /help\n", Typed::Message("hello /help")),
            (" /help\n", Typed::Message("/help")),
            ("/help\n", Typed::Help),
            ("/reset  ", Typed::Reset),
            ("/quit", Typed::Quit),
            ("/exit", Typed::Quit),
            ("/system  Be brief. \n", Typed::System("Be brief.")),
            ("/system", Typed::System("")),
            ("/hlep", Typed::Unknown("/hlep")),
            ("/reset now", Typed::Unknown("/reset")),
        ] {
            assert_eq!(typed(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_pipe_passes_on_what_is_no_command() {
        assert_eq!(ChatInput::Pipe.typed("/etc/hosts: what is it?\n"), {
            Typed::Message("/etc/hosts: what is it?")
        });
        assert_eq!(ChatInput::Pipe.typed("/reset\n"), Typed::Reset);
    }
}
