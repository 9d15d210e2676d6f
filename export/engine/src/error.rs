//! What can be wrong with a model folder or with a request.

use bitnet_format::FormatError;

/// Why a model was not loaded or a request not answered.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The folder is not a model of ours.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// There is nothing to continue.
    #[error("the prompt holds no token")]
    EmptyPrompt,
    /// The context would exceed what the model is meant for.
    #[error("{tokens} tokens do not fit the model's context of {limit}")]
    ContextFull {
        /// Tokens in the cache and in the request together.
        tokens: usize,
        /// `ModelSpec::context_length`.
        limit: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token id {id} lies outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// The weights are damaged, or too large for what they are multiplied with.
    #[error("the model computes NaN in place of logits; its weights are damaged or far too large")]
    NotANumber,
    /// A sampler setting outside its range.
    #[error("{name} is {value}; expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// The range.
        expected: &'static str,
    },
}
