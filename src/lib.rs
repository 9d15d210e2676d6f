//! BitNet b1.58 training: ternary weights, 8-bit activations, straight-through gradients, on Burn.
pub mod checkpoint;
pub mod data;
pub mod device;
pub mod export;
pub mod model;
pub mod monitor;
pub mod ops;
pub mod platform;
pub mod random;
pub mod recipe;
pub mod train;
