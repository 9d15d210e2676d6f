//! BitNet b1.58 training.
