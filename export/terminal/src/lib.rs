//! What both programs show on a terminal: text of files and models without control characters
//! ([`printable`]), errors as text and as JSON ([`report`]), colours where they are wanted
//! ([`colours`]), how long a task will take ([`EtaLine`]).
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod eta_line;
mod facts;
mod printable;
mod report;
mod style;
mod usage;

pub use eta_line::EtaLine;
pub use facts::ErrorFacts;
pub use printable::{printable, printable_json};
pub use report::{highlighted, report, wants_json};
pub use style::{Stream, animated, colours};
pub use usage::report_usage;
