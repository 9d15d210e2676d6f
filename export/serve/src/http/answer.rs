//! The way back: events of the inference thread as one answer or as a stream of them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use super::error::ApiError;
use super::state::Events;
use crate::inference::{EndReason, JobEnd, JobEvent, ScoredToken};
use crate::options::KEEP_ALIVE;

/// A complete answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered {
    pub(crate) text: String,
    /// The prompt's tokens, where they were to be scored.
    pub(crate) prompt: Vec<ScoredToken>,
    pub(crate) tokens: Vec<ScoredToken>,
    pub(crate) end: Option<JobEnd>,
}

impl Answered {
    /// Takes what happened next; an error if there is no answer.
    fn take(&mut self, event: JobEvent) -> Result<(), ApiError> {
        match event {
            JobEvent::Prompt(prompt) => self.prompt = prompt,
            JobEvent::Token { text, token } => {
                self.text += &text;
                self.tokens.push(token);
            }
            JobEvent::End(end) => {
                self.text += &end.text;
                self.end = Some(end);
            }
            JobEvent::Failed => return Err(ApiError::internal()),
        }
        Ok(())
    }
}

/// Waits for `count` answers. Dropping the future gives them up.
pub(crate) async fn collect(mut events: Events, count: usize) -> Result<Vec<Answered>, ApiError> {
    let mut all = vec![Answered::default(); count];
    while all.iter().any(|answer| answer.end.is_none()) {
        // Events of several answers arrive mixed, each with the number of its answer.
        let (choice, event) = events.recv().await.ok_or_else(ApiError::internal)?;
        all[choice].take(event)?;
    }
    Ok(all)
}

/// Counts of tokens over the answers of a request.
#[derive(Clone, Debug)]
pub(crate) struct TokenUsage {
    prompt: usize,
    generated: usize,
    /// For each prompt, how much of it the answers found computed: the least of them.
    cached: Vec<Option<usize>>,
}

impl TokenUsage {
    /// Of a request with these prompts, before any answer.
    pub(crate) fn of(prompts: &[Arc<[u32]>]) -> Self {
        let prompt = prompts.iter().map(|prompt| prompt.len()).sum();
        Self { prompt, generated: 0, cached: vec![None; prompts.len()] }
    }

    /// As OpenAI has it.
    pub(crate) fn json(&self) -> Value {
        serde_json::json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached.iter().flatten().sum::<usize>()},
        })
    }

    /// Counts an answer to a prompt, by its place, that ended.
    pub(crate) fn add(&mut self, prompt: usize, end: &JobEnd) {
        self.generated += end.generated;
        // A prompt counts once, however many answers it has, and so does what was known of it. The
        // other answers find what the first of them computed: that was no saving.
        let cached = &mut self.cached[prompt];
        *cached = Some(cached.map_or(end.cached, |least| least.min(end.cached)));
    }
}

/// What answers of one build and model have in common.
pub(crate) fn fingerprint() -> &'static str {
    concat!("bitnet-", env!("CARGO_PKG_VERSION"))
}

/// OpenAI's word for how an answer ended.
pub(crate) fn finish_reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::StopId | EndReason::StopText => "stop",
        EndReason::Length => "length",
    }
}

/// One event of a stream: its name, where the format has names, and its data.
#[derive(Clone, Debug)]
pub(crate) struct StreamEvent {
    pub(crate) name: Option<&'static str>,
    pub(crate) data: String,
}

impl StreamEvent {
    /// An event without a name.
    pub(crate) fn data(data: &Value) -> Self {
        Self { name: None, data: data.to_string() }
    }

    fn sse(self) -> Event {
        let event = Event::default().data(self.data);
        match self.name {
            Some(name) => event.event(name),
            None => event,
        }
    }
}

/// How the events of an answer are written in a stream.
pub(crate) trait StreamFormat: Send + 'static {
    /// Before any token.
    fn begin(&mut self) -> Vec<StreamEvent>;
    /// After something happened to an answer.
    fn next(&mut self, choice: usize, event: JobEvent) -> Vec<StreamEvent>;
    /// After all answers.
    fn end(&mut self) -> Vec<StreamEvent>;
    /// Instead of the rest.
    fn fail(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        vec![StreamEvent::data(&error.json())]
    }
}

struct Streaming<F> {
    events: Events,
    format: F,
    /// Answers that are not complete.
    open: usize,
    ready: VecDeque<StreamEvent>,
    ended: bool,
}

impl<F: StreamFormat> Streaming<F> {
    /// The next event; `None` after the last.
    async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            // One event of the engine may become several of the stream, or none.
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let new = match self.events.recv().await {
                // The status is sent already: a stream can only say it in an event of its own.
                Some((_, JobEvent::Failed)) | None => {
                    self.ended = true;
                    self.format.fail(&ApiError::internal())
                }
                Some((choice, event)) => self.after(choice, event),
            };
            self.ready.extend(new);
        }
    }

    fn after(&mut self, choice: usize, event: JobEvent) -> Vec<StreamEvent> {
        // Answers of one request end in any order.
        self.open -= usize::from(matches!(event, JobEvent::End(_)));
        let mut new = self.format.next(choice, event);
        if self.open == 0 {
            self.ended = true;
            new.extend(self.format.end());
        }
        new
    }
}

/// Streams `count` answers as server-sent events. When the client leaves, they are given up.
pub(crate) fn stream(events: Events, count: usize, mut format: impl StreamFormat) -> Response {
    let ready = format.begin().into();
    let streaming = Streaming { events, format, open: count, ready, ended: false };
    let body = stream::unfold(streaming, async |mut streaming| {
        let event = streaming.next().await?;
        Some((Ok::<_, Infallible>(event.sse()), streaming))
    });
    Sse::new(body).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("ping")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_however_many_answers_it_has() {
        let end = |cached| JobEnd {
            reason: EndReason::Length,
            stop_text: None,
            text: String::new(),
            cached,
            generated: 3,
        };
        let mut usage = TokenUsage::of(&[vec![1; 10].into(), vec![2; 5].into()]);
        for (prompt, cached) in [(0, 9), (0, 2), (0, 9), (1, 4)] {
            usage.add(prompt, &end(cached));
        }
        let json = usage.json();
        assert_eq!((&json["prompt_tokens"], &json["completion_tokens"]), (&15.into(), &12.into()));
        assert_eq!(json["prompt_tokens_details"]["cached_tokens"], 6);
    }
}
