//! Continuing a prompt, token by token.

use std::ops::ControlFlow;

use crate::{EngineError, KvCache, Model, Sampler, SamplerSettings, ThreadPool, Workspace};

/// How a prompt is to be continued.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// How each token is chosen.
    pub sampler: SamplerSettings,
    /// Ids that end the continuation; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id was chosen.
    Id(u32),
    /// As many tokens as asked for, or a full context.
    Length,
    /// The caller broke off.
    Caller,
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The ids, without the prompt and without a stop id.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: FinishReason,
}

/// Continues `prompt`, which follows what `cache` holds; `on_token` sees each id as it is chosen.
///
/// Afterwards the cache holds the prompt and all generated ids but the last one.
///
/// # Errors
/// A sampler setting outside its range; else as [`Model::forward`].
pub fn generate(
    model: &Model,
    cache: &mut KvCache,
    prompt: &[u32],
    request: &GenerateRequest,
    threads: &ThreadPool,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated, EngineError> {
    let mut sampler = Sampler::new(request.sampler.clone())?.after_prompt(prompt.len());
    model.check(cache, prompt)?;
    // All memory is taken before the first token, so that none of the others waits for any.
    let limit = model.spec().context_length();
    let most = request.max_tokens.min(limit + 1 - cache.len() - prompt.len());
    cache.reserve(limit.min(cache.len() + prompt.len() + most));
    let mut workspace = Workspace::new(threads);
    let mut tokens = Vec::with_capacity(most);
    let mut seen = Vec::with_capacity(prompt.len() + most);
    seen.extend_from_slice(prompt);
    let mut logits = model.forward(&mut workspace, cache, prompt)?;
    let end = |tokens, stop| Ok(Generated { tokens, stop });
    while tokens.len() < request.max_tokens {
        let id = sampler.sample(logits, &seen);
        if request.stop_ids.contains(&id) {
            return end(tokens, FinishReason::Id(id));
        }
        tokens.push(id);
        seen.push(id);
        if on_token(id).is_break() {
            return end(tokens, FinishReason::Caller);
        }
        if cache.len() == limit || tokens.len() == request.max_tokens {
            break;
        }
        logits = model.forward(&mut workspace, cache, &[id])?;
    }
    end(tokens, FinishReason::Length)
}
