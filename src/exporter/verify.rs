//! Verifies an exported file: does it hold its source's model, and do engine and training agree on
//! it?
//!
//! Every code and scale is compared with the source. Then fixed sequences run through the engine
//! and through the training forward, both from the written file, and the logits of every position
//! are compared. Neither needs the whole model as floats: the training forward holds one block at a
//! time, and logits are compared in chunks of positions.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use bitnet_engine::{EngineError, Model, ThreadPool, Workspace};
use bitnet_format::figures::{grouped, significant};
use bitnet_format::matrix::Matrix;
use bitnet_format::source::row_chunks;
use bitnet_format::{FormatError, ModelSpec, StoredModel, TensorEntry, TensorSource, tensor_table};
use rand::Rng;
use serde::Serialize;

use crate::device;
use crate::error::TrainError;
use crate::model::{HiddenStates, argmax, streamed_hidden};
use crate::platform::Signals;
use crate::random;

/// Differences between a written file and its source, and between the programs that run it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Verification {
    /// Ternary codes compared.
    pub codes: usize,
    /// Codes that differ.
    pub code_differences: usize,
    /// Largest relative difference of a scale.
    pub largest_scale_difference: f32,
    /// Largest difference of a logit between engine and training forward.
    pub largest_logit_difference: f32,
    /// Positions compared.
    pub positions: usize,
    /// Tokens of the longest sequence.
    pub longest_sequence: usize,
    /// Positions where no logit differs by more than 1e-3. At the others, or at a position before
    /// them, an activation was so close to the border of two 8-bit codes that the order of a sum
    /// decided its code.
    pub close: usize,
    /// Positions where the most likely token differs.
    pub greedy_disagreements: usize,
}

/// One line that fits a terminal; [`Verification::details`] has the rest.
impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verified: ")?;
        if self.codes > 0 {
            write!(f, "codes equal")?;
        }
        if self.positions == 0 {
            return write!(f, ", logits not compared");
        }
        if self.codes > 0 {
            write!(f, ", ")?;
        }
        let (equal, of) = (self.positions - self.greedy_disagreements, self.positions);
        let largest = significant(self.largest_logit_difference.into());
        write!(f, "logits within {largest}, same token {equal} of {of} times")
    }
}

impl Verification {
    /// What was compared, in full.
    pub fn details(&self) -> String {
        format!(
            "  {} of {} codes as in the source, scales within {:.1e}; logits of engine and training \
             forward within 1e-3 at {} of {} positions, in sequences of up to {} tokens",
            grouped((self.codes - self.code_differences) as u64),
            grouped(self.codes as u64),
            self.largest_scale_difference,
            self.close,
            self.positions,
            self.longest_sequence,
        )
    }
}

/// Several short sequences: a near-tie at the start of one moves all of it, but rarely all of them.
const SHORT_SEQUENCES: usize = 3;
const SHORT_TOKENS: usize = 48;

/// One long sequence, as long as the context allows up to this. Rotary angles grow with the
/// position, so a difference in their table only shows far from the start.
const LONG_TOKENS: usize = 2048;

/// Logits of each program that are in memory at a time: 128 MB.
const LOGITS_AT_ONCE: usize = 32 << 20;

/// Compares the file at `written` with the model it was made from, then runs it. `signals` are polled
/// between matrices, blocks and chunks of positions.
///
/// # Errors
/// When the written file does not open, when codes are others than the source's or logits are no numbers,
/// and at a stop.
pub fn verify(
    source: &dyn TensorSource,
    written: &Path,
    signals: &Signals,
) -> Result<Verification, TrainError> {
    let going_on = || signals.stop().map_or(Ok(()), |_| Err(FormatError::Interrupted));
    compare(source, written, &going_on)
        .map_err(|error| match (error, signals.stop()) {
            (TrainError::Format(FormatError::Interrupted), Some(stop)) => {
                TrainError::VerificationStopped { path: written.to_owned(), stop }
            }
            (error, _) => error,
        })?
        .judged(written)
}

/// Asked between two parts of the work; an error ends it.
type GoingOn<'a> = &'a dyn Fn() -> Result<(), FormatError>;

fn compare(
    source: &dyn TensorSource,
    written: &Path,
    going_on: GoingOn,
) -> Result<Verification, TrainError> {
    let written_model = StoredModel::open(written)?;
    let mut total = Verification::default();
    total.compare_matrices(source, &written_model, going_on)?;
    total.compare_logits(&written_model, written, going_on)?;
    Ok(total)
}

