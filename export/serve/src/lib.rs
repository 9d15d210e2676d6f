//! A packed ternary model behind HTTP, as programs for OpenAI's API and a browser ask for it.
//!
//! ```text
//! sockets ─► connections ─► http: guard, endpoints ─► inference thread: batch, cache, engine
//!                                    ▲                          │
//!                                    └──── events of answers ───┘
//! ```
//!
//! One thread owns the engine and computes all answers together, token by token; requests join and
//! leave between any two tokens, and each answer has the bits that it would have alone. Everything
//! else is asynchronous and only waits. When a client leaves, its answer is given up.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bare_errors;
mod connections;
mod energy;
mod grammar;
mod http;
mod inference;
mod metrics;
mod options;
mod server;
mod signals;
mod stall_guard;

pub use http::list_endpoints;
pub use options::{PromptBos, ServeOptions, ServedModel};
pub use server::{ServeError, listen, serve};
pub use signals::ServeEnd;

#[cfg(test)]
mod tests;
