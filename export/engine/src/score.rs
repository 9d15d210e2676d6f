//! How likely a model finds a given sequence.

use crate::sampler::most_likely;
use crate::{EngineError, Model, ThreadPool, Workspace};

/// Positions whose logits exist at one time: `[SCORED, V]` f32.
const SCORED: usize = 32;

/// What one logit costs next to a multiply-add, roughly: an exponential in f64.
const COST: usize = 16;

/// What [`score`] finds, one entry a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `ln p(token i | tokens before i)`; `None` for the first, which nothing comes before.
    pub logprobs: Vec<Option<f64>>,
    /// The most likely token after tokens `0 ..= i`; of equals the lowest id.
    pub argmax: Vec<u32>,
}

/// Scores a sequence from an empty context. The softmax is summed in f64.
///
/// # Errors
/// As [`Model::forward`].
pub fn score(model: &Model, tokens: &[u32], threads: &ThreadPool) -> Result<Scores, EngineError> {
    let (mut cache, mut workspace) = (model.new_cache(), Workspace::new(threads));
    model.check(&cache, tokens)?;
    let vocab_size = model.spec().vocab_size;
    let mut scores = Scores { logprobs: vec![None], argmax: Vec::with_capacity(tokens.len()) };
    for start in (0..tokens.len()).step_by(SCORED) {
        let here = &tokens[start..tokens.len().min(start + SCORED)];
        let logits = model.forward_all(&mut workspace, &mut cache, here)?;
        let mut found: Vec<(Option<f64>, u32)> = vec![(None, 0); here.len()];
        threads.split(&mut found, 1, COST * vocab_size, |first, found| {
            let rows = logits.chunks_exact(vocab_size).enumerate().skip(first);
            for (found, (row, logits)) in found.iter_mut().zip(rows) {
                let next = tokens.get(start + row + 1);
                *found = (next.map(|&next| logprob(logits, next)), most_likely(logits));
            }
        });
        scores.argmax.extend(found.iter().map(|(_, argmax)| argmax));
        scores.logprobs.extend(found.into_iter().map(|(logprob, _)| logprob));
    }
    scores.logprobs.truncate(tokens.len()); // after the last token nothing is asked
    Ok(scores)
}

fn logprob(logits: &[f32], token: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    f64::from(logits[token as usize]) - largest - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [1.0, -2.0, 300.0, 299.0];
        let sum: f64 = (0..4).map(|token| logprob(&logits, token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((logprob(&[0.0; 4], 2) - 0.25f64.ln()).abs() < 1e-15);
    }
}
