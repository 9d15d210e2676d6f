//! Work on whole files of data: rewriting them in one shape, statistics, splitting, duplicates, and
//! rows that evaluation sets contain.
//!
//! ```text
//! reader (batches of rows, parsed on all cores) → canonical (what a row says)
//!     ├ convert      every row in the canonical shape
//!     ├ statistics   counts and lengths
//!     └ filter       row by row, by a mark of its text: split | exact | near | contamination
//! ```
//!
//! Files are streamed. What is kept of a row is written as it was read, in the order of the files,
//! and a result has its name only when it is whole.

mod canonical;
mod contamination;
mod convert;
mod exact;
mod filter;
mod near;
mod reader;
mod row_file;
mod split;
mod statistics;

pub use canonical::CanonicalRow;
pub use contamination::{Contamination, ReferenceTexts, texts_of};
pub use convert::convert;
pub use exact::ExactDuplicates;
pub use filter::{LeftOut, RowFilter, RowOutputs, SeparatedRows, separate};
pub use near::NearDuplicates;
pub use reader::CorpusRequest;
pub use row_file::RowFile;
pub use statistics::{CorpusStatistics, FileShare, LengthBin, statistics};

#[cfg(test)]
mod tests;
