//! The most likely words of each token of a teacher: one pass over its head finds them, a second sums what
//! all others have, without them, so that nothing cancels.

use bitnet_kernels::Operands;
use rayon::prelude::*;

use super::TopOutcomes;
use super::top::KnownWords;
use crate::latents::Latents;
use crate::ops::OpBackend;
use crate::ops::head::{Exponentials, HeadChunk, HeadMatrix, HeadPass, Scratch, Targets};

/// See [`super::top_outcomes`].
pub(super) fn top_outcomes(
    hidden: &[f32],
    head: &Latents,
    targets: &Targets,
    count: usize,
    backend: OpBackend,
) -> TopOutcomes {
    let (all, trained) = (targets.ids.len(), targets.trained());
    let backend = backend.with_operands(Operands::F32);
    let pass = HeadPass { hidden, head: HeadMatrix::outside(head), backend, trained };
    let (mut ids, mut log_probs) = (vec![0; all * count], vec![NEVER; all * (count + 1)]);
    let mut scratch = Scratch::default();
    pass.values(|chunk, tokens| {
        let (best, log_sums) = best_words(chunk, &mut scratch, count);
        let rests = log_rests(chunk, &mut scratch, &best);
        for (column, &token) in tokens.iter().enumerate() {
            let out = &mut log_probs[token * (count + 1)..][..=count];
            for (at, &(logit, id)) in best[column].iter().enumerate() {
                ids[token * count + at] = id;
                out[at] = (f64::from(logit) - log_sums[column]) as f32;
            }
            // Without other words their log-probability stays `NEVER`.
            if count < chunk.vocab() {
                out[count] = (rests[column] - log_sums[column]) as f32;
            }
        }
    });
    TopOutcomes { count, ids: ids.into(), log_probs: log_probs.into() }
}

/// The log-probability of what cannot be.
const NEVER: f32 = f32::NEG_INFINITY;

/// A word's logit and its id.
type RankedWord = (f32, u32);

/// The best words of each column in order, and `ln Σ exp(logit)`.
fn best_words(
    chunk: &HeadChunk,
    scratch: &mut Scratch,
    count: usize,
) -> (Vec<Vec<RankedWord>>, Vec<f64>) {
    let columns = chunk.count;
    let mut best: Vec<BestWords> = (0..columns).map(|_| BestWords::new(count)).collect();
    let sums = Exponentials::new(chunk, scratch, false).first_pass(|words, logits| {
        best.par_iter_mut().enumerate().for_each(|(column, best)| {
            // Logits lie `[words, tokens]`: those of a token are a column.
            let values = logits[column..].iter().step_by(columns);
            words.clone().zip(values).for_each(|(id, &logit)| best.see(id as u32, logit));
        });
    });
    (best.into_iter().map(BestWords::finish).collect(), sums.log_sums().collect())
}

/// `ln Σ exp(logit)` over all words of each column but these.
fn log_rests(chunk: &HeadChunk, scratch: &mut Scratch, best: &[Vec<RankedWord>]) -> Vec<f64> {
    let ids = |words: &Vec<RankedWord>| words.iter().map(|&(_, id)| id).collect::<Vec<_>>();
    let ids: Vec<Vec<u32>> = best.iter().map(ids).collect();
    let known = KnownWords::new(ids.iter().map(Vec::as_slice));
    let mut passes = Exponentials::new(chunk, scratch, false);
    passes.first_pass(|words, logits| known.take_out(words, logits)).log_sums().collect()
}

/// The best words of a column so far.
struct BestWords {
    count: usize,
    /// Up to twice as many as are wanted.
    words: Vec<RankedWord>,
    /// A logit below this is not among them.
    bar: f32,
}

impl BestWords {
    fn new(count: usize) -> Self {
        Self { count, words: Vec::with_capacity(2 * count), bar: f32::NEG_INFINITY }
    }

    fn see(&mut self, id: u32, logit: f32) {
        // An equal logit is let in: `cut` decides by the id.
        if logit < self.bar {
            return;
        }
        self.words.push((logit, id));
        // Sorted once the list has doubled, and not at each word.
        if self.words.len() == 2 * self.count {
            self.cut();
        }
    }

    /// Leaves the best, in order.
    fn cut(&mut self) {
        self.words.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.words.truncate(self.count);
        self.bar = self.words.last().map_or(self.bar, |worst| worst.0);
    }

    fn finish(mut self) -> Vec<RankedWord> {
        self.cut();
        self.words
    }
}
