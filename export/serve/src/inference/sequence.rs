//! An answer in work: its tokens and cache, how its next token is chosen, and its events.

use bitnet_chat::StopTexts;
use bitnet_engine::{EngineError, Kernel, KvCache, LogSoftmax, Model, Sampler, Sequence};
use bitnet_text::{TextStream, Tokenizer};
use std::time::Instant;

use crate::grammar::AnswerGrammar;

use super::job::{EndReason, GenerationJob, JobEnd, JobEvent, ScoredToken};
use super::scores::PromptScores;

/// What follows from a computed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SequenceProgress {
    /// There is more to do.
    Continues,
    /// The answer is complete and sent.
    Ended,
    /// Its client is gone.
    Abandoned,
    /// There is no answer.
    Broken,
}

/// A job in a slot.
pub(crate) struct RunningSequence<'a> {
    pub(crate) job: GenerationJob,
    pub(crate) cache: KvCache,
    /// The prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Leading pages that the tree holds too.
    pub(crate) shared: usize,
    /// Whether its first tokens were looked for among all that is computed.
    pub(crate) started: bool,
    /// Tokens of the prompt that were there already.
    pub(crate) cached: usize,
    /// When the last token was sent.
    pub(crate) last_sent: Option<Instant>,
    /// Tokens of the answer that were counted.
    counted: usize,
    kernel: Kernel,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    stream: TextStream<'a>,
    stops: StopTexts,
    /// The scores of the prompt so far.
    pub(crate) scores: PromptScores,
}

impl<'a> RunningSequence<'a> {
    /// A sequence of which nothing is computed.
    pub(crate) fn new(
        mut job: GenerationJob,
        (model, cache): (&Model, KvCache),
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, EngineError> {
        // Presence and frequency penalties count the answer alone.
        let sampler = Sampler::new(job.sampler.clone())?.after_prompt(job.prompt.len());
        let stops = StopTexts::new(std::mem::take(&mut job.stop_texts));
        // Nothing comes before the first token, so nothing predicted it.
        let first = ScoredToken { id: job.prompt[0], logprob: None, top: Vec::new() };
        Ok(Self {
            tokens: job.prompt.to_vec(),
            scores: PromptScores { top: job.scored_top(), tokens: vec![first] },
            stream: tokenizer.stream(),
            started: false,
            cached: 0,
            last_sent: None,
            counted: 0,
            job,
            cache,
            shared: 0,
            kernel: model.kernel(),
            tokenizer,
            sampler,
            stops,
        })
    }

    /// Takes over what is known of the beginning of the prompt.
    pub(crate) fn take(&mut self, (cache, scores): (KvCache, PromptScores)) {
        // Called when it gets a slot and once more when it starts: more may be known by then.
        if cache.len() <= self.cache.len() {
            return;
        }
        (self.cached, self.shared) = (cache.len(), cache.len() / KvCache::PAGE);
        self.cache = cache;
        if self.job.scored_top().is_some() {
            self.scores = scores;
        }
    }

    /// Pages of memory that are set aside for it alone.
    pub(crate) fn own_pages(&self) -> usize {
        (self.job.prompt.len() + self.job.max_tokens).div_ceil(KvCache::PAGE) - self.shared
    }

    /// Pages that it holds alone now.
    pub(crate) fn held_pages(&self) -> usize {
        self.cache.len().div_ceil(KvCache::PAGE) - self.shared
    }

    /// Whether pages were filled that the tree does not hold yet.
    pub(crate) fn has_new_pages(&self) -> bool {
        self.cache.len() / KvCache::PAGE > self.shared
    }

    /// Whether the prompt is not computed completely.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.cache.len() < self.job.prompt.len()
    }

