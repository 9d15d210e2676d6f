//! Scores many continuations: beginnings once, several sequences through the weights in one pass,
//! what is long first.

use std::cell::RefCell;
use std::rc::Rc;

use bitnet_engine::{
    EngineError, KvCache, Model, ScoreTarget, Sequence, TargetScore, ThreadPool, Workspace,
    score_batch,
};

use crate::encode::TokenRequest;
use crate::error::EvalError;
use crate::prefix_tree::{PrefixNode, prefix_trees};
use crate::progress::{ProgressCallback, tell};

/// Tokens that are handed to the engine in one call.
const CALL_TOKENS: usize = 512;
/// Sequences in one call; each has a cache of its own.
const CALL_SEQUENCES: usize = 64;

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContinuationScore {
    /// `Σ ln p` over its tokens.
    pub loglikelihood: f64,
    /// Whether every token is the most likely one at its position.
    pub is_greedy: bool,
}

/// What [`score_requests`] found and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// One for each request.
    pub scores: Vec<ContinuationScore>,
    /// Requests whose context was cut from the left.
    pub truncated: usize,
    /// Tokens that went through the model.
    pub computed_tokens: usize,
    /// Tokens of all requests, each with its context.
    pub request_tokens: usize,
}

/// Scores requests. Not a bit of a score depends on what else is asked for.
///
/// `progress` gets the tokens done and those in all, after each call of the engine.
///
/// # Errors
/// A token outside the vocabulary, [`EvalError::Interrupted`].
pub fn score_requests(
    model: &Model,
    threads: &ThreadPool,
    requests: &[TokenRequest],
    progress: ProgressCallback<'_>,
) -> Result<Scored, EvalError> {
    let limit = model.spec().context_length();
    let inputs: Vec<(Vec<u32>, bool)> = requests.iter().map(|it| it.input(limit)).collect();
    let truncated = inputs.iter().filter(|(_, cut)| *cut).count();
    let inputs: Vec<Vec<u32>> = inputs.into_iter().map(|(ids, _)| ids).collect();
    let trees = prefix_trees(&inputs);
    let total = trees.iter().map(PrefixNode::total).sum();
    let request_tokens = inputs.iter().map(Vec::len).sum();
    let empty = ContinuationScore { loglikelihood: 0.0, is_greedy: true };
    let mut run = Run {
        model,
        workspace: Workspace::new(threads),
        requests,
        inputs: &inputs,
        scores: vec![empty; requests.len()],
    };
    // The empty cache is the parent of all trees: they take their caches from a pool as children
    // do.
    let root = CachePool::root(model.new_cache(), trees.len());
    // A stack, filled backwards: the tree with the most tokens is taken first.
    let mut waiting: Vec<Job> = trees.iter().rev().map(|node| Job::new(node, &root)).collect();
    let mut done = 0;
    while !waiting.is_empty() {
        let jobs = next_jobs(&mut waiting);
        done += jobs.iter().map(|job| job.node.tokens.len()).sum::<usize>();
        run.call(jobs, &mut waiting)?;
        tell(progress, done, total)?;
    }
    Ok(Scored { scores: run.scores, truncated, computed_tokens: total, request_tokens })
}

/// A node whose parent is in a cache.
struct Job<'t> {
    node: &'t PrefixNode,
    parent: Rc<RefCell<CachePool>>,
    /// Requests with targets among the node's tokens.
    requests: Vec<usize>,
}

impl<'t> Job<'t> {
    fn new(node: &'t PrefixNode, parent: &Rc<RefCell<CachePool>>) -> Self {
        Self { node, parent: Rc::clone(parent), requests: below(node) }
    }
}

/// All requests that pass through a node.
fn below(node: &PrefixNode) -> Vec<usize> {
    let mut all = node.sequences.clone();
    node.children.iter().for_each(|child| all.extend(below(child)));
    all
}

/// The next nodes, from the last on: deep ones before wide ones, so that few caches are alive.
fn next_jobs<'t>(waiting: &mut Vec<Job<'t>>) -> Vec<Job<'t>> {
    let (mut jobs, mut tokens) = (Vec::new(), 0);
    while let Some(job) = waiting.last() {
        tokens += job.node.tokens.len();
        if !jobs.is_empty() && (tokens > CALL_TOKENS || jobs.len() == CALL_SEQUENCES) {
            break;
        }
        // From the end of a stack: children that were just pushed come first, so their parent's
        // cache is soon free again.
        jobs.extend(waiting.pop());
    }
    jobs
}

