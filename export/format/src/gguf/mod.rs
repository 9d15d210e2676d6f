//! GGUF files, the single-file format of llama.cpp and bitnet.cpp: read strictly, written in one
//! pass.
//!
//! This room knows the container: metadata, tensor infos, alignment, sizes. Which keys and
//! tensors a model needs is `architecture`'s and `model`'s business, how values lie inside a block
//! that of `blocks`. Every length a
//! file claims is compared with what the file has left before anything is allocated, and each
//! check costs the same however large the claim is.

pub mod architecture;
mod codec;
mod cursor;
mod kind;
mod layout;
mod metadata;
mod model;
mod reader;
#[cfg(test)]
mod tests;
mod value;
mod writer;

pub use kind::TensorKind;
pub use metadata::Metadata;
pub use model::GgufModel;
pub use reader::{GgufFile, TensorInfo};
pub use value::{Array, Value};
pub use writer::GgufWriter;

const MAGIC: [u8; 4] = *b"GGUF";

/// The version we write. Version 2 has the same little-endian layout and is read too.
const VERSION: u32 = 3;
