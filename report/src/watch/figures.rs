//! A run's state in words that fit a line.

use bitnet_format::figures::{grouped, significant, size};

use crate::facts::{duration, remaining};
use crate::folder::RunFolder;

/// Characters of the bar.
const BAR: usize = 16;

/// The parts of a run's line, the most important first.
pub(super) fn status(run: &RunFolder) -> Vec<String> {
    let (step, steps) = (run.history.step(), run.steps());
    let of = steps.map_or_else(String::new, |steps| format!("/{}", grouped(steps)));
    let mut parts = vec![run.name.clone(), run.state.to_string(), format!("{}{of}", grouped(step))];
    if let Some(loss) = run.history.last("loss") {
        parts.push(format!("loss {loss:.4}"));
    }
    if let Some(steps) = steps {
        parts.push(bar(run, step, steps));
        let left = remaining(run).filter(|_| step < steps);
        parts.extend(left.map(|left| format!("ETA {}", duration(left))));
    }
    if let Some(speed) = run.history.last("tokens_per_second") {
        parts.push(format!("{} tokens/s", grouped(speed as u64)));
    }
    if let Some(bytes) = run.history.last("process/resident_bytes") {
        parts.push(size(bytes as u64));
    }
    if !run.history.skipped.is_empty() {
        parts.push(format!("{} skipped", run.history.skipped.len()));
    }
    parts
}

/// How far a run has come, with a mark where a phase ends.
fn bar(run: &RunFolder, step: u64, steps: u64) -> String {
    let place = |share: f64| (share * BAR as f64).round() as usize;
    let mut cells = vec!['░'; BAR];
    let done = place(step as f64 / steps.max(1) as f64).min(BAR);
    cells[..done].fill('█');
    let phases = run.recipe.get("phase").and_then(toml::Value::as_array);
    let shares = phases.into_iter().flatten().filter_map(|phase| phase.get("share")?.as_float());
    let mut sum = 0.0;
    for share in shares {
        sum += share;
        // The end of the last phase is the end of the bar and has no cell.
        if let Some(cell) = cells.get_mut(place(sum)) {
            *cell = '|';
        }
    }
    let phase = run.history.phases.last().map_or("", |(_, name)| name);
    format!("{} {phase}", cells.into_iter().collect::<String>()).trim_end().to_owned()
}

/// As many parts as fit into `columns`; the first one in any case, cut.
pub(super) fn fitted(parts: &[String], columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let gap = if line.is_empty() { 0 } else { 2 };
        // A part that is too long is skipped, not the rest: a shorter one after it may still fit.
        if line.chars().count() + gap + part.chars().count() <= columns || line.is_empty() {
            line.push_str(&"  "[..gap]);
            line.push_str(part);
        }
    }
    line.chars().take(columns).collect()
}

/// A number at an axis.
pub(super) fn label(value: f64) -> String {
    if value.abs() < 10_000.0 {
        return significant(value);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", grouped(value.abs() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::small_run;

    #[test]
    fn a_line_says_as_much_as_fits() {
        let dir = small_run(10);
        let run = RunFolder::open(dir.path()).unwrap();
        let parts = status(&run);
        let line = fitted(&parts, 200);
        for part in
            ["stopped", "10/20", "loss 4.0000", "ETA 20 s", "50 tokens/s", "300 MB", "1 skipped"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.contains("████████░░░░░░░░ cooldown"), "{line}");
        for columns in [0, 1, 5, 20, 40] {
            assert!(fitted(&parts, columns).chars().count() <= columns);
        }
    }
    #[test]
    fn a_large_label_keeps_its_sign() {
        for (value, expected) in
            [(-9_990.0, "-9,990"), (-12_345.0, "-12,345"), (25_000.4, "25,000"), (0.5, "0.500")]
        {
            assert_eq!(label(value), expected);
        }
    }
}
