//! Runs as rows of a table, for people and as JSON.

use bitnet_format::figures::{grouped, significant};
use serde::Serialize;

use crate::error::ReportError;
use crate::facts::{best_validation, duration};
use crate::folder::RunFolder;
use crate::recipe_keys::differing_keys;
use crate::state::RunState;

/// Differing keys that a row shows in a terminal.
const SHOWN_KEYS: usize = 4;

/// What one line of the table says.
#[derive(Clone, Debug, Serialize)]
pub struct RunRow {
    /// The directory.
    pub path: String,
    /// As people call it.
    pub name: String,
    /// Whether it goes on.
    pub state: RunState,
    /// The last step made.
    pub step: u64,
    /// Steps of the whole run, where known.
    pub steps: Option<u64>,
    /// Training loss of the last step.
    pub last_loss: Option<f64>,
    /// Lowest held-out loss, or of a run that evaluates nothing lowest training loss.
    pub best_loss: Option<f64>,
    /// Whether that is held-out loss.
    pub held_out: bool,
    /// Trained tokens.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Recipe keys in which it is not like the other runs, and their values.
    pub keys: serde_json::Map<String, serde_json::Value>,
}

/// A row for each run.
pub fn run_table(runs: &[RunFolder]) -> Vec<RunRow> {
    let recipes: Vec<_> = runs.iter().map(|run| &run.recipe).collect();
    let keys = differing_keys(&recipes);
    runs.iter().zip(keys).map(|(run, keys)| row(run, keys)).collect()
}

fn row(run: &RunFolder, keys: Vec<(String, String)>) -> RunRow {
    let history = &run.history;
    let held_out = best_validation(history);
    let least = history.curve("loss").and_then(super::curve::Curve::least);
    RunRow {
        path: run.path.display().to_string(),
        name: run.name.clone(),
        state: run.state,
        step: history.step(),
        steps: run.steps(),
        last_loss: history.last("loss"),
        best_loss: held_out.or(least).map(|(_, loss)| loss),
        held_out: held_out.is_some(),
        tokens: history.last("tokens").unwrap_or(0.0) as u64,
        seconds: history.last("seconds").unwrap_or(0.0),
        keys: keys.into_iter().map(|(key, value)| (key, value.into())).collect(),
    }
}

/// Sorts by a column, or by a recipe key; numbers by size, missing values last.
///
/// # Errors
/// When no run has such a key.
pub fn sort_rows(rows: &mut [RunRow], key: &str) -> Result<(), ReportError> {
    const COLUMNS: [&str; 8] = ["name", "state", "step", "last", "best", "tokens", "time", "path"];
    let known = COLUMNS.contains(&key) || rows.iter().any(|row| row.keys.contains_key(key));
    if !known && !rows.is_empty() {
        let what = format!(
            "--sort {key}: no such column; expected one of {}, or a recipe key in which the runs differ",
            COLUMNS.join(", ")
        );
        return Err(ReportError::Usage(what));
    }
    rows.sort_by(|a, b| {
        let (a, b) = (a.sorted_by(key), b.sorted_by(key));
        let missing = a.2.cmp(&b.2);
        // A row without a value is last whichever way the others stand; texts have the number 0 and
        // are parted by the text itself.
        missing.then_with(|| a.0.total_cmp(&b.0)).then_with(|| a.1.cmp(&b.1))
    });
    Ok(())
}

impl RunRow {
    /// A number, a text, and whether neither is known.
    fn sorted_by(&self, key: &str) -> (f64, String, bool) {
        let number = |value: Option<f64>| (value.unwrap_or(0.0), String::new(), value.is_none());
        match key {
            "name" => (0.0, self.name.clone(), false),
            "path" => (0.0, self.path.clone(), false),
            "state" => (0.0, self.state.name().to_owned(), false),
            "step" => number(Some(self.step as f64)),
            "last" => number(self.last_loss),
            "best" => number(self.best_loss),
            "tokens" => number(Some(self.tokens as f64)),
            "time" => number(Some(self.seconds)),
            _ => match self.keys.get(key).and_then(|value| value.as_str()) {
                // Values are texts of TOML: numbers sort as numbers, and words come after them by
                // letters.
                Some(text) => (text.parse().unwrap_or(f64::MAX), text.to_owned(), false),
                None => (0.0, String::new(), true),
            },
        }
    }

    /// The names of [`RunRow::cells`].
    pub const HEADINGS: [&str; 8] =
        ["run", "state", "step", "last loss", "best loss", "tokens", "time", "keys that differ"];

    /// As texts of a table.
    pub fn cells(&self) -> [String; 8] {
        let loss = |loss: Option<f64>| loss.map_or_else(|| "–".to_owned(), significant);
        let steps = self.steps.map(|steps| format!(" / {}", grouped(steps))).unwrap_or_default();
        let note = if self.held_out || self.best_loss.is_none() { "" } else { " (train)" };
        let mut keys: Vec<String> = self
            .keys
            .iter()
            .map(|(key, it)| format!("{key}={}", it.as_str().unwrap_or("")))
            .collect();
        let more = keys.len().saturating_sub(SHOWN_KEYS);
        keys.truncate(SHOWN_KEYS);
        if more > 0 {
            keys.push(format!("and {more} more"));
        }
        [
            self.name.clone(),
            self.state.name().to_owned(),
            format!("{}{steps}", grouped(self.step)),
            loss(self.last_loss),
            format!("{}{note}", loss(self.best_loss)),
            grouped(self.tokens),
            duration(self.seconds),
            keys.join(" "),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::small_run;

    #[test]
    fn runs_are_told_apart_by_their_keys_and_sorted_by_one() {
        let (long, short) = (small_run(12), small_run(3));
        let change = |dir: &tempfile::TempDir, batch: u32| {
            let path = dir.path().join("recipe.resolved.toml");
            let text = fs_err::read_to_string(&path).unwrap();
            let text = text.replace("batch = 8", &format!("batch = {batch}"));
            fs_err::write(path, text).unwrap();
        };
        change(&long, 16);
        change(&short, 4);
        let runs = [long, short].each_ref().map(|dir| RunFolder::open(dir.path()).unwrap());
        let mut rows = run_table(&runs);
        assert_eq!(rows[0].keys["train.batch"], "16");
        assert_eq!((rows[0].step, rows[0].tokens), (12, 1200));
        for key in ["train.batch", "step", "tokens", "time"] {
            sort_rows(&mut rows, key).unwrap();
            assert_eq!(rows[0].step, 3, "{key}");
        }
        sort_rows(&mut rows, "best").unwrap();
        assert_eq!(rows[0].step, 12, "it learned for longer");
        assert!(sort_rows(&mut rows, "zzz").is_err());
        assert_eq!(rows[0].cells()[2], "12 / 20");
    }
}
