//! GGUF files, the single-file format of llama.cpp and bitnet.cpp: read strictly, written in one
//! pass.
//!
//! ```text
//! "GGUF" version | numbers of tensors and pairs | key type value … | name shape type offset … |
//! padding | tensor, padding | tensor, padding …
//! ```
//!
//! `reader` and `writer` know the container: metadata, tensor infos, alignment, sizes.
//! `architecture` knows the keys and names of a model, `model` combines both, and
//! [`crate::blocks`] decodes values. Every length that a file claims is compared with what the
//! file has left before anything is allocated, and each check takes constant time.

pub mod architecture;
mod cursor;
mod groups;
mod layout;
mod metadata;
mod model;
mod reader;
pub(crate) mod rope;
pub(crate) mod tensor_names;
#[cfg(test)]
mod tests;
mod two_bit;
mod value;
mod writer;

pub use metadata::Metadata;
pub use model::GgufModel;
pub use reader::{GgufFile, GgufTensor};
pub use value::{Array, Value};
pub use writer::GgufWriter;
