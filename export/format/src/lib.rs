//! Ternary models as data: what a model is ([`ModelSpec`]), which tensors it has
//! ([`tensor_table`]), how a matrix of latents becomes {-1, 0, +1} ([`quant`], [`matrix`]) and
//! how all of that is stored in files ([`tensors`], [`folder`], [`gguf`]).
//!
//! Reading a tensor takes one call, whatever the file: a [`TensorSource`] such as [`StoredModel`]
//! gives rows of a [`TensorEntry`] as a [`TensorView`] of type, bytes and scale.
//!
//! This crate runs no model, computes no activations beyond their 8-bit codes, and knows no text.
//! Training, converters, kernels and the engine use it, so it depends on none of them. Bytes from
//! a file are checked once, when they are read; from then on the types guarantee validity.
//!
//! Shape letters used throughout: `N` rows (outputs), `K` columns (inputs). A matrix is `[N, K]`
//! = `[out, in]` everywhere.
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

mod act;
pub mod adapter;
pub mod allocation;
pub mod blocks;
pub mod convert;
pub mod crash;
mod dtype;
mod error;
pub mod figures;
pub mod folder;
pub mod foreign;
pub mod generation_config;
pub mod gguf;
pub mod group;
pub mod grouped;
mod hf_config;
mod hf_family;
mod hf_rope;
pub mod input;
pub mod json;
mod map;
pub mod master;
pub mod matrix;
mod model;
mod model_hash;
#[cfg(test)]
mod mutation;
mod names;
mod neutral;
pub mod norm;
mod ordered_map;
pub mod output;
pub mod packed;
mod parts;
pub mod process;
pub mod quant;
pub mod report;
pub mod rope;
mod rope_scaling;
pub mod shards;
mod shown;
pub mod source;
mod spec;
pub mod staged;
mod table;
pub mod tensors;
pub mod writer;

pub use dtype::DType;
pub use error::FormatError;
pub use hf_config::{HfConfig, WeightForm};
pub use map::FileBytes;
pub use model::StoredModel;
pub use model_hash::{model_hash, model_hash_watched};
pub use rope_scaling::{RopeScaling, YarnScaling};
pub use shown::Shown;
pub use source::{TensorSource, TensorView};
pub use spec::{HiddenAct, ModelSpec};
pub use table::{LinearKind, TensorEntry, TensorRole, tensor_table};
