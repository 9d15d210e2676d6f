//! From text to rows of token ids: documents are read (`documents`), encoded once (`encoding`,
//! `cache`), ordered (`order`), packed into rows of equal length (`packing`) or paired (`pairs`),
//! and handed out (`loader`).
//!
//! What a row looks like is decided here and nowhere else; tensors and batches are `train`'s, the
//! tokenizer is `bitnet-text`'s. The text of the project's own tiny world comes from `world`.
//!
//! Nothing in this room draws a random number that is not keyed by (seed, purpose, counter), so
//! the rows of a run are a pure function of its recipe and of the [`Position`] in it.

mod cache;
mod cache_file;
mod checksum;
pub mod conversation;
mod documents;
mod encoding;
mod error;
mod evaluation;
mod generate;
mod json_lines;
mod loader;
mod lock;
mod order;
mod packing;
mod pairs;
mod plan;
mod row;
mod source;
mod tokenise;

pub use cache::{CacheOrigin, CacheRequest, CacheStatistics, TokenCache};
pub use documents::{Content, Document, DocumentReader, MAX_DOCUMENT_BYTES};
pub use encoding::Encoding;
pub use error::DataError;
pub use evaluation::validation_rows;
pub use generate::{generated_dialogues, generated_preferences, generated_stories};
pub use json_lines::{JsonLine, JsonLines};
pub use loader::{Cursor, Epoch, Loader, LoaderSettings, Mix, Position};
pub use lock::{FileLock, LockHolder};
pub use packing::{LongRows, PackingStatistics};
pub use pairs::{Pair, PairPlan, PairStatistics};
pub use plan::EpochPlan;
pub use row::{Place, Row};
pub use source::{Generated, Source, SourceDocuments};

#[cfg(test)]
mod sample;
