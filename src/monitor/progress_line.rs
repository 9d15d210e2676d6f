//! A training step as one line: everything in a log, what fits beside a progress bar.

use std::collections::VecDeque;
use std::time::Instant;

use bitnet_format::figures::{grouped, significant};

use crate::monitor::StepRecord;

/// Steps over which the shown speed is averaged.
const SPEED_WINDOW: usize = 20;

/// How fast the last steps were, and what is left to do.
#[derive(Debug, Default)]
pub(super) struct StepPace {
    /// Steps of the run.
    pub(super) steps: u64,
    /// The work of the stages after this one, in steps of this one; `None` if it is not known.
    pub(super) later_steps: Option<f64>,
    /// When each of the last steps ended, and its speed.
    last: VecDeque<(Instant, f64)>,
}

impl StepPace {
    pub(super) fn stepped(&mut self, tokens_per_second: f64) {
        self.last.push_back((Instant::now(), tokens_per_second));
        if self.last.len() > SPEED_WINDOW {
            self.last.pop_front();
        }
    }

    /// Includes evaluations, samples and saves in between; unknown after one step.
    fn seconds_a_step(&self) -> Option<f64> {
        let ((first, _), (last, _)) = (self.last.front()?, self.last.back()?);
        let between = self.last.len() - 1;
        (between > 0).then(|| (*last - *first).as_secs_f64() / between as f64)
    }

    fn tokens_per_second(&self) -> f64 {
        let speeds = self.last.iter().map(|(_, speed)| speed);
        speeds.sum::<f64>() / self.last.len().max(1) as f64
    }

    /// `ETA 54 s`, and that of all stages where there are more.
    fn eta(&self, step: u64) -> Vec<String> {
        let left = self.steps - step;
        // A run of one step never has a pace, but nothing is left of it.
        let Some(seconds) = self.seconds_a_step().or((left == 0).then_some(0.0)) else {
            return vec!["ETA unknown".to_owned()];
        };
        let after = |steps: f64| duration(steps * seconds);
        let later = self.later_steps.filter(|&steps| steps > 0.0 && seconds > 0.0);
        let all = later.map(|later| format!("(all stages {})", after(left as f64 + later)));
        std::iter::once(format!("ETA {}", after(left as f64))).chain(all).collect()
    }
}

/// The line of a step in a log.
pub(super) fn whole_line(record: &StepRecord, pace: &StepPace, codes: &str) -> String {
    let Parts { figures, more, speed, eta } = Parts::of(record, pace, codes);
    let parts = [figures, more, vec![speed], eta].concat();
    format!("step {}/{} {}", record.step, pace.steps, parts.join(" "))
}

/// As much of it as fits into `columns`, the most important first.
pub(super) fn short_line(
    record: &StepRecord,
    pace: &StepPace,
    codes: &str,
    columns: usize,
) -> String {
    let Parts { figures, more, speed, eta } = Parts::of(record, pace, codes);
    let parts = [figures, eta, vec![speed], more].concat();
    let mut line = String::new();
    for part in parts {
        let gap = usize::from(!line.is_empty());
        // A part that is too long is left out; a shorter one behind it may still fit.
        if line.chars().count() + gap + part.chars().count() <= columns {
            line.push_str(if gap > 0 { " " } else { "" });
            line.push_str(&part);
        }
    }
    line
}

/// The parts of a step's line.
struct Parts {
    figures: Vec<String>,
    more: Vec<String>,
    speed: String,
    eta: Vec<String>,
}

impl Parts {
    fn of(record: &StepRecord, pace: &StepPace, codes: &str) -> Self {
        let skipped = record.skipped.then(|| "SKIPPED".to_owned());
        let own = [record.phase.clone(), format!("loss {:.4}", record.loss)];
        let mut more = vec![
            format!("lr {}", significant(record.lr)),
            format!("norm {}", significant(record.grad_norm)),
        ];
        more.extend(preference(record));
        more.extend((!codes.is_empty()).then(|| codes.to_owned()));
        let speed = format!("{} tokens/s", grouped(pace.tokens_per_second() as u64));
        Self {
            figures: skipped.into_iter().chain(own).collect(),
            more,
            speed,
            eta: pace.eta(record.step),
        }
    }
}

/// Metrics that a preference step adds to its line.
fn preference(record: &StepRecord) -> Option<String> {
    let of = |name: &str| record.metrics.get(name).copied().unwrap_or_default();
    let margin = record.metrics.get("margin")?;
    Some(format!("margin {margin:.3} accuracy {:.2} kl {:.3}", of("accuracy"), of("kl")))
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
    use std::time::Duration;

    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            phase: "cooldown".to_owned(),
            tokens: 1,
            loss: 13.921_91,
            loss_bits: String::new(),
            lr: 2.168e-19,
            weight_decay: 0.0,
            grad_norm: 18_959.59,
            tokens_per_second: 22_553.4,
            joules_per_token: None,
            ternary_lambda: None,
            skipped: false,
            ranks: 1,
            tokens_this_rank: 1,
            metrics: std::collections::BTreeMap::new(),
            rows: Vec::new(),
        }
    }

    fn pace(seconds: &[u64], later_steps: Option<f64>) -> StepPace {
        let start = Instant::now();
        let last = seconds.iter().map(|&s| (start + Duration::from_secs(s), 22_553.4)).collect();
        StepPace { steps: 900, later_steps, last }
    }

    #[test]
    fn a_line_has_what_a_step_measured() {
        let line = whole_line(&record(800), &pace(&[0, 2], None), "zeros 31 %");
        let expected = "step 800/900 cooldown loss 13.9219 lr 0 norm 19,000 zeros 31 % \
                        22,553 tokens/s ETA 3 min 20 s";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_time_left_is_unknown_after_one_step_and_counts_later_stages() {
        assert_eq!(pace(&[0], None).eta(1), ["ETA unknown"]);
        assert_eq!(pace(&[0], None).eta(900), ["ETA 0 s"], "a run of one step");
        let eta = pace(&[0, 1], Some(3600.0)).eta(840);
        assert_eq!(eta, ["ETA 1 min 00 s", "(all stages 1 h 01 min)"]);
    }

    #[test]
    fn a_short_line_leaves_out_what_does_not_fit() {
        let pace = pace(&[0, 2], Some(100.0));
        let short = |columns| short_line(&record(800), &pace, "zeros 31 %", columns);
        let whole = "cooldown loss 13.9219 ETA 3 min 20 s (all stages 6 min 40 s) 22,553 tokens/s \
                     lr 0 norm 19,000 zeros 31 %";
        assert_eq!(short(200), whole);
        assert_eq!(short(58), "cooldown loss 13.9219 ETA 3 min 20 s 22,553 tokens/s lr 0");
        assert_eq!(short(22), "cooldown loss 13.9219");
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(11.6), "12 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
    }
}