struct Run<'r, 'p> {
    model: &'r Model,
    workspace: Workspace<'p>,
    requests: &'r [TokenRequest],
    inputs: &'r [Vec<u32>],
    scores: Vec<ContinuationScore>,
}

/// A target with the request that it belongs to; targets of one node are sorted by place.
type Owned = (ScoreTarget, usize);

impl Run<'_, '_> {
    fn call<'t>(
        &mut self,
        jobs: Vec<Job<'t>>,
        waiting: &mut Vec<Job<'t>>,
    ) -> Result<(), EngineError> {
        let mut caches: Vec<KvCache> =
            jobs.iter().map(|job| job.parent.borrow_mut().take()).collect();
        let owned: Vec<Vec<Owned>> = jobs.iter().map(|job| self.targets(job)).collect();
        let targets: Vec<Vec<ScoreTarget>> =
            owned.iter().map(|owned| owned.iter().map(|(target, _)| *target).collect()).collect();
        let mut sequences: Vec<Sequence> = jobs
            .iter()
            .zip(&mut caches)
            .map(|(job, cache)| Sequence {
                cache,
                tokens: &self.inputs[job.node.of][job.node.tokens.clone()],
            })
            .collect();
        let found = score_batch(self.model, &mut self.workspace, &mut sequences, &targets)?;
        for (owned, found) in owned.iter().zip(found) {
            for ((_, request), TargetScore { logprob, is_greedy }) in owned.iter().zip(found) {
                let score = &mut self.scores[*request];
                // A continuation may lie in several nodes; its parts arrive in order, since
                // children wait for parents.
                score.loglikelihood += logprob;
                score.is_greedy &= is_greedy;
            }
        }
        for (job, cache) in jobs.into_iter().zip(caches) {
            finish(&job, cache, waiting);
        }
        Ok(())
    }

    /// What is asked for after the tokens of a node. A target of several requests that go on
    /// differently below is scored for each of them.
    fn targets(&self, job: &Job) -> Vec<Owned> {
        let here = &job.node.tokens;
        let mut all = Vec::new();
        for &index in &job.requests {
            let continuation = &self.requests[index].continuation;
            // A target is scored by the node that holds the token *before* it: the logits after
            // token i predict token i + 1.
            let first = self.inputs[index].len() - continuation.len();
            for (place, &token) in (first..).zip(continuation) {
                if here.contains(&place) {
                    all.push((ScoreTarget { after: place - here.start, token }, index));
                }
            }
        }
        // `score_batch` takes targets in the order of their places; the sort is stable, so requests
        // with one target stay in the order in which their scores are read.
        all.sort_by_key(|(target, _)| target.after);
        all
    }
}

/// Makes the children of a node ready, or gives its cache back.
fn finish<'t>(job: &Job<'t>, cache: KvCache, waiting: &mut Vec<Job<'t>>) {
    if job.node.children.is_empty() {
        CachePool::give_back(&job.parent, cache);
        return;
    }
    let pool = CachePool::child(cache, job.node.children.len(), &job.parent);
    waiting.extend(job.node.children.iter().rev().map(|node| Job::new(node, &pool)));
}

/// Caches that hold a node's tokens and all before them, for its children.
struct CachePool {
    len: usize,
    /// Children that have taken none yet.
    waiting: usize,
    spare: Vec<KvCache>,
    parent: Option<Rc<RefCell<CachePool>>>,
}

