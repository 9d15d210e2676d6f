//! Every integration test, in one binary.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

mod golden;
mod groups;
#[cfg(feature = "hub")]
mod hub;
mod model;
mod parity;
mod policy;
mod ranks;
mod recompute;
mod runs;
