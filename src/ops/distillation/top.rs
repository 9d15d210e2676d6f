//! A chunk of tokens whose teacher said only its most likely words.
//!
//! The known words of a column are taken out of its softmax before its exponentials are summed, so that
//! the sum is that of all others: nothing cancels, however little is left to them.

use std::ops::Range;

use super::{DistillationTerms, TokenLosses, TopOutcomes};
use crate::ops::head::{ChunkGradients, ChunkTargets, Exponentials, HeadChunk, Scratch};

/// The logit of a word that is taken out; its exponential is 0 beside any other, and 1 where there is
/// no other.
const TAKEN_OUT: f32 = -1e30;

pub(super) struct TopChunk<'a> {
    student: &'a HeadChunk<'a>,
    targets: &'a ChunkTargets,
    terms: DistillationTerms,
    /// The teacher's log-probabilities of each column, `k + 1`.
    teacher: Vec<&'a [f32]>,
    known: KnownWords,
    /// Outcomes of a column, `k + 1`.
    outcomes: usize,
}

/// The known words of all columns, by id.
pub(super) struct KnownWords {
    words: Vec<KnownWord>,
    columns: usize,
}

/// One of the `k` words of a column.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KnownWord {
    id: usize,
    column: usize,
    /// Which of the `k`.
    outcome: usize,
}

impl KnownWords {
    /// From the ids of each column.
    pub(super) fn new<'a>(columns: impl ExactSizeIterator<Item = &'a [u32]>) -> Self {
        let count = columns.len();
        let of_column = |(column, ids): (usize, &'a [u32])| {
            let word =
                move |(outcome, &id): (usize, &u32)| KnownWord { id: id as usize, column, outcome };
            ids.iter().enumerate().map(word)
        };
        let mut words: Vec<_> = columns.enumerate().flat_map(of_column).collect();
        // By id, the first field: the known words of a block are then one range.
        words.sort_unstable();
        Self { words, columns: count }
    }

    /// The known words of a block, and where their logits are in it.
    fn within(&self, block: &Range<usize>) -> impl Iterator<Item = (KnownWord, usize)> + '_ {
        let first = self.words.partition_point(|known| known.id < block.start);
        let end = self.words.partition_point(|known| known.id < block.end);
        let (start, count) = (block.start, self.columns);
        let place = move |known: KnownWord| (known.id - start) * count + known.column;
        self.words[first..end].iter().map(move |&known| (known, place(known)))
    }

    /// Takes them out of a block's logits.
    pub(super) fn take_out(&self, block: &Range<usize>, logits: &mut [f32]) {
        self.within(block).for_each(|(_, place)| logits[place] = TAKEN_OUT);
    }
}

/// What is known of a column when its softmax is.
struct TopColumn {
    /// `ln Σ exp(z)`
    log_sum: f64,
    /// `R`
    rest: f64,
    /// `p − q`, of each outcome.
    errors: Vec<f64>,
    /// `KL`
    divergence: f64,
}

impl<'a> TopChunk<'a> {
    pub(super) fn new(
        student: &'a HeadChunk<'a>,
        targets: &'a ChunkTargets,
        outcomes: &'a TopOutcomes,
        tokens: &[usize],
        terms: DistillationTerms,
    ) -> Self {
        let teacher = tokens.iter().map(|&token| outcomes.log_probs(token)).collect();
        let known = KnownWords::new(tokens.iter().map(|&token| outcomes.ids(token)));
        Self { student, targets, terms, teacher, known, outcomes: outcomes.count + 1 }
    }

