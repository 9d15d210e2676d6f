//! Colours and moving bars, where the terminal and its user want them.
//!
//! `NO_COLOR` switches colours off, `CLICOLOR_FORCE` on even in a pipe, and a dumb terminal has none;
//! `anstream` knows these variables, for our text as for clap's.

use std::io::{IsTerminal, stderr, stdout};

use anstream::{AutoStream, ColorChoice};

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Results.
    Stdout,
    /// Everything else.
    Stderr,
}

/// Whether text on a stream may be coloured.
pub fn colours(stream: Stream) -> bool {
    let choice = match stream {
        Stream::Stdout => AutoStream::choice(&stdout()),
        Stream::Stderr => AutoStream::choice(&stderr()),
    };
    choice != ColorChoice::Never
}

/// Whether stderr can show a bar that is drawn over itself.
pub fn animated() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stderr().is_terminal() && !dumb
}
