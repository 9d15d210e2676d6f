//! What was found in the rows of a set while they were read; stored with a cache of their tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::reading::{BadRows, ReadingRules};
use crate::turn_order::TurnChanges;

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
    /// Rows that say the same as one before.
    #[serde(default)]
    pub duplicates: u64,
    /// Rows that a filter of the recipe leaves out: by length, pattern, language or field.
    #[serde(default)]
    pub filtered: u64,
    /// Rows of the other side of a split.
    #[serde(default)]
    pub other_side: u64,
    /// What was done to turns.
    #[serde(default)]
    pub turns: TurnChanges,
    /// What is wrong with the first bad rows, each with its place.
    pub examples: Vec<String>,
    /// The shapes that were recognised, with their numbers of rows.
    pub shapes: BTreeMap<String, u64>,
}

impl RowReport {
    /// Rows that nothing is made of.
    pub(crate) fn unused(&self) -> u64 {
        self.empty + self.bad + self.duplicates + self.filtered + self.other_side
    }

    /// Why rows are not used besides being empty, for a message, and what helps.
    pub(crate) fn left_out_words(&self) -> String {
        let reasons = self.left_out().into_iter().filter(|(rows, _)| *rows > 0);
        let mut words: String = reasons.map(|(rows, what)| format!(", {rows} {what}")).collect();
        if self.other_side > 0 {
            words += "\nhint: too few rows for a held-out share: name data.validation, or make more of a text \
                      file with data.text_split = \"blank-line\"";
        }
        words
    }

    fn left_out(&self) -> [(u64, &'static str); 3] {
        [
            (self.duplicates, "duplicates left out"),
            (self.filtered, "rows left out by the filters of their set"),
            (self.other_side, "rows of the other side of the split left out"),
        ]
    }

    fn add_bad(&mut self, error: &DataError) {
        self.bad += 1;
        if self.examples.len() < LISTED {
            self.examples.push(error.to_string());
        }
    }

    /// Refuses more bad rows than the rules allow.
    pub(crate) fn check(&self, rules: &ReadingRules, origin: &str) -> Result<(), DataError> {
        let limit = rules.max_bad_share;
        // As a product and not a quotient: no rows are no bad share.
        if self.bad as f64 <= limit * self.rows as f64 {
            return Ok(());
        }
        let (origin, bad, rows) = (origin.to_owned(), self.bad, self.rows);
        let examples = self.examples.join("\n");
        Err(DataError::TooManyBad { origin, bad, rows, limit, examples })
    }

    /// Turns that are not trained as they were written, if there are any.
    fn turn_line(&self) -> Option<String> {
        (!self.turns.is_none()).then(|| format!("turns: {}", self.turns.words()))
    }

    /// What a run says of a set before its first step: what is not trained as it was written.
    pub fn warnings(&self) -> Vec<String> {
        if self.bad > 0 { self.lines() } else { self.turn_line().into_iter().collect() }
    }

    /// The report as lines for people, without the name of the set.
    pub fn lines(&self) -> Vec<String> {
        let shape = |(shape, rows): (&String, &u64)| format!("{rows} rows of {shape}");
        let mut lines = vec![self.shapes.iter().map(shape).collect::<Vec<_>>().join(", ")];
        for (rows, what) in self.left_out() {
            lines.extend((rows > 0).then(|| format!("{rows} {what}")));
        }
        lines.extend(self.turn_line());
        if self.bad > 0 {
            let share = 100.0 * self.bad as f64 / self.rows.max(1) as f64;
            lines.push(format!("{} bad rows ({share:.3} %) skipped; the first:", self.bad));
            lines.extend(self.examples.iter().map(|example| format!("  {example}")));
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

/// Counts rows while they are read, and ends the reading where bad ones are not to be left out.
#[derive(Debug, Default)]
pub(crate) struct RowTally {
    pub(crate) report: RowReport,
    /// What is wrong with the first bad row.
    first: Option<DataError>,
}

impl RowTally {
    pub(crate) fn add_bad(&mut self, error: DataError) {
        self.report.add_bad(&error);
        self.first.get_or_insert(error);
    }

    /// Under [`BadRows::Error`], refuses the rows once ten bad ones are known, so that files of
    /// another kind are not read to their end.
    pub(crate) fn check_so_far(&mut self, rules: &ReadingRules) -> Result<(), DataError> {
        if self.report.examples.len() < LISTED { Ok(()) } else { self.refuse(rules, " so far") }
    }

    /// The counts of all rows.
    pub(crate) fn finish(
        mut self,
        rules: &ReadingRules,
        origin: &str,
    ) -> Result<RowReport, DataError> {
        self.refuse(rules, "")?;
        self.report.check(rules, origin)?;
        Ok(self.report)
    }

    /// A single bad row is an error of its own kind.
    fn refuse(&mut self, rules: &ReadingRules, so_far: &'static str) -> Result<(), DataError> {
        let Some(first) = self.first.take_if(|_| rules.bad_rows == BadRows::Error) else {
            return Ok(());
        };
        let RowReport { bad, rows, ref examples, .. } = self.report;
        // The first is shown as the error itself; the other nine follow it.
        let others = examples[1..].join("\n");
        match bad {
            1 => Err(first),
            _ => Err(DataError::BadRows { first: Box::new(first), others, bad, rows, so_far }),
        }
    }
}