impl Verification {
    /// Refuses what no rounding explains.
    fn judged(self, written: &Path) -> Result<Self, TrainError> {
        let what = if self.code_differences > 0 {
            let (differ, of) = (self.code_differences as u64, self.codes as u64);
            format!(
                "{} of {} ternary codes are others than those of the source",
                grouped(differ),
                grouped(of)
            )
        } else if self.largest_logit_difference.is_nan() {
            "it was written, and computes logits that are no numbers".to_owned()
        } else {
            return Ok(self);
        };
        Err(FormatError::Container { path: written.to_owned(), what }.into())
    }

    fn compare_matrices(
        &mut self,
        source: &dyn TensorSource,
        written: &StoredModel,
        going_on: GoingOn,
    ) -> Result<(), FormatError> {
        let table = tensor_table(source.spec());
        for entry in table.iter().filter(|entry| entry.is_ternary(source.spec())) {
            going_on()?;
            if entry.group_width(source.spec()).is_some() {
                self.compare_groups(source, written, entry)?;
                continue;
            }
            let (ours, our_scale) = source.matrix(entry)?.quantised();
            let (theirs, their_scale) = quantised(written.matrix(entry)?);
            let differ = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
            self.codes += ours.len();
            self.code_differences += differ;
            // Some forms store what to divide by; compared is what both multiply with.
            let ratio = their_scale / our_scale.multiplier();
            self.largest_scale_difference =
                larger(self.largest_scale_difference, (ratio - 1.0).abs());
        }
        Ok(())
    }

    /// Codes with a scale for each group; a form may repeat a group's scale in smaller blocks, and has
    /// none in a block of zeros.
    fn compare_groups(
        &mut self,
        source: &dyn TensorSource,
        written: &StoredModel,
        entry: &TensorEntry,
    ) -> Result<(), FormatError> {
        for rows in row_chunks(entry) {
            let (ours, theirs) =
                (source.grouped(entry, rows.clone())?, written.grouped(entry, rows)?);
            let pairs = ours.codes().iter().zip(theirs.codes());
            self.codes += ours.codes().len();
            self.code_differences += pairs.filter(|(a, b)| a != b).count();
            // Block by block of the smaller width, each block being within one of the larger.
            let smaller = ours.width().min(theirs.width());
            for first in (0..ours.codes().len()).step_by(smaller) {
                let ours = ours.scales()[first / ours.width()];
                let theirs = theirs.scales()[first / theirs.width()];
                if ours != 0.0 && theirs != 0.0 {
                    let difference = (theirs / ours - 1.0).abs();
                    self.largest_scale_difference =
                        larger(self.largest_scale_difference, difference);
                }
            }
        }
        Ok(())
    }

    /// Both programs run the same random tokens. The hidden states of the training forward are
    /// computed first, so that its blocks and the engine's weights are not in memory together.
    fn compare_logits(
        &mut self,
        model: &StoredModel,
        path: &Path,
        going_on: GoingOn,
    ) -> Result<(), TrainError> {
        let context = model.spec().context_length();
        let (short, long) = (SHORT_TOKENS.min(context), LONG_TOKENS.min(context));
        let mut groups = vec![sequences(model.spec(), 0..SHORT_SEQUENCES, short)];
        if long > short {
            groups.push(sequences(model.spec(), SHORT_SEQUENCES..SHORT_SEQUENCES + 1, long));
        }
        self.longest_sequence = long;
        let hidden = streamed_hidden(model, &groups, &device::cpu(), going_on)?;
        let engine = Model::load(path)?;
        let threads = ThreadPool::new(rayon::current_num_threads())?;
        let mut workspace = Workspace::new(&threads);
        for (group, hidden) in groups.iter().zip(&hidden) {
            for (index, tokens) in group.iter().enumerate() {
                // Hidden states of a group lie one sequence behind the other.
                let positions = index * tokens.len()..(index + 1) * tokens.len();
                let expected = Expected { hidden, positions, going_on };
                self.compare_sequence(&engine, &mut workspace, tokens, &expected)?;
            }
        }
        Ok(())
    }

    /// Compares every position of one sequence, some positions at a time.
    fn compare_sequence(
        &mut self,
        engine: &Model,
        workspace: &mut Workspace,
        tokens: &[u32],
        expected: &Expected,
    ) -> Result<(), TrainError> {
        let vocab = engine.spec().vocab_size;
        let mut cache = engine.new_cache();
        let mut first = expected.positions.start;
        // Logits of the long sequence with a vocabulary of 128,256 would take a gigabyte at once.
        for tokens in tokens.chunks((LOGITS_AT_ONCE / vocab).max(1)) {
            (expected.going_on)()?;
            let logits = expected.hidden.logits(first..first + tokens.len())?;
            let found = match engine.forward_all(workspace, &mut cache, tokens) {
                // Judged at the end, by the name of the file.
                Err(EngineError::NotANumber) => {
                    self.largest_logit_difference = f32::NAN;
                    return Ok(());
                }
                found => found?,
            };
            for (found, expected) in found.chunks(vocab).zip(logits.chunks(vocab)) {
                self.add(found, expected);
            }
            first += tokens.len();
        }
        Ok(())
    }

