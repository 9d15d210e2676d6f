//! A chunk of tokens with a teacher that is there: the logits of both are made block by block, twice
//! where they are too many to be kept.
//!
//! One pass down the blocks finds, of each column, both maxima and with them
//!
//! ```text
//! Σ exp(z), Σ exp(z/τ), Σ exp(y/τ), Σ exp(y/τ) · (y − z)         z student, y teacher
//! KL = (the last / the one before) / τ + ln Σ exp(z/τ) − ln Σ exp(y/τ)
//! ```
//!
//! Layout of sums: 64 words in f32, these in f64 from the first word to the last.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_kernels::SimdWork;
use bitnet_kernels::attention::exp;
use rayon::prelude::*;

use super::{DistillationTerms, TokenLosses};
use crate::ops::head::{ChunkGradients, ChunkTargets, ColumnMax, HeadChunk, KEPT, WORDS};
use crate::ops::native::in_rows_with;

/// Words whose terms are summed in f32 before they join the f64 sums.
const SUMMED_WORDS: usize = 64;

pub(super) struct WholeChunk<'a> {
    pub(super) student: &'a HeadChunk<'a>,
    pub(super) teacher: &'a HeadChunk<'a>,
    pub(super) targets: &'a ChunkTargets,
    pub(super) terms: DistillationTerms,
}

/// The sums of each column, every exponential with the maximum of its model subtracted.
struct JointColumns {
    /// The largest of the student's logits, and of the teacher's.
    largest: [Vec<f32>; 2],
    /// `Σ exp(z)`, `Σ exp(z/τ)`, `Σ exp(y/τ)`, `Σ exp(y/τ) · (y − z)`
    sums: [Vec<f64>; 4],
    /// The target's logit.
    targets: Vec<f32>,
}

impl WholeChunk<'_> {
    pub(super) fn run(
        &self,
        memory: (&mut Vec<f32>, &mut Vec<f32>),
        to: Option<&mut ChunkGradients>,
    ) -> TokenLosses {
        let (count, vocab) = (self.student.count, self.student.vocab());
        let keeps = to.is_some() && vocab * count <= KEPT;
        let room = count * if keeps { vocab } else { WORDS.min(vocab) };
        let mut logits = [memory.0, memory.1];
        for logits in &mut logits {
            logits.resize(logits.len().max(room), 0.0);
        }
        let place = |words: &Range<usize>| {
            let first = if keeps { words.start * count } else { 0 };
            first..first + words.len() * count
        };
        let mut columns = JointColumns::new(count);
        for words in self.student.blocks() {
            let [student, teacher] = &mut logits;
            let both = [&mut student[place(&words)], &mut teacher[place(&words)]];
            self.add(&words, both, &mut columns);
        }
        if let Some(to) = to {
            for words in self.student.blocks() {
                let [student, teacher] = &mut logits;
                let both = [&mut student[place(&words)], &mut teacher[place(&words)]];
                self.gradients(&words, both, keeps, &columns, to);
            }
        }
        self.losses(&columns)
    }

    /// Computes the logits of a block and adds its words to the sums.
    fn add(&self, words: &Range<usize>, logits: [&mut [f32]; 2], columns: &mut JointColumns) {
        let [student, teacher] = logits;
        self.student.logits(words, student);
        self.teacher.logits(words, teacher);
        for (column, place) in self.targets.within(words) {
            columns.targets[column] = student[place];
        }
        let (student, teacher) = (&*student, &*teacher);
        // Maxima first: `raise` rescales the sums so far, and the exponentials below have the new
        // maxima subtracted.
        columns.raise(self.student, [student, teacher], self.terms.temperature);
        let [of_student, of_teacher] = &columns.largest;
        let inverse = self.inverse_temperature();
        let parts = SUMMED_WORDS * self.student.count;
        let parts = student.par_chunks(parts).zip(teacher.par_chunks(parts));
        let kernel = self.student.backend.kernel;
        let found: Vec<[Vec<f32>; 4]> = parts
            .map(|(student, teacher)| {
                let shifts = [&**of_student, of_teacher];
                kernel.dispatch(JointSums { student, teacher, shifts, inverse })
            })
            .collect();
        for (sums, part) in found.into_iter().flat_map(|part| (0..4).zip(part)) {
            let pairs = columns.sums[sums].iter_mut().zip(part);
            pairs.for_each(|(sum, more)| *sum += f64::from(more));
        }
    }

    fn gradients(
        &self,
        words: &Range<usize>,
        [student, teacher]: [&mut [f32]; 2],
        kept: bool,
        columns: &JointColumns,
        to: &mut ChunkGradients,
    ) {
        if !kept {
            self.student.logits(words, student);
            self.teacher.logits(words, teacher);
        }
        let count = self.student.count;
        let factors = &self.factors(columns);
        let shifts = columns.largest.each_ref().map(Vec::as_slice);
        let (inverse, kernel) = (self.inverse_temperature(), self.student.backend.kernel);
        // A row of the teacher's logits beside each row of the student's.
        let mut rows: Vec<&[f32]> = teacher.chunks_exact(count).collect();
        in_rows_with(student, count, &mut rows, |_, student, teacher| {
            kernel.dispatch(JointGradient { student, teacher, shifts, factors, inverse });
        });
        let a = self.terms.cross_entropy as f32;
        for (column, place) in self.targets.within(words) {
            student[place] -= self.targets.weights[column] * a;
        }
        self.student.back(words, student, to);
    }

    fn inverse_temperature(&self) -> f32 {
        (1.0 / self.terms.temperature) as f32
    }

    /// What turns the three exponentials of a column into the terms of its gradient.
    fn factors(&self, columns: &JointColumns) -> [Vec<f32>; 3] {
        let DistillationTerms { cross_entropy: a, logits: b, temperature } = self.terms;
        // `a · softmax(z)`, `b/τ · p` and `b/τ · q`; the division by their sums makes them so.
        let numerators = [a, b / temperature, b / temperature];
        std::array::from_fn(|term| {
            let columns = self.targets.weights.iter().zip(&columns.sums[term]);
            let factor = |(weight, sum): (&f32, &f64)| f64::from(*weight) * numerators[term] / sum;
            columns.map(|column| factor(column) as f32).collect()
        })
    }

    fn losses(&self, columns: &JointColumns) -> TokenLosses {
        let JointColumns { largest: [of_student, of_teacher], sums, targets } = columns;
        let temperature = self.terms.temperature;
        let mut losses = TokenLosses { cross_entropy: Vec::new(), divergence: Vec::new() };
        for column in 0..self.student.count {
            let [plain, student, teacher, difference] = [0, 1, 2, 3].map(|sum| sums[sum][column]);
            let (z, y) = (f64::from(of_student[column]), f64::from(of_teacher[column]));
            losses.cross_entropy.push(plain.ln() + z - f64::from(targets[column]));
            // The sums had the maxima `z` and `y` subtracted, over τ; their difference is put back.
            let logs = student.ln() - teacher.ln() + (z - y) / temperature;
            losses.divergence.push(difference / teacher / temperature + logs);
        }
        losses
    }
}

