//! Requests to the inference thread, and the events it sends back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bitnet_engine::SamplerSettings;
use tokio::sync::mpsc;

use crate::grammar::AnswerGrammar;

/// One answer that is to be made: a prompt, and how it is continued.
#[derive(Debug)]
pub(crate) struct GenerationJob {
    /// The request that it belongs to; those with few sequences in work go first.
    pub(crate) request: RequestId,
    /// Which answer of its request.
    pub(crate) choice: usize,
    /// At least one token.
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) sampler: SamplerSettings,
    /// Prompt and these together fit into the context.
    pub(crate) max_tokens: usize,
    /// Ids that end the answer.
    pub(crate) stop_ids: Arc<[u32]>,
    /// Texts that end the answer.
    pub(crate) stop_texts: Vec<String>,
    /// What the answer must be.
    pub(crate) grammar: Option<AnswerGrammar>,
    /// How many of the most likely tokens are sent with each token; `None`: no log-probabilities.
    pub(crate) top: Option<usize>,
    /// Whether the tokens of the prompt are scored too.
    pub(crate) scores_prompt: bool,
    /// Where the answer goes. When its receiver is gone, the work ends.
    pub(crate) events: mpsc::Sender<(usize, JobEvent)>,
    pub(crate) arrived: Instant,
}

impl GenerationJob {
    /// How many of the most likely tokens are sent with each token of the prompt; `None` if it is
    /// not scored.
    pub(crate) fn scored_top(&self) -> Option<usize> {
        self.top.filter(|_| self.scores_prompt)
    }
}

/// A number that no other request of this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestId(u64);

impl RequestId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// A token with what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScoredToken {
    pub(crate) id: u32,
    /// `None` where nothing comes before it.
    pub(crate) logprob: Option<f64>,
    /// The most likely tokens in its place, most likely first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// The events of a job, in order: the scored prompt if asked for, tokens, one end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JobEvent {
    /// All tokens of the prompt.
    Prompt(Vec<ScoredToken>),
    /// A token, with the text that became certain by it.
    Token { text: String, token: ScoredToken },
    /// The answer is complete.
    End(JobEnd),
    /// There is no answer, for a fault of this program.
    Failed,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JobEnd {
    pub(crate) reason: EndReason,
    /// The stop text that was reached.
    pub(crate) stop_text: Option<String>,
    /// Text that was held back until now.
    pub(crate) text: String,
    /// Tokens of the prompt whose keys and values were there already.
    pub(crate) cached: usize,
    /// Tokens that were chosen, a stop id included.
    pub(crate) generated: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The model ended it.
    StopId,
    /// A stop text was reached.
    StopText,
    /// As many tokens as asked for.
    Length,
}
