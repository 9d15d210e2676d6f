//! Text and token ids: tokenizer loading, checking and training, streaming decoding, and how a
//! conversation is written in tokens.
//!
//! The front door of the crate. No model, no sampling and no reading of data files lives here.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bytes;
mod chat;
mod check;
mod error;
mod file;
mod gguf;
mod hf_config;
mod load;
mod spaces;
mod stream;
mod template;
mod tokenizer;
mod train;
mod vocabulary;

pub use chat::{ChatTemplate, Dialogue, Message, Speaker};
pub use error::TextError;
pub use hf_config::TOKENIZER_CONFIG_FILE;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use train::{MAX_VOCAB, MIN_VOCAB, SPECIAL_TOKENS, train_bpe};
pub use vocabulary::{SplitPattern, TokenKind, Vocabulary};

#[cfg(test)]
mod sample;