impl JointColumns {
    fn new(count: usize) -> Self {
        Self {
            largest: [(); 2].map(|()| vec![f32::NEG_INFINITY; count]),
            sums: [(); 4].map(|()| vec![0.0; count]),
            targets: vec![0.0; count],
        }
    }

    /// Takes the maxima of a block in, and rescales the sums where they rose.
    fn raise(&mut self, chunk: &HeadChunk, logits: [&[f32]; 2], temperature: f64) {
        for (model, values) in logits.into_iter().enumerate() {
            let largest = &mut self.largest[model];
            let before = largest.clone();
            chunk.backend.kernel.dispatch(ColumnMax { values, largest });
            for (column, (before, largest)) in before.iter().zip(&*largest).enumerate() {
                // Only where the maximum rose: an infinity minus itself would be NaN.
                if before >= largest {
                    continue;
                }
                let fall = f64::from(before - largest);
                let tempered = (fall / temperature).exp();
                if model == 0 {
                    // The first sum is of `exp(z)`, all others are of exponentials over τ.
                    self.sums[0][column] *= fall.exp();
                    self.sums[1][column] *= tempered;
                } else {
                    self.sums[2][column] *= tempered;
                    self.sums[3][column] *= tempered;
                }
            }
        }
    }
}

/// The four sums of some words, by column.
struct JointSums<'a> {
    student: &'a [f32],
    teacher: &'a [f32],
    shifts: [&'a [f32]; 2],
    inverse: f32,
}

impl SimdWork for JointSums<'_> {
    type Output = [Vec<f32>; 4];

    #[inline(always)]
    fn run(self) -> [Vec<f32>; 4] {
        let Self { student, teacher, shifts: [of_student, of_teacher], inverse } = self;
        let count = of_student.len();
        let mut sums = [(); 4].map(|()| vec![0.0; count]);
        let [plain, tempered, teachers, difference] = &mut sums;
        for (z, y) in student.chunks_exact(count).zip(teacher.chunks_exact(count)) {
            for at in 0..count {
                let above = z[at] - of_student[at];
                plain[at] += exp(above);
                tempered[at] += exp(above * inverse);
                let weight = exp((y[at] - of_teacher[at]) * inverse);
                teachers[at] += weight;
                difference[at] += weight * (y[at] - z[at]);
            }
        }
        sums
    }
}

/// The student's logits become their gradients.
struct JointGradient<'a, 'b> {
    student: &'a mut [f32],
    /// Rows of the teacher's logits.
    teacher: &'a [&'b [f32]],
    shifts: [&'a [f32]; 2],
    factors: &'a [Vec<f32>; 3],
    inverse: f32,
}

impl SimdWork for JointGradient<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { student, teacher, shifts: [of_student, of_teacher], factors, inverse } = self;
        let [plain, tempered, teachers] = factors.each_ref().map(Vec::as_slice);
        let count = of_student.len();
        for (z, y) in student.chunks_exact_mut(count).zip(teacher) {
            for at in 0..count {
                let above = z[at] - of_student[at];
                let both = plain[at] * exp(above) + tempered[at] * exp(above * inverse);
                let weight = exp((y[at] - of_teacher[at]) * inverse);
                z[at] = both - teachers[at] * weight;
            }
        }
    }
}
