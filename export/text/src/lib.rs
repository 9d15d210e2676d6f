//! Text and token ids: tokenizer loading, checking and training, streaming decoding.
//!
//! The front door of the crate. No model, no sampling and no chat template lives here.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bytes;
mod check;
mod error;
mod file;
mod load;
mod spaces;
mod stream;
mod template;
mod tokenizer;
mod train;

pub use error::TextError;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use train::{MAX_VOCAB, MIN_VOCAB, SPECIAL_TOKENS, train_bpe};

#[cfg(test)]
mod sample;
