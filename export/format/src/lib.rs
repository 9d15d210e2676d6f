//! Ternary models as data: what a model is ([`ModelSpec`]), which tensors it has
//! ([`tensor_table`]), how a matrix of latents becomes {-1, 0, +1} ([`quant`], [`matrix`]) and
//! how all of that lies in files ([`packed`], [`tensors`], [`shards`], [`folder`]).
//!
//! This crate holds no model, no arithmetic on activations beyond their 8-bit code, and no text.
//! Training, converters, kernels and the engine all meet here, so it depends on none of them.
//! Bytes from a file are checked once, where they enter; after that the types carry the proof.
//!
//! Shape letters used throughout: `N` rows (outputs), `K` columns (inputs). A matrix is `[N, K]`
//! = `[out, in]` everywhere.
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

pub mod blocks;
pub mod convert;
mod error;
pub mod folder;
pub mod gguf;
mod hf_config;
mod map;
pub mod master;
pub mod matrix;
#[cfg(test)]
mod mutation;
pub mod norm;
pub mod packed;
mod pairs;
mod parts;
pub mod process;
pub mod quant;
pub mod report;
pub mod rope;
pub mod shards;
mod spec;
pub mod staged;
mod stored;
mod table;
pub mod tensors;
pub mod writer;

pub use error::FormatError;
pub use hf_config::{HfConfig, WeightForm};
pub use map::FileBytes;
pub use spec::{HiddenAct, ModelSpec};
pub use stored::{FloatType, StoredModel};
pub use table::{LinearKind, Role, TensorEntry, tensor_table};
