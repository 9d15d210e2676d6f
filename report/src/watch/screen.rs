//! What the screen shows, and what keys change of it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::error::ReportError;
use crate::folder::RunFolder;

/// Steps over which a curve is averaged, to choose from.
const SMOOTHING: [f64; 4] = [0.0, 10.0, 50.0, 200.0];

/// Figures that stand first, in this order.
const FIRST: [&str; 4] = ["loss", "lr", "grad_norm", "tokens_per_second"];

/// Runs on a screen.
#[derive(Debug)]
pub struct WatchScreen {
    pub(super) runs: Vec<RunFolder>,
    /// The figure that is drawn.
    pub(super) series: String,
    smoothing: usize,
    /// Whether the figure is drawn on a logarithmic scale.
    pub(super) log: bool,
    pub(super) help: bool,
    /// The run whose samples and events are shown.
    pub(super) chosen: usize,
    closed: bool,
}

impl WatchScreen {
    /// Shows the loss of these runs.
    pub fn new(runs: Vec<RunFolder>) -> Self {
        // Of a pipeline, the stage that goes on.
        let begun = runs.iter().rposition(|run| run.history.step() > 0);
        Self {
            chosen: begun.unwrap_or(0),
            runs,
            series: FIRST[0].to_owned(),
            smoothing: 0,
            log: false,
            help: false,
            closed: false,
        }
    }

    /// Reads what was added to the files.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn refresh(&mut self) -> Result<(), ReportError> {
        self.runs.iter_mut().try_for_each(RunFolder::refresh)
    }

    /// Whether the user has had enough.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Steps over which curves are averaged; 0 for none.
    pub(super) fn smoothing(&self) -> f64 {
        SMOOTHING[self.smoothing]
    }

    /// All figures that a run has.
    pub(super) fn all_series(&self) -> Vec<String> {
        let mut names: Vec<String> = FIRST.map(str::to_owned).to_vec();
        for run in &self.runs {
            for (name, _) in run.history.below("") {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        }
        names
    }

    /// Acts on a key.
    pub fn key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => self.closed = true,
            // Escape closes what is on top, and only then the screen.
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => self.closed = true,
            KeyCode::Char('h' | '?') => self.help = !self.help,
            KeyCode::Char('l') => self.log = !self.log,
            KeyCode::Char('s') => self.smoothing = (self.smoothing + 1) % SMOOTHING.len(),
            KeyCode::Right | KeyCode::Tab => self.turn(1),
            KeyCode::Left | KeyCode::BackTab => self.turn(-1),
            KeyCode::Down => self.chosen = (self.chosen + 1) % self.runs.len().max(1),
            KeyCode::Up => {
                self.chosen = (self.chosen + self.runs.len().max(1) - 1) % self.runs.len().max(1);
            }
            _ => {}
        }
    }

    /// The figure `by` places further on.
    fn turn(&mut self, by: isize) {
        let names = self.all_series();
        // A figure can go when a log is read anew; turning then begins at the first.
        let at = names.iter().position(|name| *name == self.series).unwrap_or(0);
        let next = (at as isize + by).rem_euclid(names.len() as isize);
        self.series.clone_from(&names[next as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::small_run;

    fn press(screen: &mut WatchScreen, code: KeyCode) {
        screen.key(KeyEvent::from(code));
    }

    #[test]
    fn keys_choose_what_is_shown_and_close_the_screen() {
        let dir = small_run(10);
        let mut screen = WatchScreen::new(vec![RunFolder::open(dir.path()).unwrap()]);
        assert_eq!(screen.series, "loss");
        press(&mut screen, KeyCode::Left);
        let last = screen.series.clone();
        assert_ne!(last, "loss");
        press(&mut screen, KeyCode::Right);
        assert_eq!(screen.series, "loss");
        for expected in [10.0, 50.0, 200.0, 0.0] {
            press(&mut screen, KeyCode::Char('s'));
            assert!((screen.smoothing() - expected).abs() < f64::EPSILON);
        }
        press(&mut screen, KeyCode::Char('l'));
        press(&mut screen, KeyCode::Char('?'));
        assert!(screen.log && screen.help);
        press(&mut screen, KeyCode::Esc);
        assert!(!screen.help && !screen.is_closed());
        screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(screen.is_closed());
    }

    #[test]
    fn of_a_pipeline_the_stage_that_goes_on_is_chosen() {
        let (done, begun, next) = (small_run(20), small_run(3), small_run(0));
        let open = |dir: &tempfile::TempDir| RunFolder::open(dir.path()).unwrap();
        let mut screen = WatchScreen::new(vec![open(&done), open(&begun), open(&next)]);
        assert_eq!(screen.chosen, 1);
        press(&mut screen, KeyCode::Down);
        press(&mut screen, KeyCode::Down);
        assert_eq!(screen.chosen, 0);
        press(&mut screen, KeyCode::Up);
        assert_eq!(screen.chosen, 2);
    }
}
