//! How many rows a step takes: `train.batch`, or fewer in the first steps of a run.
//!
//! A batch warm-up goes from `start` to `batch` in a straight line over `steps` steps, whole rows rounded
//! down; step 1 takes `start` rows and step `steps + 1` the whole batch. A step's rows depend on its number
//! alone, so a resumed run takes the same.

use super::item::Item;
use super::section::Section;

/// The longest warm-up in steps: its rows are counted one step after the other.
const MOST_STEPS: u64 = 1_000_000;

/// Fewer rows in the first steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchWarmup {
    /// Rows of step 1; at least 1 and at most the batch.
    pub start: usize,
    /// Steps that take fewer rows than the batch.
    pub steps: u64,
}

impl BatchWarmup {
    /// Reads `{ start, steps }`; `run` is the length of the run, where it is known.
    pub(super) fn read(item: &Item<'_>, batch: Option<usize>, run: Option<u64>) -> Option<Self> {
        let mut table = Section::of(item, "a table such as { start = 8, steps = 200 }")?;
        let start = table.required("start", "rows of the first step", |item| {
            let start = item.count()?;
            if let Some(batch) = batch.filter(|&batch| batch < start) {
                let message = "more rows than the batch has; expected at most";
                item.problem(format!("{message} {batch}, got {start}"));
            }
            Some(start)
        });
        let steps = table.required("steps", "steps with fewer rows", |item| {
            let steps = item.whole_between(1, MOST_STEPS)?;
            if let Some(run) = run.filter(|&run| run < steps) {
                item.problem(format!("longer than the run; expected at most {run}, got {steps}"));
            }
            Some(steps)
        });
        table.finish();
        Some(Self { start: start?, steps: steps? })
    }
}

/// The rows of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSizes {
    /// `train.batch`.
    pub(super) batch: usize,
    /// `train.batch_warmup`.
    pub(super) warmup: Option<BatchWarmup>,
}

impl BatchSizes {
    /// Rows (dpo: pairs) of `step`, which counts from 1, over all ranks.
    pub fn at(&self, step: u64) -> usize {
        match self.warmup {
            Some(BatchWarmup { start, steps }) if step <= steps => {
                let missing = (self.batch - start) as u128;
                start + (missing * u128::from(step - 1) / u128::from(steps)) as usize
            }
            _ => self.batch,
        }
    }

    /// Rows of the first `steps` steps.
    pub fn rows(&self, steps: u64) -> u64 {
        let fewer = self.warmup_steps().min(steps);
        let first: u64 = (1..=fewer).map(|step| self.at(step) as u64).sum();
        // 10^12 steps of 2^32 rows, which a recipe may ask for, are more than 64 bits hold.
        (steps - fewer).saturating_mul(self.batch as u64).saturating_add(first)
    }

    /// The fewest steps, at least one, that take `rows` rows.
    pub fn steps_for(&self, rows: u64) -> u64 {
        // The steps of the warm-up one by one, then whole batches.
        let mut left = rows;
        for step in 1..=self.warmup_steps() {
            left = left.saturating_sub(self.at(step) as u64);
            if left == 0 {
                return step;
            }
        }
        (self.warmup_steps() + left.div_ceil(self.batch as u64)).max(1)
    }

    fn warmup_steps(&self) -> u64 {
        self.warmup.map_or(0, |warmup| warmup.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(batch: usize, warmup: Option<(usize, u64)>) -> BatchSizes {
        let warmup = warmup.map(|(start, steps)| BatchWarmup { start, steps });
        BatchSizes { batch, warmup }
    }

    #[test]
    fn a_warm_up_grows_from_its_start_to_the_batch() {
        let sizes = sizes(8, Some((2, 3)));
        assert_eq!([1, 2, 3, 4, 99].map(|step| sizes.at(step)), [2, 4, 6, 8, 8]);
        assert_eq!([0, 2, 3, 5].map(|steps| sizes.rows(steps)), [0, 6, 12, 28]);
    }

    #[test]
    fn steps_are_the_fewest_that_take_the_rows() {
        for sizes in [sizes(8, None), sizes(8, Some((2, 3))), sizes(5, Some((5, 2)))] {
            for rows in 1..60 {
                let steps = sizes.steps_for(rows);
                assert!(sizes.rows(steps) >= rows, "{sizes:?}: {rows} rows in {steps}");
                assert!(sizes.rows(steps - 1) < rows, "{sizes:?}: {rows} rows in {steps}");
            }
        }
        assert_eq!(sizes(8, None).steps_for(0), 1);
    }

    #[test]
    fn the_largest_numbers_saturate() {
        let sizes = sizes(u32::MAX as usize, Some((1, MOST_STEPS)));
        assert_eq!(sizes.rows(u64::MAX), u64::MAX);
        assert!(sizes.steps_for(u64::MAX) > MOST_STEPS);
    }
}
