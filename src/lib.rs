//! BitNet b1.58 training: ternary weights, 8-bit activations, straight-through gradients, on Burn.
pub mod model;
pub mod ops;
pub mod train;
