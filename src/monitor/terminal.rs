//! Shows a run on stderr: a progress bar on a terminal, a line every ten seconds elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::TernaryShares;
use crate::monitor::{Evaluation, Monitor, PreferenceEvaluation, RunInfo, StepRecord};

/// Interval of lines where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Steps over which the shown speed is averaged.
const SPEED_WINDOW: usize = 20;

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
    bar: Option<ProgressBar>,
    steps: u64,
    last_line: Option<Instant>,
    /// Of the last steps: when each ended, and its speed.
    last_steps: VecDeque<(Instant, f64)>,
    /// The last report on the ternary codes.
    codes: String,
}

impl Terminal {
    /// Draws a bar if stderr is a terminal.
    pub fn new(verbosity: Verbosity) -> Self {
        let bar = (verbosity == Verbosity::Normal && std::io::stderr().is_terminal()).then(new_bar);
        Self {
            verbosity,
            bar,
            steps: 0,
            last_line: None,
            last_steps: VecDeque::new(),
            codes: String::new(),
        }
    }

    fn line(&self, text: &str) {
        match (&self.bar, self.verbosity) {
            (_, Verbosity::Quiet) => {}
            (Some(bar), _) => bar.suspend(|| eprintln!("{text}")),
            (None, _) => eprintln!("{text}"),
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

    /// Includes evaluations, samples and saves in between.
    fn seconds_a_step(&self) -> f64 {
        match (self.last_steps.front(), self.last_steps.back()) {
            (Some((first, _)), Some((last, _))) if self.last_steps.len() > 1 => {
                (*last - *first).as_secs_f64() / (self.last_steps.len() - 1) as f64
            }
            _ => 0.0,
        }
    }

    fn speed(&self) -> f64 {
        let speeds = self.last_steps.iter().map(|(_, speed)| speed);
        speeds.sum::<f64>() / self.last_steps.len().max(1) as f64
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:28} {pos}/{len} {msg}");
    bar.set_style(style.expect("the template is a constant"));
    bar
}

impl Monitor for Terminal {
    fn started(&mut self, info: &RunInfo) {
        self.steps = info.steps;
        let resumed = if info.first_step > 1 { " (resumed)" } else { "" };
        self.line(&format!(
            "{}: {:.2} M parameters, steps {} to {}{resumed}, {} a step{}",
            info.name,
            info.parameters as f64 / 1e6,
            info.first_step,
            info.steps,
            info.batch,
            if info.ranks > 1 { format!(", on {} ranks", info.ranks) } else { String::new() }
        ));
        if let Some(bar) = &self.bar {
            bar.set_length(info.steps);
            bar.set_position(info.first_step - 1);
        }
    }

    fn message(&mut self, text: &str) {
        self.line(text);
    }

    fn progress(&mut self, what: &str, done: u64, total: u64) {
        if done >= total || self.line_is_due() {
            self.line(&format!("{what}: {:.0} %", 100.0 * done as f64 / total.max(1) as f64));
        }
    }

    fn step(&mut self, record: &StepRecord) {
        self.last_steps.push_back((Instant::now(), record.tokens_per_second));
        if self.last_steps.len() > SPEED_WINDOW {
            self.last_steps.pop_front();
        }
        let eta = duration((self.steps - record.step) as f64 * self.seconds_a_step());
        let skipped = if record.skipped { " SKIPPED" } else { "" };
        let text = format!(
            "{} loss {:.4} lr {:.2e} norm {:.2}{}{} {:.0} tokens/s ETA {eta}{skipped}",
            record.phase,
            record.loss,
            record.lr,
            record.grad_norm,
            preference(record),
            self.codes,
            self.speed()
        );
        if let Some(bar) = &self.bar {
            bar.set_position(record.step);
            bar.set_message(text);
        } else if record.skipped
            || record.step == self.steps
            || self.every_step()
            || self.line_is_due()
        {
            self.line(&format!("step {}/{} {text}", record.step, self.steps));
        }
    }

    fn ternary(&mut self, _step: u64, all: &TernaryShares) {
        let flipped =
            all.flipped.map_or(String::new(), |share| format!(" flips {:.2} %", 100.0 * share));
        let dead =
            if all.dead_rows > 0 { format!(" dead rows {}", all.dead_rows) } else { String::new() };
        self.codes = format!(" zeros {:.0} %{flipped}{dead}", 100.0 * all.zero);
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
            "step {step}: {set} {:.4} nats a token, perplexity {:.2}",
            evaluation.nll_per_token, evaluation.perplexity
        ));
    }

    fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        self.line(&format!("step {step}: «{prompt}»{text}"));
    }

    fn saved(&mut self, path: &Path) {
        self.line(&format!("saved {}", path.display()));
    }

    fn finished(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Metrics that a preference step adds to its line.
fn preference(record: &StepRecord) -> String {
    let of = |name: &str| record.metrics.get(name).copied().unwrap_or_default();
    if !record.metrics.contains_key("margin") {
        return String::new();
    }
    format!(" margin {:.3} accuracy {:.2} kl {:.3}", of("margin"), of("accuracy"), of("kl"))
}

/// `1 h 02 min`, `3 min 20 s` or `12 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(11.6), "12 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }
}
