//! Is the written file the model it came from, and do the programs agree on it?
//!
//! Every code and scale is compared with the source; then a few fixed sequences go through the
//! engine and through the training forward over the values as they stand in the file. Both read
//! the file anew. The training forward reads one block at a time, so a large model needs no more
//! memory for this than the engine does.

use std::fmt;
use std::path::Path;

use bitnet_engine::{Model, Threads, Workspace};
use bitnet_format::matrix::Matrix;
use bitnet_format::{FormatError, StoredModel, TensorSource, tensor_table};
use rand::Rng;
use serde::Serialize;

use crate::device;
use crate::error::TrainError;
use crate::model::{argmax, streamed_logits};
use crate::random;

/// How far a written file is from its source, and the programs that run it from each other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verification {
    /// Ternary codes compared; all are equal unless the export said which are not.
    pub codes: usize,
    /// Codes that differ.
    pub code_differences: usize,
    /// Largest relative difference of a scale.
    pub largest_scale_difference: f32,
    /// Largest difference of a logit between engine and training forward.
    pub largest_logit_difference: f32,
    /// Positions compared.
    pub positions: usize,
    /// Positions where no logit differs by more than 1e-3: at the others an activation lay so
    /// close to the border of two 8-bit levels, there or at a position before, that the order of
    /// a sum decided.
    pub close: usize,
    /// Positions whose likeliest token differs.
    pub greedy_disagreements: usize,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.codes > 0 {
            write!(
                f,
                "verified: {} of {} codes as in the source, scales within {:.1e}; ",
                self.codes - self.code_differences,
                self.codes,
                self.largest_scale_difference
            )?;
        }
        write!(
            f,
            "engine and training forward differ by at most {:.1e} in a logit, by 1e-3 or less at \
             {} of {} positions; likeliest token equal at {}",
            self.largest_logit_difference,
            self.close,
            self.positions,
            self.positions - self.greedy_disagreements
        )
    }
}

/// Sequences and tokens of the verification.
const CHECK_SEQUENCES: usize = 3;
const CHECK_TOKENS: usize = 48;

/// Compares the file at `written` with the model it was made from, and runs it.
///
/// # Errors
/// When the written file does not open.
pub fn verify(source: &StoredModel, written: &Path) -> Result<Verification, TrainError> {
    let written_model = StoredModel::open(written)?;
    let mut total = Verification {
        codes: 0,
        code_differences: 0,
        largest_scale_difference: 0.0,
        largest_logit_difference: 0.0,
        positions: 0,
        close: 0,
        greedy_disagreements: 0,
    };
    total.compare_matrices(source, &written_model)?;
    if source.spec().quantise {
        total.compare_logits(&written_model, written)?;
    }
    Ok(total)
}

impl Verification {
    fn compare_matrices(
        &mut self,
        source: &StoredModel,
        written: &StoredModel,
    ) -> Result<(), FormatError> {
        let table = tensor_table(source.spec());
        for entry in table.iter().filter(|entry| entry.is_ternary(source.spec())) {
            let (ours, our_scale) = source.matrix(entry)?.quantised();
            let (theirs, their_scale) = quantised(written.matrix(entry)?);
            let differ = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
            self.codes += ours.len();
            self.code_differences += differ;
            let ratio = their_scale / our_scale.multiplier();
            self.largest_scale_difference = self.largest_scale_difference.max((ratio - 1.0).abs());
        }
        Ok(())
    }

    fn compare_logits(&mut self, model: &StoredModel, path: &Path) -> Result<(), TrainError> {
        let vocab = model.spec().vocab_size;
        let time = CHECK_TOKENS.min(model.spec().max_position_embeddings);
        let rows: Vec<Vec<u32>> = (0..CHECK_SEQUENCES)
            .map(|index| {
                let mut draw = random::keyed(0, "verify", 0, index as u64);
                (0..time).map(|_| draw.next_u32() % vocab as u32).collect()
            })
            .collect();
        let expected = streamed_logits(model, &rows, &device::cpu())?;
        let engine = Model::load(path)?;
        let threads = Threads::new(1)?;
        let mut workspace = Workspace::new(&threads);
        for (row, expected) in rows.iter().zip(expected.chunks(time * vocab)) {
            let found = engine.forward_all(&mut workspace, &mut engine.new_cache(), row)?;
            for (found, expected) in found.chunks(vocab).zip(expected.chunks(vocab)) {
                self.add(found, expected);
            }
        }
        Ok(())
    }

    fn add(&mut self, found: &[f32], expected: &[f32]) {
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, f32::max);
        self.largest_logit_difference = self.largest_logit_difference.max(largest);
        self.close += usize::from(largest <= 1e-3);
        self.positions += 1;
        self.greedy_disagreements += usize::from(argmax(found) != argmax(expected));
    }
}

fn quantised(matrix: Matrix) -> (Vec<i8>, f32) {
    let (codes, scale) = matrix.quantised();
    (codes, scale.multiplier())
}
