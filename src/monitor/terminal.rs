//! Shows a run on stderr: a progress bar on a terminal, a line every ten seconds elsewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use bitnet_format::Shown;
use bitnet_format::figures::{grouped, significant};
use bitnet_terminal::animated;
use indicatif::{ProgressBar, ProgressStyle};

use super::TernaryShares;
use super::narrow::{COLUMNS, draw_target};
use super::progress_line::{StepPace, short_line, whole_line};
use super::shown::shown;
use crate::monitor::{Evaluation, Monitor, PreferenceEvaluation, RunInfo, StepRecord};
use crate::output::note;

/// Interval of lines without a progress bar.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Columns of the bar itself.
const BAR_COLUMNS: usize = 10;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress and results.
    Normal,
    /// A line for every step.
    Verbose,
}

/// Shows a run on stderr.
#[derive(Debug)]
pub struct Terminal {
    verbosity: Verbosity,
    /// Whether there is a bar once training has begun.
    draws: bool,
    bar: Option<ProgressBar>,
    pace: StepPace,
    last_line: Option<Instant>,
    /// The last report on the ternary codes.
    codes: String,
}

impl Terminal {
    /// Draws a bar if stderr is a terminal.
    pub fn new(verbosity: Verbosity) -> Self {
        // Verbose has a line for every step instead.
        let draws = verbosity == Verbosity::Normal && animated();
        let (pace, codes) = (StepPace::default(), String::new());
        Self { verbosity, draws, bar: None, pace, last_line: None, codes }
    }

    /// Says how much work the stages after this one hold, in steps of this one.
    #[must_use]
    pub fn followed_by(mut self, steps: Option<f64>) -> Self {
        self.pace.later_steps = steps;
        self
    }

    fn line(&self, text: &str) {
        match (&self.bar, self.verbosity) {
            (_, Verbosity::Quiet) => {}
            // Without the bar for a moment: both are on stderr, and would share a row.
            (Some(bar), _) => bar.suspend(|| note(text)),
            (None, _) => note(text),
        }
    }

    /// True at most once every [`LINE_EVERY`].
    fn line_is_due(&mut self) -> bool {
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }

    fn every_step(&self) -> bool {
        self.verbosity == Verbosity::Verbose
    }
}

fn new_bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), draw_target());
    let template = format!("{{bar:{BAR_COLUMNS}}} {{pos}}/{{len}} {{wide_msg}}");
    bar.set_style(ProgressStyle::with_template(&template).expect("the template is a constant"));
    bar
}

/// Columns beside the bar and its numbers.
fn message_columns(steps: u64) -> usize {
    // The three are the space behind the bar, the slash and the space behind the numbers.
    COLUMNS - BAR_COLUMNS - 2 * steps.to_string().len() - 3
}

impl Monitor for Terminal {
    fn started(&mut self, info: &RunInfo) {
        self.pace.steps = info.steps;
        let resumed = if info.first_step > 1 { " (resumed)" } else { "" };
        self.line(&format!(
            "{}: {} parameters, steps {} to {}{resumed}, {} a step{}",
            info.name,
            grouped(info.parameters as u64),
            grouped(info.first_step),
            grouped(info.steps),
            info.batch,
            if info.ranks > 1 { format!(", on {} ranks", info.ranks) } else { String::new() }
        ));
        if self.draws {
            let bar = new_bar(info.steps);
            bar.set_position(info.first_step - 1);
            self.bar = Some(bar);
        }
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn detail(&mut self, text: &str) {
        if self.every_step() {
            self.line(text);
        }
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        if done >= total || self.line_is_due() {
            self.line(&format!("{what}: {:.0} %", 100.0 * done as f64 / total.max(1) as f64));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        self.pace.stepped(record.tokens_per_second);
        // A bar is drawn at its own rate; a log gets a line now and then, and all that matter.
        if let Some(bar) = &self.bar {
            let columns = message_columns(self.pace.steps);
            bar.set_message(short_line(record, &self.pace, &self.codes, columns));
            bar.set_position(record.step);
        } else if record.skipped
            || record.step == self.pace.steps
            || self.every_step()
            || self.line_is_due()
        {
            self.line(&whole_line(record, &self.pace, &self.codes));
        }
    }

    fn ternary(&mut self, _step: u64, all: &TernaryShares) {
        let flipped =
            all.flipped.map_or(String::new(), |share| format!(" flips {:.2} %", 100.0 * share));
        let dead =
            if all.dead_rows > 0 { format!(" dead rows {}", all.dead_rows) } else { String::new() };
        let moved =
            all.moved.map_or(String::new(), |share| format!(" moved {:.2} %", 100.0 * share));
        self.codes = format!("zeros {:.0} %{flipped}{moved}{dead}", 100.0 * all.zero);
    }

    fn evaluated(&mut self, step: u64, set: &str, evaluation: Evaluation) {
        if let Some(PreferenceEvaluation { loss, accuracy, margin, pairs }) = evaluation.preference
        {
            return self.line(&format!(
                "step {step}: {set} loss {loss:.4} a pair, accuracy {accuracy:.3}, margin \
                 {margin:.4} over {pairs} pairs"
            ));
        }
        self.line(&format!(
            "step {step}: {set} {:.4} nats a token, perplexity {}",
            evaluation.nll_per_token,
            significant(evaluation.perplexity)
        ));
    }

    fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        self.line(&format!("step {step}: «{prompt}»{text}"));
    }

    fn saved(&mut self, path: &Path) {
        self.line(&format!("saved {}", shown(path).shown()));
    }

    fn finished(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
