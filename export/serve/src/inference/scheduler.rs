//! Continuous batching: which tokens of which sequences go through the model together.
//!
//! A step computes the next token of every sequence that decodes, and beside them a chunk of the
//! prompts that are not read yet. Sequences join and leave between any two steps; the engine gives
//! each the bits that it would have alone, so nothing of this shows in an answer.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bitnet_engine::{KvCache, Model, Workspace};
use bitnet_text::Tokenizer;

use super::fault;
use super::job::{GenerationJob, JobEvent, RequestId};
use super::pacing::Pacing;
use super::page_tree::{PageTree, SHORTEST_PREFIX, common_prefix};
use super::queue::{InferenceLimits, JobQueue};
use super::scores::PromptScores;
use super::sequence::{RunningSequence, SequenceProgress};
use crate::metrics::{Metrics, StateGauges};

/// Positions of a prompt whose logits exist at one time.
const SCORED: usize = 32;

/// What a logit costs next to a multiply-add where a token is chosen: it may be scored, changed, sorted.
const CHOICE_COST: usize = 8;

/// The state of the inference thread.
pub(super) struct Scheduler<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    workspace: Workspace<'a>,
    limits: InferenceLimits,
    metrics: &'a Metrics,
    running: Vec<RunningSequence<'a>>,
    waiting: VecDeque<GenerationJob>,
    tree: PageTree,
    pacing: Pacing,
    /// Counts steps, so that prompts take turns.
    turn: usize,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        workspace: Workspace<'a>,
        limits: InferenceLimits,
        metrics: &'a Metrics,
    ) -> Self {
        let (running, waiting, pacing) = (Vec::new(), VecDeque::new(), Pacing::default());
        let page_bytes = KvCache::bytes_for(model.spec(), limits.precision, KvCache::PAGE);
        Self {
            model,
            tokenizer,
            workspace,
            limits,
            metrics,
            running,
            waiting,
            tree: PageTree::new(page_bytes),
            pacing,
            turn: 0,
        }
    }

    /// Works until nobody can ask any more and all is answered.
    pub(super) fn run(mut self, queue: &JobQueue) {
        loop {
            let idle = self.running.is_empty() && self.waiting.is_empty();
            // Waits only when there is nothing to do; otherwise it takes what has come and goes on.
            match queue.next(idle) {
                Some(job) => self.waiting.push_back(job),
                None if idle => return,
                None => {}
            }
            while let Some(job) = queue.next(false) {
                self.waiting.push_back(job);
            }
            // One iteration: free slots of clients that left, fill them, compute one step, publish
            // the gauges.
            self.drop_unwanted(queue);
            self.admit(queue);
            self.step();
            self.tell_state();
        }
    }

    /// Frees what nobody waits for.
    fn drop_unwanted(&mut self, queue: &JobQueue) {
        let before = self.waiting.len();
        self.waiting.retain(|job| !job.events.is_closed());
        for _ in self.waiting.len()..before {
            queue.taken();
            self.metrics.cancelled();
        }
        // Backwards, because `release` removes.
        for index in (0..self.running.len()).rev() {
            if !self.running[index].is_wanted() {
                self.metrics.cancelled();
                self.release(index);
            }
        }
    }

    /// Gives free slots to jobs, as far as there is memory.
    fn admit(&mut self, queue: &JobQueue) {
        while self.running.len() < self.limits.slots {
            let Some(index) = self.next_waiting() else { return };
            let Some(found) = self.make_room(index) else { return };
            let Some(job) = self.waiting.remove(index) else { return };
            queue.taken();
            let events = job.events.clone();
            let choice = job.choice;
            match RunningSequence::new(job, (self.model, self.new_cache()), self.tokenizer) {
                Ok(mut sequence) => {
                    sequence.take(found);
                    self.running.push(sequence);
                }
                // Settings are checked before they come here.
                Err(_) => drop(events.try_send((choice, JobEvent::Failed))),
            }
        }
    }

    /// What is known of the beginning of a waiting job, if there is memory for the rest of it.
    fn make_room(&mut self, index: usize) -> Option<(KvCache, PromptScores)> {
        let (job, empty) = (&self.waiting[index], self.new_cache());
        // Memory for the longest possible answer is set aside before the first token, so that an
        // answer that has begun never has to be thrown away.
        let all = (job.prompt.len() + job.max_tokens).div_ceil(KvCache::PAGE);
        // The last token is computed in any case: its logits choose the first of the answer.
        let mut found = self.tree.find(&job.prompt, job.prompt.len() - 1, job.scored_top(), &empty);
        // Full pages from the tree are shared and cost nothing; a partly used page is copied when
        // it is written.
        let own = all - found.0.len() / KvCache::PAGE;
        // The budget has three parts: what running sequences may grow to, this job, and the tree,
        // which gives way to both.
        let in_work: usize = self.running.iter().map(RunningSequence::own_pages).sum();
        let free = self.limits.cache_bytes.checked_sub((in_work + own) * self.tree.page_bytes());
        // Nothing is dropped for a job that must wait all the same.
        if let Some(free) = free.filter(|free| self.tree.least_bytes() <= *free) {
            self.tree.shrink_to(free);
            return Some(found);
        }
        if !self.running.is_empty() {
            return None;
        }
        // Alone it is served whatever the limit: nothing else could free memory for it.
        found = (empty, PromptScores::default());
        self.tree.shrink_to(self.limits.cache_bytes.saturating_sub(all * self.tree.page_bytes()));
        Some(found)
    }

    /// The job whose request has the fewest sequences in work; of equals the oldest.
    fn next_waiting(&self) -> Option<usize> {
        // A request for many answers (`n`) does not push out those of others.
        let in_work = |job: &GenerationJob| {
            self.running.iter().filter(|sequence| sequence.job.request == job.request).count()
        };
        let all = self.waiting.iter().map(in_work).enumerate();
        all.min_by_key(|(_, in_work)| *in_work).map(|(index, _)| index)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::with_precision(self.model.spec(), self.limits.precision)
    }

    /// One pass through the model.
    fn step(&mut self) {
        let plan = self.plan();
        let start = Instant::now();
        if plan.tokens.iter().any(|tokens| *tokens > 0) {
            self.compute(&plan.tokens);
        }
        // The places of the running may have changed since.
        // So the sequence is looked up by its name, not by its index in the plan.
        let is_scored = |it: &RunningSequence| Some((it.job.request, it.job.choice)) == plan.scored;
        if let Some(index) = self.running.iter().position(is_scored) {
            self.score_chunk(index, plan.beside);
        }
        self.share_pages();
        self.pacing.took(plan.decoding, plan.prefilled, start.elapsed().as_secs_f64());
        self.turn = self.turn.wrapping_add(1);
    }

    /// Decides how many tokens of each running sequence are computed next.
    fn plan(&mut self) -> StepPlan {
        let decodes = |sequence: &RunningSequence| !sequence.is_prefilling();
        let mut tokens: Vec<usize> =
            self.running.iter().map(|sequence| usize::from(decodes(sequence))).collect();
        let decoding: usize = tokens.iter().sum();
        let beside = self.pacing.beside(decoding);
        let (mut left, mut scored) = (beside, None);
        // What is left of the chunk goes to prompts in turn; a long prompt cannot hold up the
        // others for ever.
        for index in self.prefill_order() {
            if left == 0 || !self.start(index) {
                continue;
            }
            let sequence = &self.running[index];
            if sequence.job.scores_prompt {
                scored = scored.or(Some((sequence.job.request, sequence.job.choice)));
                continue;
            }
            tokens[index] = sequence.pending().min(left);
            left -= tokens[index];
        }
        let chunk = if scored.is_some() { beside.min(SCORED) } else { 0 };
        StepPlan { tokens, scored, beside, decoding, prefilled: beside - left + chunk }
    }

    /// The sequences whose prompts are not computed, beginning with another one each time.
    fn prefill_order(&self) -> Vec<usize> {
        let all = 0..self.running.len();
        let mut order: Vec<usize> =
            all.filter(|index| self.running[*index].is_prefilling()).collect();
        if !order.is_empty() {
            let first = self.turn % order.len();
            order.rotate_left(first);
        }
        order
    }

    /// Looks for the beginning of a prompt among what is computed. `false`: another sequence is
    /// about to compute it, so this one waits for the pages.
    fn start(&mut self, index: usize) -> bool {
        if self.running[index].started {
            return true;
        }
        let (prompt, scored) =
            (Arc::clone(&self.running[index].job.prompt), self.running[index].job.scored_top());
        let (limit, empty) = (prompt.len() - 1, self.new_cache());
        let mut found = self.tree.find(&prompt, limit, scored, &empty);
        let mut coming = 0;
        // Pages still in work are not in the tree yet, so running sequences are searched too.
        for sequence in self.running.iter().filter(|it| it.started) {
            let alike = common_prefix(&sequence.tokens, &prompt);
            let common = alike.min(limit);
            let usable = sequence.scores.usable(common.min(sequence.cache.len()), scored);
            // A score more than tokens is taken over, and the one after the common tokens is of
            // another token.
            let computed = if scored.is_some() { usable.min(alike.max(1) - 1) } else { usable };
            if computed > found.0.len() && computed >= SHORTEST_PREFIX {
                found = (sequence.cache.prefix(computed), sequence.scores.part(0, computed + 1));
            }
            let will_serve = scored.is_none() || sequence.job.scored_top() == scored;
            let comes = sequence.is_prefilling() && will_serve;
            coming = coming.max(if comes { common } else { 0 });
        }
        // Another sequence is computing a longer common beginning right now. Waiting for it is
        // cheaper than computing it twice.
        if coming >= found.0.len().max(1) + SHORTEST_PREFIX {
            return false;
        }
        let sequence = &mut self.running[index];
        sequence.take(found);
        sequence.started = true;
        self.metrics.prompt(prompt.len(), sequence.cache.len());
        true
    }

    /// Gives the tree the pages that were filled.
    fn share_pages(&mut self) {
        let Self { running, tree, .. } = self;
        for sequence in running.iter_mut().filter(|it| it.has_new_pages()) {
            let RunningSequence { tokens, cache, scores, shared, .. } = sequence;
            tree.keep(tokens, cache, scores, false);
            *shared = cache.len() / KvCache::PAGE;
        }
    }

    /// Computes a chunk of a prompt with the logits of all its tokens.
    fn score_chunk(&mut self, index: usize, most: usize) {
        let Self { model, workspace, running, metrics, .. } = self;
        let sequence = &mut running[index];
        let vocab_size = model.spec().vocab_size;
        let (first, count) = (sequence.cache.len(), sequence.pending().min(SCORED).min(most));
        metrics.pass(count, first);
        let done = catch_unwind(AssertUnwindSafe(|| {
            let next = sequence.next(count);
            // Scoring needs logits of all tokens, decoding of the last only: hence a pass of its
            // own.
            let logits = model.forward_all(workspace, next.cache, next.tokens).ok()?;
            sequence.score_prompt(first, logits, vocab_size);
            let last = &logits[(count - 1) * vocab_size..];
            Some(if sequence.is_prefilling() {
                SequenceProgress::Continues
            } else {
                sequence.continue_with(last)
            })
        }));
        let progress = done.ok().flatten();
        self.after(index, progress);
    }

    /// Computes the next `tokens[i]` tokens of sequence `i`, all in one pass.
    fn compute(&mut self, tokens: &[usize]) {
        let before: Vec<usize> = self.running.iter().map(|it| it.cache.len()).collect();
        // A panic is caught: the thread serves all clients, and one bad request must not end it.
        let together = self.pass(tokens);
        let mut progress = together.unwrap_or_else(|| {
            // One of them is at fault; each is tried alone, so that only that one fails.
            // The broken pass may have advanced some caches; all go back to where they were.
            for (sequence, len) in self.running.iter_mut().zip(&before) {
                sequence.cache.truncate(*len);
            }
            let mut each = vec![Outcome::Untouched; tokens.len()];
            for index in (0..tokens.len()).filter(|index| tokens[*index] > 0) {
                let mut alone = vec![0; tokens.len()];
                alone[index] = tokens[index];
                let outcome = self.pass(&alone).map(|all| all[index]);
                each[index] = outcome.unwrap_or(Outcome::Failed);
            }
            each
        });
        // Backwards, because sequences that end are removed.
        for index in (0..progress.len()).rev() {
            match progress.pop() {
                Some(Outcome::Untouched) | None => {}
                Some(Outcome::Failed) => self.after(index, None),
                Some(Outcome::Computed(progress)) => self.after(index, Some(progress)),
            }
        }
    }

    /// One pass over some sequences; `None` if it panics.
    fn pass(&mut self, tokens: &[usize]) -> Option<Vec<Outcome>> {
        let Self { model, workspace, running, metrics, .. } = self;
        let (threads, vocab_size) = (workspace.threads(), model.spec().vocab_size);
        let computed = running.iter().zip(tokens).filter(|(_, count)| **count > 0);
        metrics.pass(tokens.iter().sum(), computed.map(|(it, _)| it.cache.len()).sum());
        let all = catch_unwind(AssertUnwindSafe(|| {
            fault::before_pass(running, tokens);
            let some = running.iter_mut().zip(tokens).filter(|(_, count)| **count > 0);
            let mut sequences: Vec<_> = some.map(|(it, count)| it.next(*count)).collect();
            let mut rows =
                model.forward_batch(workspace, &mut sequences).ok()?.chunks_exact(vocab_size);
            let choice = |(sequence, count): (_, &usize)| Choice {
                sequence,
                logits: if *count > 0 { rows.next() } else { None },
                outcome: Outcome::Untouched,
            };
            let mut choices: Vec<_> = running.iter_mut().zip(tokens).map(choice).collect();
            // Each chooses for itself, so these too are work for all threads: a softmax over a large
            // vocabulary takes a millisecond.
            threads.split(&mut choices, 1, CHOICE_COST * vocab_size, |_, choices| {
                choices.iter_mut().for_each(Choice::make);
            });
            Some(choices.into_iter().map(|choice| choice.outcome).collect())
        }));
        all.ok().flatten()
    }

    /// Acts on the outcome of a step for one sequence.
    fn after(&mut self, index: usize, progress: Option<SequenceProgress>) {
        let sequence = &mut self.running[index];
        if progress.is_some() && sequence.takes_new_token() {
            let now = Instant::now();
            match sequence.last_sent.replace(now) {
                None => self.metrics.first_token(now - sequence.job.arrived),
                Some(last) => self.metrics.next_token(now - last),
            }
        }
        match progress {
            Some(SequenceProgress::Continues) => {}
            Some(SequenceProgress::Ended) => self.release(index),
            Some(SequenceProgress::Abandoned) => {
                self.metrics.cancelled();
                self.release(index);
            }
            Some(SequenceProgress::Broken) | None => {
                sequence.fail();
                self.metrics.failed();
                self.running.remove(index);
            }
        }
    }

    /// Frees a slot and keeps what was computed in it.
    fn release(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.tree.keep(&sequence.tokens, &mut sequence.cache, &sequence.scores, true);
        drop(sequence);
        let in_work: usize = self.running.iter().map(RunningSequence::own_pages).sum();
        let free = self.limits.cache_bytes.saturating_sub(in_work * self.tree.page_bytes());
        self.tree.shrink_to(free);
    }

    fn tell_state(&self) {
        let held: usize = self.running.iter().map(RunningSequence::held_pages).sum();
        self.metrics.state(StateGauges {
            running: self.running.len(),
            queued: self.waiting.len(),
            pages: held + self.tree.pages(),
            page_bytes: self.tree.page_bytes(),
            dropped_pages: self.tree.dropped(),
        });
    }
}

