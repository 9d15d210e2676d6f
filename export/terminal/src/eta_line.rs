//! How far a task is and how long it will take, on one line of a terminal.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::printable::printable;
use crate::style::animated;

/// Between two drawings.
const PAUSE: Duration = Duration::from_millis(200);

/// The line of one task, drawn on stderr where that is a terminal.
#[derive(Debug)]
pub struct EtaLine {
    task: String,
    begin: Instant,
    drawn: Option<Instant>,
    shown: bool,
}

impl EtaLine {
    /// A line that names the task.
    pub fn new(task: &str) -> Self {
        Self { task: task.to_owned(), begin: Instant::now(), drawn: None, shown: animated() }
    }

    /// Draws `done` of `all`, now and then.
    pub fn show(&mut self, done: usize, all: usize) {
        if !self.shown || self.drawn.is_some_and(|drawn| drawn.elapsed() < PAUSE) {
            return;
        }
        self.drawn = Some(Instant::now());
        status(&text(&self.task, self.begin.elapsed().as_secs_f64(), done, all));
    }

    /// Takes the line away; the seconds since it began.
    pub fn finish(self) -> f64 {
        if self.drawn.is_some() {
            status("");
        }
        self.begin.elapsed().as_secs_f64()
    }
}

/// Draws a line over the one before; an empty one takes it away.
fn status(text: &str) {
    let _ = io::stderr().write_all(format!("\r\x1b[2K{}", printable(text)).as_bytes());
}

fn text(task: &str, seconds: f64, done: usize, all: usize) -> String {
    let share = done as f64 / all.max(1) as f64;
    let left = if share > 0.0 { seconds / share - seconds } else { 0.0 };
    let left = match left.round() as u64 {
        0..60 => format!("{left:.0} s"),
        60..3600 => format!("{:.0} min", left / 60.0),
        _ => format!("{:.1} h", left / 3600.0),
    };
    format!("{task} {:.0} %, {left} left", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_follows_from_the_share_that_is_done() {
        assert_eq!(text("piqa", 10.0, 1, 4), "piqa 25 %, 30 s left");
        assert_eq!(text("piqa", 60.0, 1, 11), "piqa 9 %, 10 min left");
        assert_eq!(text("piqa", 3600.0, 1, 3), "piqa 33 %, 2.0 h left");
        assert_eq!(text("piqa", 1.0, 0, 0), "piqa 0 %, 0 s left");
    }
}