    pub(super) fn run(
        &self,
        scratch: &mut Scratch,
        to: Option<&mut ChunkGradients>,
    ) -> TokenLosses {
        let count = self.student.count;
        let mut passes = Exponentials::new(self.student, scratch, to.is_some());
        let mut logits = vec![0.0; count * self.outcomes];
        let mut of_targets = vec![0.0; count];
        let rest = passes.first_pass(|words, values| {
            // Logits of targets and known words are read before these are taken out.
            for (column, place) in self.targets.within(words) {
                of_targets[column] = values[place];
            }
            for (known, place) in self.known.within(words) {
                logits[known.column * self.outcomes + known.outcome] = values[place];
            }
            self.known.take_out(words, values);
        });
        let rests: Vec<f64> = rest.log_sums().collect();
        let column = |at: usize| self.column(at, &logits[at * self.outcomes..], rests[at]);
        let columns: Vec<TopColumn> = (0..count).map(column).collect();
        if let Some(to) = to {
            // Where the second pass computes logits again, known words are taken out again.
            let take_out =
                |words: &Range<usize>, values: &mut [f32]| self.known.take_out(words, values);
            let factors = |shift: &[f32]| self.factors(&columns, shift);
            let patch = |words: &Range<usize>, grads: &mut [f32]| {
                self.patch(words, &columns, &logits, grads);
            };
            passes.second_pass(&rest, take_out, factors, patch, to);
        }
        let losses = columns.iter().zip(&of_targets);
        TokenLosses {
            cross_entropy: losses.map(|(one, target)| one.log_sum - f64::from(*target)).collect(),
            divergence: columns.iter().map(|column| column.divergence).collect(),
        }
    }

    fn column(&self, at: usize, logits: &[f32], rest: f64) -> TopColumn {
        let teacher = self.teacher[at];
        let has_rest = teacher[self.outcomes - 1] > f32::NEG_INFINITY;
        // Where the teacher knows all words there is no last outcome, for the student neither.
        let outcomes = if has_rest { self.outcomes } else { self.outcomes - 1 };
        let known = logits[..self.outcomes - 1].iter().map(|&logit| f64::from(logit));
        let all: Vec<f64> = known.chain([rest]).collect();
        let tempered = |values: &mut dyn Iterator<Item = f64>| {
            log_softmax(values.map(|value| value / self.terms.temperature).collect())
        };
        let student = tempered(&mut all[..outcomes].iter().copied());
        let teacher = tempered(&mut teacher[..outcomes].iter().map(|&value| f64::from(value)));
        let (mut errors, mut divergence) = (Vec::with_capacity(self.outcomes), 0.0);
        for (student, teacher) in student.iter().zip(&teacher) {
            errors.push(student.exp() - teacher.exp());
            // `0 · ln 0` counts as 0; in floats it is NaN.
            if *teacher > f64::NEG_INFINITY {
                divergence += teacher.exp() * (teacher - student);
            }
        }
        errors.resize(self.outcomes, 0.0);
        // R stands for all other words, so this is `ln Σ exp(z)` over the vocabulary.
        TopColumn { log_sum: log_sum_exp(&all), rest, errors, divergence }
    }

    /// What turns an exponential of a word that is not known into the gradient of its logit.
    fn factors(&self, columns: &[TopColumn], shift: &[f32]) -> Vec<f32> {
        let DistillationTerms { cross_entropy: a, logits: b, temperature } = self.terms;
        let of = |((weight, column), shift): ((&f32, &TopColumn), &f32)| {
            let error = column.errors[self.outcomes - 1];
            let of_rest = a * (column.rest - column.log_sum).exp() + b / temperature * error;
            // An exponential times this is `exp(z − R)`, the word's share of the rest.
            let share = (f64::from(*shift) - column.rest).exp();
            (f64::from(*weight) * share * of_rest) as f32
        };
        self.targets.weights.iter().zip(columns).zip(shift).map(of).collect()
    }

    /// The gradients of the known words and of the targets.
    fn patch(
        &self,
        words: &Range<usize>,
        columns: &[TopColumn],
        logits: &[f32],
        grads: &mut [f32],
    ) {
        let DistillationTerms { cross_entropy: a, logits: b, temperature } = self.terms;
        // Known words first, overwriting what the factors made of them: a target may be one.
        for (KnownWord { column, outcome, .. }, place) in self.known.within(words) {
            let TopColumn { log_sum, errors, .. } = &columns[column];
            let logit = f64::from(logits[column * self.outcomes + outcome]);
            let error = a * (logit - log_sum).exp() + b / temperature * errors[outcome];
            grads[place] = (f64::from(self.targets.weights[column]) * error) as f32;
        }
        for (column, place) in self.targets.within(words) {
            grads[place] -= self.targets.weights[column] * a as f32;
        }
    }
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln() + largest
}

fn log_softmax(values: Vec<f64>) -> Vec<f64> {
    let sum = log_sum_exp(&values);
    values.into_iter().map(|value| value - sum).collect()
}
