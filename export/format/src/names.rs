//! The names of the files of a model folder.

/// The model's shape in a folder.
pub const CONFIG_FILE: &str = "config.json";
/// The tensors in a folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// Which shard holds which tensor, in a folder without [`MODEL_FILE`].
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The tokenizer in a folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
