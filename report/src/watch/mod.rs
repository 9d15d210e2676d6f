//! A terminal screen that follows runs from their files. Nothing is asked of the process that trains,
//! so a run on another machine's disk can be watched, and one that is over.

mod draw;
mod figures;
mod screen;

use std::io;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::error::ReportError;
use crate::folder::RunFolder;
pub use screen::WatchScreen;

/// How often files are read again.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a key or a signal may wait.
const POLL: Duration = Duration::from_millis(100);

/// Shows runs until `q`, Ctrl-C or `stop`. The terminal is left as it was, after a panic too.
///
/// # Errors
/// When the terminal refuses, or a file of a run cannot be read.
pub fn watch(runs: Vec<RunFolder>, stop: &dyn Fn() -> bool) -> Result<(), ReportError> {
    let mut terminal = ratatui::try_init()?;
    let watched = follow(&mut terminal, WatchScreen::new(runs), stop);
    let restored = ratatui::try_restore();
    watched?;
    Ok(restored?)
}

fn follow(
    terminal: &mut DefaultTerminal,
    mut screen: WatchScreen,
    stop: &dyn Fn() -> bool,
) -> Result<(), ReportError> {
    let mut read = Instant::now();
    let mut changed = true;
    while !screen.is_closed() && !stop() {
        if changed {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        changed = take_event(&mut screen)?;
        if read.elapsed() >= REFRESH {
            screen.refresh()?;
            (read, changed) = (Instant::now(), true);
        }
    }
    Ok(())
}

/// Waits for a key or another size; whether there was one.
fn take_event(screen: &mut WatchScreen) -> io::Result<bool> {
    if !event::poll(POLL)? {
        return Ok(false);
    }
    match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => screen.key(key),
        Event::Resize(..) => {}
        _ => return Ok(false),
    }
    Ok(true)
}
