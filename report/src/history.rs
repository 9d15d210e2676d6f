//! `metrics.jsonl` as curves. Lines are taken as they come; a step that is repeated after a resume
//! replaces the earlier one and all that followed it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::curve::Curve;

/// Skipped steps and events that are kept.
const MOST_MARKS: usize = 2000;

/// The figures of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunHistory {
    curves: BTreeMap<String, Curve>,
    /// The first step of each phase.
    pub(crate) phases: Vec<(u64, String)>,
    /// Steps whose update was left out.
    pub(crate) skipped: Vec<u64>,
    /// What happened beside the steps.
    pub(crate) events: Vec<(u64, String)>,
    /// The newest histograms of latents by layer.
    pub(crate) histograms: BTreeMap<String, Vec<f64>>,
    /// The newest scales by kind of matrix, one a layer.
    pub(crate) scales: BTreeMap<String, Vec<f64>>,
    /// The last step.
    pub(crate) step: u64,
    /// Whole lines that are not JSON objects.
    pub(crate) bad_lines: u64,
}

impl RunHistory {
    /// A figure: `loss`, `lr`, `grad_norm`, `eval/SET/nll_per_token`, `ternary/KIND/zero`,
    /// `tasks/NAME/acc`, `tokens`, `seconds` (of training).
    pub fn curve(&self, name: &str) -> Option<&Curve> {
        self.curves.get(name).filter(|curve| !curve.points().is_empty())
    }

    /// The last value of a figure.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.curve(name)?.last()
    }

    /// The last step made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// All figures whose name starts with `prefix`: the rest of the name and the curve.
    pub(crate) fn below<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Curve)> + 'a {
        let named = self.curves.iter().filter(|(_, curve)| !curve.points().is_empty());
        named.filter_map(move |(name, curve)| Some((name.strip_prefix(prefix)?, curve)))
    }

    /// Names of figures of steps beside the usual ones: what the objective measures.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&str, &Curve)> {
        let own = |name: &str| name.contains('/') || KNOWN.contains(&name);
        self.below("").filter(move |(name, _)| !own(name))
    }

    /// Takes a line.
    pub(crate) fn line(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Value>(line) {
            Ok(Value::Object(line)) => self.object(&line),
            _ => self.bad_lines += 1,
        }
    }

    fn object(&mut self, line: &Map<String, Value>) {
        if let Some(event) = line.get("event").and_then(Value::as_str) {
            let from = line.get("from_step").and_then(Value::as_u64).unwrap_or(self.step);
            // The trainer writes this mark before it makes steps again: what follows `from_step` in
            // the file so far was lost with the killed process.
            if event == "resume" {
                self.rewind(from + 1);
                self.step = self.step.min(from);
            }
            self.mark(from, event.to_owned());
            return;
        }
        let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
        // Only lines of steps have a loss at the top; evaluations and statistics have theirs
        // inside.
        match line.get("loss") {
            Some(_) => self.step_line(step, line),
            None => self.beside(step, line),
        }
    }

    fn step_line(&mut self, step: u64, line: &Map<String, Value>) {
        // Without a mark of a resume before it as well: the later line of a step is the one that
        // the run went on from.
        if step <= self.step {
            self.rewind(step);
        }
        self.step = step;
        let phase = line.get("phase").and_then(Value::as_str).unwrap_or_default();
        if self.phases.last().is_none_or(|(_, name)| name != phase) {
            self.phases.push((step, phase.to_owned()));
        }
        // Before the loop pushes `tokens`: the difference to the step before is taken from it.
        self.time(step, line);
        for (name, value) in line.iter().filter(|(name, _)| *name != "step") {
            if let Some(number) = value.as_f64() {
                self.push(name, step, number);
            }
        }
        if line.get("skipped") == Some(&Value::Bool(true)) && self.skipped.len() < MOST_MARKS {
            self.skipped.push(step);
        }
    }

    /// Adds the time of a step, from its tokens and their speed.
    fn time(&mut self, step: u64, line: &Map<String, Value>) {
        let number = |name: &str| line.get(name).and_then(Value::as_f64);
        let (Some(tokens), Some(speed)) = (number("tokens"), number("tokens_per_second")) else {
            return;
        };
        // The log has no clock. `tokens` counts from the start of the run, so the difference is
        // this step's; after a resume `rewind` has taken the repeated steps out of both curves.
        let before = self.last("tokens").unwrap_or(0.0);
        if speed > 0.0 {
            let seconds = self.last("seconds").unwrap_or(0.0);
            self.push("seconds", step, seconds + (tokens - before).max(0.0) / speed);
        }
    }

    /// Everything but steps: evaluations, statistics.
    fn beside(&mut self, step: u64, line: &Map<String, Value>) {
        for (kind, value) in line {
            match (kind.as_str(), value) {
                ("latents", Value::Object(latents)) => {
                    self.histograms = lists(latents.get("histogram"));
                    self.scales = lists(latents.get("scale"));
                }
                (_, Value::Object(groups)) => self.groups(kind, step, groups),
                _ => {}
            }
        }
    }

    fn groups(&mut self, kind: &str, step: u64, groups: &Map<String, Value>) {
        for (group, value) in groups {
            if let Some(number) = value.as_f64() {
                self.push(&format!("{kind}/{group}"), step, number);
            }
            for (name, value) in value.as_object().into_iter().flatten() {
                if let Some(number) = value.as_f64() {
                    self.push(&format!("{kind}/{group}/{name}"), step, number);
                }
            }
        }
    }

    fn push(&mut self, name: &str, step: u64, value: f64) {
        // Not `entry` alone: it would need an owned name for each figure of each line.
        match self.curves.get_mut(name) {
            Some(curve) => curve.push(step, value),
            None => self.curves.entry(name.to_owned()).or_default().push(step, value),
        }
    }

    fn mark(&mut self, step: u64, event: String) {
        if self.events.len() < MOST_MARKS {
            self.events.push((step, event));
        }
    }

    fn rewind(&mut self, step: u64) {
        self.curves.values_mut().for_each(|curve| curve.rewind(step));
        self.phases.retain(|(at, _)| *at < step);
        self.skipped.retain(|at| *at < step);
    }
}

