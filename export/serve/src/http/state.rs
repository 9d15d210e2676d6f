//! What every handler sees: the model's names and limits, and the way to the inference thread.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use bitnet_text::{ChatTemplate, Tokenizer};

use super::error::ApiError;
use super::fields::BodyFields;
use super::sampling::AnswerSettings;
use super::tool_form::ToolForm;
use crate::grammar::{AnswerGrammar, Grammars};
use crate::inference::{GenerationJob, Inference, JobEvent, Refused, RequestId};
use crate::metrics::Metrics;
use crate::options::PromptBos;

use std::time::Instant;
use tokio::sync::mpsc;

/// The model as clients see it.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) model: String,
    /// When the server started, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: ChatTemplate,
    pub(crate) vocab_size: usize,
    /// Tokens of a prompt and its answer together.
    pub(crate) context: usize,
    /// Ids that end a document, and with `template` an answer.
    pub(crate) stop_ids: Arc<[u32]>,
    /// Ids that end an answer in a conversation.
    pub(crate) chat_stop_ids: Arc<[u32]>,
    pub(crate) bos: PromptBos,
    pub(crate) grammars: Grammars,
    pub(crate) inference: Inference,
    pub(crate) metrics: Arc<Metrics>,
}

/// The events of a request's answers, each with the number of its answer.
pub(crate) type Events = mpsc::Receiver<(usize, JobEvent)>;

/// Prompts with how they are to be continued.
#[derive(Debug)]
pub(crate) struct AnswerRequest {
    pub(crate) prompts: Vec<Arc<[u32]>>,
    pub(crate) settings: AnswerSettings,
    /// `None`: as many as the context holds.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop_ids: Arc<[u32]>,
    pub(crate) top: Option<usize>,
    pub(crate) scores_prompt: bool,
    /// What every answer must be.
    pub(crate) grammar: Option<AnswerGrammar>,
    /// How calls of functions are written, if there may be some.
    pub(crate) calls: Option<ToolForm>,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl AppState {
    /// Puts a question in the queue. Answers are numbered prompt by prompt.
    pub(crate) fn ask(&self, question: &AnswerRequest) -> Result<(RequestId, Events), ApiError> {
        let request = RequestId::next();
        let lengths: Result<Vec<usize>, ApiError> = question
            .prompts
            .iter()
            .map(|prompt| self.length(prompt, question.max_tokens))
            .collect();
        // All prompts are checked before one is queued: a request is answered as a whole or not at
        // all.
        let lengths = lengths?;
        let choices = question.settings.choices;
        // As many places as there can be events: the engine never waits for a reader.
        let places = lengths.iter().map(|most| most + 3).sum::<usize>() * choices;
        let (events, answers) = mpsc::channel(places);
        let prompts = question.prompts.iter().zip(lengths).flat_map(|pair| vec![pair; choices]);
        let job = |(choice, (prompt, max_tokens)): (usize, (&Arc<[u32]>, usize))| GenerationJob {
            request,
            choice,
            prompt: Arc::clone(prompt),
            sampler: question.settings.sampler_of(choice % choices),
            max_tokens,
            stop_ids: Arc::clone(&question.stop_ids),
            stop_texts: question.settings.stop_texts.clone(),
            grammar: question.grammar.as_ref().map(AnswerGrammar::copy),
            top: question.top,
            scores_prompt: question.scores_prompt,
            events: events.clone(),
            arrived: Instant::now(),
        };
        self.inference.submit(prompts.enumerate().map(job).collect()).map_err(refused)?;
        Ok((request, answers))
    }

    /// How many tokens may follow a prompt.
    fn length(&self, prompt: &[u32], asked: Option<usize>) -> Result<usize, ApiError> {
        let (tokens, limit) = (prompt.len(), self.context);
        let too_long = |message: String| {
            let code = "context_length_exceeded";
            ApiError::new(StatusCode::BAD_REQUEST, code, message)
        };
        // Clients may send ids; the engine would refuse the pass that such a prompt is in.
        if let Some(id) = prompt.iter().find(|id| **id as usize >= self.vocab_size) {
            let limit = self.vocab_size;
            return Err(ApiError::field(
                "prompt",
                format!("expected token ids below {limit}, got {id}"),
            ));
        }
        match asked {
            _ if tokens == 0 => {
                Err(ApiError::field("prompt", "holds no token; expected at least one"))
            }
            Some(asked) if tokens.saturating_add(asked) > limit => Err(too_long(format!(
                "the prompt of {tokens} tokens and an answer of up to {asked} do not fit into the \
                 context of {limit}"
            ))),
            None if tokens >= limit => Err(too_long(format!(
                "the prompt of {tokens} tokens leaves no room for an answer in the context of {limit}"
            ))),
            Some(asked) => Ok(asked),
            None => Ok(limit - tokens),
        }
    }

    /// Reads which model is meant: the one that there is, or none.
    pub(crate) fn check_model(&self, fields: &mut BodyFields) -> Result<(), ApiError> {
        match fields.text("model")? {
            Some(name) if name != self.model => Err(self.no_model(&name)),
            _ => Ok(()),
        }
    }

    /// The error of another model's name.
    pub(crate) fn no_model(&self, name: &str) -> ApiError {
        let name: String = name.chars().take(100).collect();
        let message = format!("model {name:?} is not served here; expected {:?}", self.model);
        let error = ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message);
        ApiError { param: Some("model".to_owned()), ..error }
    }

    /// The token before a prompt that is not part of it.
    pub(crate) fn hidden_bos(&self, prompt: &[u32]) -> Option<u32> {
        let bos = match self.bos {
            PromptBos::Auto => self.tokenizer.first(),
            PromptBos::Always => self.tokenizer.bos(),
            PromptBos::Never => None,
        };
        bos.filter(|bos| prompt.first() != Some(bos))
    }
}

fn refused(why: Refused) -> ApiError {
    match why {
        Refused::QueueFull => {
            let message = "too many requests wait already; try again later";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
        }
        Refused::Gone => {
            let message = "the server is ending";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
        }
    }
}