impl CachePool {
    fn root(cache: KvCache, children: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { len: 0, waiting: children, spare: vec![cache], parent: None }))
    }

    fn child(cache: KvCache, children: usize, parent: &Rc<RefCell<Self>>) -> Rc<RefCell<Self>> {
        let (len, parent) = (cache.len(), Some(Rc::clone(parent)));
        Rc::new(RefCell::new(Self { len, waiting: children, spare: vec![cache], parent }))
    }

    /// A cache for the next child; one is kept as long as others wait.
    fn take(&mut self) -> KvCache {
        self.waiting -= 1;
        match self.spare.pop() {
            // The last child, or one with a spare, takes a cache as it is; otherwise it gets a
            // copy, which shares pages and costs little.
            Some(cache) if self.waiting == 0 || !self.spare.is_empty() => cache,
            Some(kept) => {
                let copy = kept.clone();
                self.spare.push(kept);
                copy
            }
            None => unreachable!("a cache is kept for children that wait"),
        }
    }

    /// Takes a finished child's cache for one that waits, here or further up.
    fn give_back(pool: &Rc<RefCell<Self>>, mut cache: KvCache) {
        let mut at = Some(Rc::clone(pool));
        while let Some(held) = at.take() {
            let mut pool = held.borrow_mut();
            // A pool wants no more caches than it has children; otherwise the cache serves a pool
            // further up, or is freed.
            if pool.waiting > pool.spare.len() {
                cache.truncate(pool.len);
                pool.spare.push(cache);
                return;
            }
            at.clone_from(&pool.parent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_engine::{HeadPrecision, score};
    use std::ops::ControlFlow;

    fn model() -> Model {
        let spec = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\n\
                    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
                    max_position_embeddings = 64";
        Model::random(&toml::from_str(spec).unwrap(), HeadPrecision::File)
    }

    fn ids(from: u32, count: u32) -> Vec<u32> {
        (from..from + count).map(|i| i * 37 % 300).collect()
    }

    /// Each request alone, from an empty cache.
    fn alone(model: &Model, threads: &ThreadPool, request: &TokenRequest) -> ContinuationScore {
        let mut all = [request.context.as_slice(), &request.continuation].concat();
        let cut = all.len().saturating_sub(65);
        let all = all.split_off(cut);
        // The last token is only asked for, so a full context needs no place for it.
        let count = request.continuation.len();
        let mut cache = model.new_cache();
        let mut workspace = Workspace::new(threads);
        let first = all.len() - 1 - count;
        let targets = (first..).zip(&request.continuation);
        let targets: Vec<_> = targets.map(|(after, &token)| ScoreTarget { after, token }).collect();
        let mut sequence = [Sequence { cache: &mut cache, tokens: &all[..all.len() - 1] }];
        let found = score_batch(model, &mut workspace, &mut sequence, &[targets]).unwrap();
        ContinuationScore {
            loglikelihood: found[0].iter().map(|it| it.logprob).sum(),
            is_greedy: found[0].iter().all(|it| it.is_greedy),
        }
    }

    #[test]
    fn shared_beginnings_change_no_bit_of_a_score() {
        let (model, threads) = (model(), ThreadPool::new(2).unwrap());
        let shots = ids(5, 20);
        let mut requests = Vec::new();
        for question in 0..9 {
            let context = [shots.clone(), ids(question * 11, 6 + question)].concat();
            for choice in 0..4 {
                let continuation = ids(question + choice * 3, 1 + choice);
                requests.push(TokenRequest { context: context.clone(), continuation });
            }
        }
        // The context of another, one too long for the model, the same twice.
        requests.push(TokenRequest { context: ids(5, 3), continuation: ids(8, 30) });
        requests.push(TokenRequest { context: ids(1, 70), continuation: ids(2, 5) });
        requests.push(requests[0].clone());
        let mut calls = Vec::new();
        let scored = score_requests(&model, &threads, &requests, &mut |done, all| {
            calls.push((done, all));
            ControlFlow::Continue(())
        })
        .unwrap();
        for (request, score) in requests.iter().zip(&scored.scores) {
            assert_eq!(alone(&model, &threads, request), *score);
        }
        assert_eq!(scored.truncated, 1);
        assert!(scored.computed_tokens * 2 < scored.request_tokens);
        let last = calls.last().unwrap();
        assert_eq!((last.0, last.1), (scored.computed_tokens, scored.computed_tokens));
    }

    #[test]
    fn the_most_likely_continuation_is_greedy() {
        let (model, threads) = (model(), ThreadPool::new(1).unwrap());
        let context = ids(3, 10);
        let best = score(&model, &context, &threads).unwrap().argmax[9];
        let request = |token| TokenRequest { context: context.clone(), continuation: vec![token] };
        let requests = [request(best), request((best + 1) % 300)];
        let scored =
            score_requests(&model, &threads, &requests, &mut |_, _| ControlFlow::Continue(()))
                .unwrap();
        assert!(scored.scores[0].is_greedy && !scored.scores[1].is_greedy);
        assert!(scored.scores[0].loglikelihood > scored.scores[1].loglikelihood);
        assert_eq!(scored.computed_tokens, 10, "both ask after the same tokens");
    }
}
