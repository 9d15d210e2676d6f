//! How a server is set up, and what it refuses whatever the setup.

use std::net::IpAddr;
use std::time::Duration;

use bitnet_engine::{CachePrecision, Model};
use bitnet_text::{ChatTemplate, Tokenizer};

/// A body may be so long.
pub(crate) const LARGEST_BODY: usize = 2 << 20;
/// A body comes within that time.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
/// The head of a request comes within that time, an idle connection included.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// A client takes what is written for it within that time.
pub(crate) const WRITE_TIME: Duration = Duration::from_secs(30);
/// A quiet stream says that it is alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Connections at one time.
pub(crate) const MOST_CONNECTIONS: usize = 1024;
/// Values inside of values in a body.
pub(crate) const DEEPEST_JSON: usize = 64;
/// Messages of a conversation.
pub(crate) const MOST_MESSAGES: usize = 1024;
/// Prompts of a request.
pub(crate) const MOST_PROMPTS: usize = 64;
/// Answers to a prompt.
pub(crate) const MOST_CHOICES: u64 = 4;
/// Functions of a request that the model may call.
pub(crate) const MOST_TOOLS: usize = 128;
/// Stop texts of a request.
pub(crate) const MOST_STOPS: usize = 8;
/// Characters of a stop text.
pub(crate) const LONGEST_STOP: usize = 64;
/// Most likely tokens that are sent for each token.
pub(crate) const MOST_LOGPROBS: u64 = 20;

/// Whether a prompt of `/v1/completions` begins with the token that begins a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptBos {
    /// If the tokenizer begins texts with it.
    #[default]
    Auto,
    /// Wherever the tokenizer has one.
    Always,
    /// Only if the prompt has it.
    Never,
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The address to listen on.
    pub host: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Accepted keys; with none, no key is asked for.
    pub keys: Vec<String>,
    /// Answers that are made together, at least 1.
    pub slots: usize,
    /// The longest context in tokens; the model's for `None`.
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub cache: CachePrecision,
    /// Bytes of keys and values in all, in work and kept.
    pub cache_bytes: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Other origins whose pages may ask, such as `https://chat.example`.
    pub cors_origins: Vec<String>,
    /// The token before a prompt.
    pub bos: PromptBos,
    /// How long answers in work may take after a signal to end.
    pub drain_timeout: Duration,
}

/// The model that is served, with all that belongs to it.
#[derive(Debug)]
pub struct ServedModel {
    /// The name that clients give it.
    pub name: String,
    /// The weights.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// How it writes conversations.
    pub template: ChatTemplate,
}