    /// Number of tokens that are not computed.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// The next `count` tokens, for the engine.
    pub(crate) fn next(&mut self, count: usize) -> Sequence<'_> {
        let start = self.cache.len();
        Sequence { tokens: &self.tokens[start..start + count], cache: &mut self.cache }
    }

    /// Whether somebody still waits for the answer.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.job.events.is_closed()
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.job.prompt.len()
    }

    /// Whether a token was chosen since this was asked last. A step may choose none: an answer of
    /// no tokens, where the scores of the prompt alone were asked for, or a grammar that failed.
    pub(crate) fn takes_new_token(&mut self) -> bool {
        let generated = self.generated();
        std::mem::replace(&mut self.counted, generated) < generated
    }

    /// Scores the prompt's tokens that follow the rows of `logits`, the first of which came after
    /// token `first` of the prompt.
    pub(crate) fn score_prompt(&mut self, first: usize, logits: &[f32], vocab_size: usize) {
        for (at, logits) in (first + 1..).zip(logits.chunks_exact(vocab_size)) {
            if let Some(&id) = self.job.prompt.get(at) {
                self.scores.tokens.push(self.scored_token(id, logits));
            }
        }
    }

    fn scored_token(&self, id: u32, logits: &[f32]) -> ScoredToken {
        let Some(count) = self.job.top else {
            return ScoredToken { id, logprob: None, top: Vec::new() };
        };
        let all = LogSoftmax::of(self.kernel, logits);
        ScoredToken { id, logprob: Some(all.logprob(id)), top: all.top(count) }
    }

    /// Chooses and tells the token after all that is computed; `logits [V]`.
    pub(crate) fn continue_with(&mut self, logits: &[f32]) -> SequenceProgress {
        let tells_prompt = self.job.scores_prompt && self.generated() == 0;
        if tells_prompt && !self.tell(JobEvent::Prompt(self.scores.tokens.clone())) {
            return SequenceProgress::Abandoned;
        }
        // Asked for the scores of the prompt alone.
        if self.job.max_tokens == 0 {
            return self.end(EndReason::Length);
        }
        let Some(id) = self.choose(logits) else { return SequenceProgress::Broken };
        let token = self.scored_token(id, logits);
        self.tokens.push(id);
        // The stop id counts as a token and is not part of the text.
        if self.job.stop_ids.contains(&id) {
            return self.end(EndReason::StopId);
        }
        // Text comes in whole characters, and what might be the beginning of a stop text is held
        // back.
        let (text, reached) = self.stops.push(&self.stream.push(id));
        if !self.tell(JobEvent::Token { text, token }) {
            return SequenceProgress::Abandoned;
        }
        if reached {
            self.end(EndReason::StopText)
        // A complete object ends the answer as an end token would.
        } else if self.job.grammar.as_ref().is_some_and(AnswerGrammar::is_complete) {
            self.end(EndReason::StopId)
        } else if self.generated() == self.job.max_tokens {
            self.end(EndReason::Length)
        } else {
            SequenceProgress::Continues
        }
    }

    /// The next token; `None` if the grammar failed.
    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let Self { job, sampler, tokens, .. } = self;
        let Some(grammar) = &mut job.grammar else { return Some(sampler.sample(logits, tokens)) };
        grammar.next(|allowed| sampler.sample_among(logits, tokens, Some(allowed))).ok()
    }

    fn end(&mut self, reason: EndReason) -> SequenceProgress {
        // Behind a stop text nothing may be shown.
        let text = if reason == EndReason::StopText { String::new() } else { self.held_text() };
        let stop_text = self.stops.reached().map(str::to_owned);
        let (cached, generated) = (self.cached, self.generated());
        self.tell(JobEvent::End(JobEnd { reason, stop_text, text, cached, generated }));
        SequenceProgress::Ended
    }

    /// What was held back because a character or a stop text might have followed.
    fn held_text(&mut self) -> String {
        let rest = std::mem::replace(&mut self.stream, self.tokenizer.stream()).finish();
        let mut stops = std::mem::replace(&mut self.stops, StopTexts::new(Vec::new()));
        let (shown, reached) = stops.push(&rest);
        if reached { shown } else { shown + &stops.finish() }
    }

    /// Reports that there is no answer.
    pub(crate) fn fail(&self) {
        self.tell(JobEvent::Failed);
    }

    /// Whether the reader keeps up; one that does not loses its answer.
    fn tell(&self, event: JobEvent) -> bool {
        self.job.events.try_send((self.job.choice, event)).is_ok()
    }
}
