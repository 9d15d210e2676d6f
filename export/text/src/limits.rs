//! Sizes that bound reading and training, and the special tokens of a trained tokenizer.

/// The special tokens of a trained tokenizer, in the order of their ids, which are the last ones.
pub const SPECIAL_TOKENS: [&str; 8] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
];

/// The smallest vocabulary: every byte and the special tokens.
pub const MIN_VOCAB: usize = 256 + SPECIAL_TOKENS.len();

/// The largest vocabulary: above it the trainer's tables alone fill the memory.
pub const MAX_VOCAB: usize = 1 << 20;

/// The library counts pairs in an `i32`, and a text has at most one pair a byte.
pub(crate) const MAX_TRAIN_BYTES: u64 = i32::MAX as u64;

/// No tokenizer is this large; a weights file given by mistake is.
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;
