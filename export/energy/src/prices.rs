//! Energies of single operations and of a byte from memory, in picojoules.
//!
//! Source: Jouppi et al., "Ten Lessons From Three Generations Shaped Google's `TPUv4i`", ISCA 2021,
//! table 2, the column for 7 nm. The report of 2B4T (arXiv 2504.12285, section 4) uses the same
//! operations for its own estimate.

/// An addition of 8-bit integers; all that a ternary weight costs.
pub const INT8_ADD: f64 = 0.007;
/// A multiplication of 8-bit integers.
pub const INT8_MULTIPLY: f64 = 0.07;
/// An addition of 32-bit integers.
pub const INT32_ADD: f64 = 0.03;
/// An addition in IEEE half precision.
pub const FP16_ADD: f64 = 0.16;
/// A multiplication in IEEE half precision.
pub const FP16_MULTIPLY: f64 = 0.34;
/// A multiplication in bfloat16.
pub const BF16_MULTIPLY: f64 = 0.21;
/// An addition in single precision.
pub const FP32_ADD: f64 = 0.38;
/// A multiplication in single precision.
pub const FP32_MULTIPLY: f64 = 1.31;
/// A byte from DDR4 memory: 1,300 pJ for an access of 64 bits.
pub const DRAM_BYTE: f64 = 1300.0 / 8.0;

/// Joules in a picojoule.
pub(crate) const JOULE: f64 = 1e-12;
