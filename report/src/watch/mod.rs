//! A terminal screen that follows runs from their files. The training process is not contacted,
//! so a run on another machine's disk can be watched, and one that is over.

mod draw;
mod figures;
mod screen;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
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
/// When the terminal refuses or is gone, or a file of a run cannot be read.
pub fn watch(runs: Vec<RunFolder>, stop: &dyn Fn() -> bool) -> Result<(), ReportError> {
    let mut terminal = ratatui::try_init()?;
    // The terminal is given back before an error is: its message must not land on the screen that
    // then disappears.
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
    let events = terminal_events();
    let mut read = Instant::now();
    let mut changed = true;
    while !screen.is_closed() && !stop() {
        if changed {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        // Waits up to POLL for a key; nothing is drawn again where neither a key nor a file
        // changed.
        changed = take_event(&mut screen, &events)?;
        if read.elapsed() >= REFRESH {
            screen.refresh()?;
            (read, changed) = (Instant::now(), true);
        }
    }
    Ok(())
}

/// What the terminal sends, read by its own thread: where the terminal is gone, `event::read` never
/// returns. The next drawing fails then, and ends the process with that thread.
fn terminal_events() -> Receiver<io::Result<Event>> {
    let (sender, events) = channel();
    thread::spawn(move || while sender.send(event::read()).is_ok() {});
    events
}

/// Waits for a key or another size; whether there was one.
fn take_event(screen: &mut WatchScreen, events: &Receiver<io::Result<Event>>) -> io::Result<bool> {
    let event = match events.recv_timeout(POLL) {
        Ok(event) => event?,
        Err(RecvTimeoutError::Timeout) => return Ok(false),
        Err(RecvTimeoutError::Disconnected) => unreachable!("its thread ends with the receiver"),
    };
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => screen.key(key),
        Event::Resize(..) => {}
        _ => return Ok(false),
    }
    Ok(true)
}
