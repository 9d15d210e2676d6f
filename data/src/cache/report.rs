//! What was found in the rows of a set while they were tokenised; stored with the cache.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::reading::ReadingRules;

/// Rows that are listed where some cannot be used.
const LISTED: usize = 10;

/// Counts of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowReport {
    /// All rows of the files.
    pub rows: u64,
    /// Rows without text.
    pub empty: u64,
    /// Rows that cannot be used and were left out.
    pub bad: u64,
    /// What is wrong with the first of these, each with its place.
    pub examples: Vec<String>,
    /// The shapes that were recognised, with their numbers of rows.
    pub shapes: BTreeMap<String, u64>,
}

impl RowReport {
    pub(super) fn add_bad(&mut self, error: &DataError) {
        self.bad += 1;
        if self.examples.len() < LISTED {
            self.examples.push(error.to_string());
        }
    }

    /// Refuses more bad rows than the rules allow.
    pub(super) fn check(&self, rules: &ReadingRules, origin: &str) -> Result<(), DataError> {
        let limit = rules.max_bad_share;
        if self.bad as f64 <= limit * self.rows as f64 {
            return Ok(());
        }
        let (origin, bad, rows) = (origin.to_owned(), self.bad, self.rows);
        let examples = self.examples.join("\n");
        Err(DataError::TooManyBad { origin, bad, rows, limit, examples })
    }

    /// The report as lines for people, without the name of the set.
    pub fn lines(&self) -> Vec<String> {
        let shape = |(shape, rows): (&String, &u64)| format!("{rows} rows of {shape}");
        let mut lines = vec![self.shapes.iter().map(shape).collect::<Vec<_>>().join(", ")];
        if self.bad > 0 {
            let share = 100.0 * self.bad as f64 / self.rows.max(1) as f64;
            lines.push(format!("{} bad rows ({share:.3} %) skipped; the first:", self.bad));
            lines.extend(self.examples.iter().map(|example| format!("  {example}")));
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}
