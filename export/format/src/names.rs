//! The names of the files of a model folder and of an adapter folder.

/// The model's shape in a folder.
pub const CONFIG_FILE: &str = "config.json";
/// The tensors in a folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// Which shard holds which tensor, in a folder without [`MODEL_FILE`].
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The tokenizer in a folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// What an adapter is, in its folder: PEFT's name.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// The tensors of an adapter, in its folder: PEFT's name.
pub const ADAPTER_MODEL_FILE: &str = "adapter_model.safetensors";
