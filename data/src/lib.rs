//! From text to packed sequences of token ids.
//!
//! ```text
//! files → rows → DocumentStream → Encoding → TokenCache      once per data set
//!                                              ↓
//! order → packing → SequencePlan or PairPlan                 once per epoch
//!                                              ↓
//! Loader → packed sequences or preference pairs              in the order of the run
//! ```
//!
//! `train` turns sequences into tensors; `bitnet-text` has the tokenizer and the chat template.
//! Random draws are keyed by (seed, purpose, counter), so the items of a run are a pure function of
//! its recipe and of the [`LoaderState`].

mod cache;
pub mod conversation;
pub mod corpus;
mod document;
mod documents;
mod encoded;
mod encoding;
mod epoch;
mod error;
mod fault;
mod generate;
mod held_out;
mod language;
mod loader;
mod lock;
mod mixture;
mod normal;
mod order;
mod packing;
mod pair_plan;
mod plans;
pub mod preference;
pub mod random;
mod reading;
mod report;
mod row_json;
mod rows;
mod selection;
mod sequence;
mod sequence_plan;
mod source;
mod templated;
mod training_texts;
mod turn_order;
mod turns;

pub use cache::{CacheOrigin, CacheRequest, CacheStatistics, TokenCache};
pub use document::{
    Document, DocumentFormat, MAX_DOCUMENT_BYTES, RowContent, SourceLocation, TokenDocument,
};
pub use documents::{DocumentGenerator, DocumentStream};
pub use encoding::Encoding;
pub use epoch::{EpochPlan, LoaderSettings};
pub use error::DataError;
pub use generate::{generated_dialogues, generated_preferences, generated_stories};
pub use held_out::HeldOutShare;
pub use language::TextLanguage;
pub use loader::{EpochPosition, Loader, LoaderState};
pub use lock::{FileLock, LockHolder};
pub use mixture::DataMixture;
pub use packing::{LongDocuments, PackingStatistics, Segment};
pub use pair_plan::{PairPlan, PreferencePair};
pub use reading::{BadRows, ReadingRules, TextMarkers, UnknownRole};
pub use report::RowReport;
pub use rows::{FileOptions, TextSplit, TokenFiles, TokenType, is_data_name};
pub use selection::{RowSelection, SplitSide, TextPattern};
pub use sequence::PackedSequence;
pub use sequence_plan::{SequencePlan, validation_sequences};
pub use source::DocumentSource;
pub use training_texts::TrainingTexts;
pub use turn_order::TurnChanges;

#[cfg(test)]
mod fixtures;
