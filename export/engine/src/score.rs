//! How likely a model finds given tokens: all of one sequence, or some of many.

use bitnet_kernels::{Kernel, LogSum};

use crate::batch::Sequence;
use crate::sampler::most_likely;
use crate::{EngineError, Model, ThreadPool, Workspace};

/// Positions whose logits exist at one time: `[SCORED, V]` f32.
const SCORED: usize = 32;

/// What one logit costs next to a multiply-add, roughly: an exponential, and the search for the largest.
const COST: usize = 2;

/// What [`score`] finds, one entry a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `ln p(token i | tokens before i)`; `None` for the first, which nothing comes before.
    pub logprobs: Vec<Option<f64>>,
    /// The most likely token after tokens `0 ..= i`; of equals the lowest id.
    pub argmax: Vec<u32>,
}

/// Scores a sequence from an empty context. The softmax is summed as [`LogSum`] says.
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
                let logprob = |&next| LogSoftmax::of(model.kernel(), logits).logprob(next);
                *found = (next.map(logprob), most_likely(logits));
            }
        });
        scores.argmax.extend(found.iter().map(|(_, argmax)| argmax));
        scores.logprobs.extend(found.into_iter().map(|(logprob, _)| logprob));
    }
    scores.logprobs.truncate(tokens.len()); // after the last token nothing is asked
    Ok(scores)
}

/// The log-probabilities of the next token: those of [`score`], bit for bit.
#[derive(Clone, Copy, Debug)]
pub struct LogSoftmax<'a> {
    logits: &'a [f32],
    sum: LogSum,
}

impl<'a> LogSoftmax<'a> {
    /// The distribution that `logits [V]` give.
    pub fn of(kernel: Kernel, logits: &'a [f32]) -> Self {
        Self { logits, sum: LogSum::of(kernel, logits) }
    }

    /// The log-probability of a token of the vocabulary.
    pub fn logprob(&self, token: u32) -> f64 {
        self.sum.logprob(self.logits[token as usize])
    }

    /// The `count` most likely tokens with their log-probabilities, most likely first; of equals the
    /// lowest id.
    pub fn top(&self, count: usize) -> Vec<(u32, f64)> {
        let count = count.min(self.logits.len());
        let order = |a: &u32, b: &u32| {
            let (left, right) = (self.logits[*a as usize], self.logits[*b as usize]);
            right.total_cmp(&left).then(a.cmp(b))
        };
        // Usually a few of very many: most are less likely than the last that is kept.
        let mut best: Vec<u32> = Vec::with_capacity(count + 1);
        for id in 0..self.logits.len() as u32 {
            if best.len() == count && best.last().is_none_or(|last| order(last, &id).is_lt()) {
                continue;
            }
            let place = best.partition_point(|other| order(other, &id).is_lt());
            best.insert(place, id);
            best.truncate(count);
        }
        best.into_iter().map(|id| (id, self.logprob(id))).collect()
    }
}

/// A token that may follow a token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreTarget {
    /// Index of the token that it would follow.
    pub after: usize,
    /// Its id.
    pub token: u32,
}

/// How likely a [`ScoreTarget`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TargetScore {
    /// `ln p(token | all before it)`.
    pub logprob: f64,
    /// Whether no token is likelier; of equals the lowest id.
    pub is_greedy: bool,
}

/// Extends the caches of several sequences by their tokens and scores targets of each, `[S][targets]`,
/// ordered by `after`. Each weight is read once for many tokens, and only tokens that targets follow
/// meet the head. A sequence's scores are those it would have alone.
///
/// # Errors
/// As [`Model::forward_batch`], or a target outside the vocabulary.
pub fn score_batch(
    model: &Model,
    workspace: &mut Workspace,
    sequences: &mut [Sequence],
    targets: &[Vec<ScoreTarget>],
) -> Result<Vec<Vec<TargetScore>>, EngineError> {
    let (threads, vocab_size) = (workspace.threads(), model.spec().vocab_size);
    let unknown = targets.iter().flatten().find(|target| target.token as usize >= vocab_size);
    if let Some(&ScoreTarget { token: id, .. }) = unknown {
        return Err(EngineError::UnknownToken { id, vocab_size });
    }
    let wanted: Vec<Vec<usize>> = targets.iter().map(|targets| places_of(targets)).collect();
    let mut scores: Vec<Vec<TargetScore>> = vec![Vec::new(); sequences.len()];
    model.forward_places(workspace, sequences, &wanted, |places, logits| {
        let mut found = vec![Vec::new(); places.len()];
        threads.split(&mut found, 1, COST * vocab_size, |first, found| {
            let rows = logits.chunks_exact(vocab_size).zip(places).skip(first);
            for (found, (logits, (sequence, token))) in found.iter_mut().zip(rows) {
                *found = score_row(model.kernel(), logits, *token, &targets[*sequence]);
            }
        });
        for ((sequence, _), found) in places.iter().zip(found) {
            scores[*sequence].extend(found);
        }
    })?;
    Ok(scores)
}

