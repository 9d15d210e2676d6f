//! What both programs show on a terminal: text of files and models without control characters
//! ([`printable`]), errors as text and as JSON ([`report`]), colours where they are wanted
//! ([`colours`]).
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod facts;
mod printable;
mod report;
mod style;
mod usage;

pub use facts::ErrorFacts;
pub use printable::{printable, printable_json};
pub use report::{highlighted, report, wants_json};
pub use style::{Stream, animated, colours};
pub use usage::report_usage;
