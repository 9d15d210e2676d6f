//! The terminal as the progress bar sees it: never wider than an ordinary one. The bar fills its row
//! with blanks; in a wider row they would be broken into several when the window is made narrower, and
//! stay behind.

use std::io;

use console::Term;
use indicatif::{ProgressDrawTarget, TermLike};

/// Columns of the bar with its text.
pub(super) const COLUMNS: usize = 79;

/// Draws of a second.
const RATE: u8 = 20;

#[derive(Debug)]
struct NarrowTerminal(Term);

/// Where the bar is drawn: stderr.
pub(super) fn draw_target() -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(Box::new(NarrowTerminal(Term::stderr())), RATE)
}

impl TermLike for NarrowTerminal {
    fn width(&self) -> u16 {
        self.0.size().1.min(COLUMNS as u16 + 1) - 1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, rows: usize) -> io::Result<()> {
        self.0.move_cursor_up(rows)
    }

    fn move_cursor_down(&self, rows: usize) -> io::Result<()> {
        self.0.move_cursor_down(rows)
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_right(columns)
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.0.move_cursor_left(columns)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}