    fn add(&mut self, found: &[f32], expected: &[f32]) {
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, larger);
        self.largest_logit_difference = larger(self.largest_logit_difference, largest);
        self.close += usize::from(largest <= 1e-3);
        self.positions += 1;
        self.greedy_disagreements += usize::from(argmax(found) != argmax(expected));
    }
}

/// The larger of two differences, or NaN where one is: `f32::max` would call a NaN logit close.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a >= b { a } else { b }
}

/// What the training forward gave for one sequence.
struct Expected<'a> {
    hidden: &'a HiddenStates<'a>,
    positions: Range<usize>,
    going_on: GoingOn<'a>,
}

/// Random token ids, the same in every verification.
fn sequences(spec: &ModelSpec, indices: Range<usize>, tokens: usize) -> Vec<Vec<u32>> {
    let sequence = |index| {
        let mut draw = random::keyed(0, "verify", 0, index as u64);
        // A remainder draws small ids a little more often, which changes nothing that is compared.
        (0..tokens).map(|_| draw.next_u32() % spec.vocab_size as u32).collect()
    };
    indices.map(sequence).collect()
}

fn quantised(matrix: Matrix) -> (Vec<i8>, f32) {
    let (codes, scale) = matrix.quantised();
    (codes, scale.multiplier())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FreshModel;
    use bitnet_format::convert::hf::write_packed;
    use std::cell::Cell;

    #[test]
    fn a_verification_is_summed_up_in_one_short_line() {
        let whole = Verification {
            codes: 2_084_044_800,
            largest_logit_difference: 0.012_345,
            positions: 2192,
            greedy_disagreements: 1,
            ..Verification::default()
        };
        let line = "verified: codes equal, logits within 0.0123, same token 2191 of 2192 times";
        assert_eq!(whole.to_string(), line);
        assert!(line.len() <= 80);
        whole.judged(Path::new("m")).unwrap();
        let spoiled = Verification { code_differences: 1500, ..whole };
        let refused = spoiled.judged(Path::new("m")).unwrap_err().to_string();
        assert!(refused.starts_with("m: 1,500 of 2,084,044,800 ternary codes"), "{refused}");
        let damaged = Verification { largest_logit_difference: f32::NAN, ..whole };
        assert!(damaged.judged(Path::new("m")).unwrap_err().to_string().contains("no numbers"));
    }

    #[test]
    fn a_logit_that_is_no_number_is_not_close() {
        for (ours, theirs) in [([1.0, f32::NAN], [1.0, 2.0]), ([f32::NAN, 1.0], [0.5, 2.0])] {
            let mut found = Verification::default();
            found.add(&ours, &theirs);
            found.add(&[1.0, 2.0], &[1.0, 2.0]);
            assert!(found.largest_logit_difference.is_nan());
            assert_eq!((found.close, found.positions), (1, 2));
        }
    }

    #[test]
    fn a_stop_ends_a_verification_between_any_two_of_its_parts() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 16\nintermediate_size = 24\nnum_hidden_layers = 2\nvocab_size = 20\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nmax_position_embeddings = 64",
        )
        .unwrap();
        let (folder, fresh) = (tempfile::tempdir().unwrap(), FreshModel::new(spec.clone(), 3));
        write_packed(folder.path(), &spec, |entry| fresh.rows(entry, 0..entry.shape[0])).unwrap();
        let model = StoredModel::open(folder.path()).unwrap();
        let stopping_after = |asked: usize| {
            let left = Cell::new(asked);
            let going_on = || {
                left.set(left.get().checked_sub(1).ok_or(FormatError::Interrupted)?);
                Ok(())
            };
            compare(&model, folder.path(), &going_on)
        };
        // Seven matrices a block, a block, and four sequences.
        let parts = 2 * 7 + 2 + 4;
        for asked in 0..parts {
            let result = stopping_after(asked);
            let stopped = matches!(result, Err(TrainError::Format(FormatError::Interrupted)));
            assert!(stopped, "after {asked}: {result:?}");
        }
        let whole = stopping_after(parts).unwrap();
        assert_eq!((whole.positions, whole.code_differences), (3 * 48 + 64, 0));
    }
}