/// What a step computes.
struct StepPlan {
    /// For each running sequence, how many tokens.
    tokens: Vec<usize>,
    /// A sequence whose prompt is scored, in a pass of its own.
    scored: Option<(RequestId, usize)>,
    /// Tokens of prompts beside those that decode.
    beside: usize,
    /// Sequences that decode.
    decoding: usize,
    /// Tokens of prompts, in all.
    prefilled: usize,
}

/// What a pass did to a sequence.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Untouched,
    Failed,
    Computed(SequenceProgress),
}

/// A sequence of a pass and what follows for it.
struct Choice<'s, 'a, 'l> {
    sequence: &'s mut RunningSequence<'a>,
    /// `[V]`, after its last computed token; `None` if it took no part.
    logits: Option<&'l [f32]>,
    outcome: Outcome,
}

impl Choice<'_, '_, '_> {
    /// Chooses the next token, once the prompt is computed.
    fn make(&mut self) {
        let Some(logits) = self.logits else { return };
        self.outcome = if self.sequence.is_prefilling() {
            Outcome::Computed(SequenceProgress::Continues)
        } else {
            let chosen = catch_unwind(AssertUnwindSafe(|| self.sequence.continue_with(logits)));
            chosen.map_or(Outcome::Failed, Outcome::Computed)
        };
    }
}
