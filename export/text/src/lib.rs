//! Text and token ids: tokenizer loading, checking and training, streaming decoding, and how a
//! conversation is written in tokens.
//!
//! Models, sampling and the reading of data files are elsewhere.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod agreement;
mod bytes;
mod chat;
mod check;
mod control;
mod cuts;
mod error;
mod from_vocabulary;
mod gguf;
mod library;
mod limits;
mod merges;
mod pieces;
mod post_processor;
mod special;
mod split_pattern;
mod stream;
mod to_vocabulary;
mod token_table;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_json;
mod train;
mod vocabulary;
mod whitespace;
mod words;

pub use agreement::TokenizerChange;
pub use chat::{
    CHAT_TEMPLATE_FILE, ChatTemplate, Conversation, Dialogue, LimitedAllocator, Message, Role,
    RowTemplate,
};
pub use control::TOKENIZER_CONFIG_FILE;
pub use error::TextError;
pub use limits::{MAX_VOCAB, MIN_VOCAB, SPECIAL_TOKENS};
pub use split_pattern::SplitPattern;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use train::train_bpe;
pub use vocabulary::{Merging, TokenKind, Vocabulary};

#[cfg(test)]
mod test_tokenizers;
