//! A conversation with a packed model.
//!
//! ```text
//! message → chat template → prompt ─┬─ what the cache holds already
//!                                   └─ the rest → engine → token ids → text, as it comes
//! ```
//!
//! The engine knows no text and the tokenizer no model; this crate is where they meet. It prints
//! nothing: the caller takes the text piece by piece and may stop an answer at any of them.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod session;
mod stops;

pub use session::{Answer, ChatError, ChatSession, ChatSettings, oldest_turn};
pub use stops::StopTexts;