/// The tokens that targets follow, each once.
fn places_of(targets: &[ScoreTarget]) -> Vec<usize> {
    let mut places: Vec<usize> = targets.iter().map(|target| target.after).collect();
    places.dedup();
    places
}

/// The targets after one token, whose logits are `[V]`.
fn score_row(
    kernel: Kernel,
    logits: &[f32],
    after: usize,
    targets: &[ScoreTarget],
) -> Vec<TargetScore> {
    let (greedy, all) = (most_likely(logits), LogSoftmax::of(kernel, logits));
    let here = targets.iter().filter(|target| target.after == after);
    here.map(|target| TargetScore {
        logprob: all.logprob(target.token),
        is_greedy: target.token == greedy,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let all = LogSoftmax::of(Kernel::Scalar, &[1.0, -2.0, 300.0, 299.0]);
        let sum: f64 = (0..4).map(|token| all.logprob(token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_most_likely_come_in_order_with_their_own_log_probabilities() {
        let logits = [0.5, 2.0, -1.0, 2.0];
        let all = LogSoftmax::of(Kernel::Scalar, &logits);
        let ids = |count| all.top(count).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(3), [1, 3, 0]);
        assert_eq!(ids(9), [1, 3, 0, 2]);
        assert_eq!(all.top(1)[0].1, all.logprob(1));
        assert!(all.top(0).is_empty());
    }

    fn model() -> Model {
        let spec = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\n\
                    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
                    max_position_embeddings = 256";
        Model::random(&toml::from_str(spec).unwrap(), crate::HeadPrecision::File)
    }

    /// One longer than a pass, one that follows a cache, one with two targets after a token.
    #[test]
    fn several_sequences_have_the_scores_that_each_has_alone() {
        let (model, threads) = (model(), ThreadPool::new(2).unwrap());
        let ids = |from: u32, count: u32| (from..from + count).map(|i| i * 7 % 300).collect();
        let (long, late, short): (Vec<u32>, Vec<u32>, Vec<u32>) =
            (ids(0, 140), ids(3, 20), ids(9, 5));
        let whole: Vec<_> =
            [&long, &late, &short].map(|ids| score(&model, ids, &threads).unwrap()).into();
        let mut workspace = Workspace::new(&threads);
        let mut caches = [model.new_cache(), model.new_cache(), model.new_cache()];
        model.forward(&mut workspace, &mut caches[1], &late[..12]).unwrap();
        let [a, b, c] = &mut caches;
        let mut sequences = [
            Sequence { cache: a, tokens: &long[..139] },
            Sequence { cache: b, tokens: &late[12..19] },
            Sequence { cache: c, tokens: &short[..4] },
        ];
        let target = |after, token| ScoreTarget { after, token };
        let greedy = whole[2].argmax[3];
        let targets = [
            vec![target(0, long[1]), target(138, long[139])],
            vec![target(2, late[15])],
            vec![target(3, short[4]), target(3, greedy)],
        ];
        let scores = score_batch(&model, &mut workspace, &mut sequences, &targets).unwrap();
        let logprobs: Vec<Option<f64>> =
            scores.iter().flatten().map(|score| Some(score.logprob)).collect();
        let alone = [
            whole[0].logprobs[1],
            whole[0].logprobs[139],
            whole[1].logprobs[15],
            whole[2].logprobs[4],
        ];
        assert_eq!(logprobs[..4], alone);
        assert_eq!((scores[2][0].is_greedy, scores[2][1].is_greedy), (short[4] == greedy, true));
        assert!(scores[2][1].logprob >= scores[2][0].logprob);
        assert_eq!(caches.map(|cache| cache.len()), [139, 19, 4]);
    }
}