/// Names of figures that have panels of their own or need none.
const KNOWN: [&str; 10] = [
    "loss",
    "lr",
    "weight_decay",
    "grad_norm",
    "tokens_per_second",
    "tokens",
    "tokens_this_rank",
    "seconds",
    "ranks",
    "step",
];

/// Lists of numbers by name.
fn lists(value: Option<&Value>) -> BTreeMap<String, Vec<f64>> {
    let numbers = |list: &Value| {
        let list = list.as_array()?.iter();
        Some(list.map(|number| number.as_f64().unwrap_or(0.0)).collect())
    };
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, list)| Some((name.clone(), numbers(list)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> RunHistory {
        let mut history = RunHistory::default();
        for line in lines {
            history.line(line.as_bytes());
        }
        history
    }

    fn step(step: u64, loss: &str) -> String {
        let tokens = 100 * step;
        format!(
            r#"{{"step":{step},"phase":"main","tokens":{tokens},"loss":{loss},"lr":0.001,"tokens_per_second":50.0,"skipped":{}}}"#,
            loss == "null"
        )
    }

    #[test]
    fn the_later_line_of_a_step_wins_and_its_time_counts_once() {
        let lines = [step(1, "5.0"), step(2, "4.0"), step(3, "3.0"), step(2, "4.5")];
        let mut history = of(&lines.each_ref().map(String::as_str));
        assert_eq!(history.curve("loss").unwrap().points(), [(1, 5.0), (2, 4.5)]);
        assert_eq!((history.step(), history.last("seconds")), (2, Some(4.0)));
        history.line(br#"{"event":"resume","from_step":1}"#);
        assert_eq!(history.curve("loss").unwrap().points(), [(1, 5.0)]);
        assert_eq!((history.step(), &history.events[..]), (1, &[(1, "resume".to_owned())][..]));
        assert_eq!(history.phases, [(1, "main".to_owned())]);
    }

    #[test]
    fn a_step_without_a_loss_is_skipped_and_other_lines_have_figures_of_their_own() {
        let skipped = step(1, "null");
        let eval = r#"{"step":1,"eval":{"validation":{"nll_per_token":2.5}}}"#;
        let ternary = r#"{"step":1,"ternary":{"all":{"zero":0.3,"flipped":null}}}"#;
        let latents = r#"{"step":1,"latents":{"scale":{"q_proj":[0.1,0.2]},"histogram":{}}}"#;
        let history = of(&[&skipped, eval, ternary, latents, "[]", "torn"]);
        assert_eq!(history.skipped, [1]);
        assert_eq!(history.curve("loss"), None);
        assert_eq!(history.last("eval/validation/nll_per_token"), Some(2.5));
        assert_eq!(history.below("ternary/").count(), 1);
        assert_eq!(history.scales["q_proj"], [0.1, 0.2]);
        assert_eq!(history.bad_lines, 2);
    }
}
