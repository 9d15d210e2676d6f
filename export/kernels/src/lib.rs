//! int8 × ternary products, one file per instruction set beside the scalar reference, and the dense
//! products that the head, attention and training need.
//!
//! Slices in, slices out: no file, no model and no thread lives here. A product takes a range of
//! rows, so the caller decides which thread computes what, and every kernel gives the same bits.
//!
//! Shape letters: `N` rows (outputs), `K` columns (inputs), `T` tokens. A matrix is `[N, K]`.
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_bf16;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod dense;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dot4;
mod float;
mod float_code_product;
mod float_codes;
#[cfg(target_arch = "x86_64")]
mod float_codes_x86;
mod float_rows;
#[cfg(target_arch = "x86_64")]
mod float_tile;
mod gemm;
mod gradients;
mod group_panels;
mod grouped_product;
mod groups;
mod int8;
mod kernel;
mod layout;
pub mod limits;
mod log_sum;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod pages;
mod panels;
mod prefetch;
mod product;
mod reference;
mod rounding;
mod self_test;
mod unwritten;
mod words;

pub use activations::Activations;
pub use dense::DenseMatrix;
pub use float::float_product;
pub use gemm::{MatrixA, MatrixB, OperandLayout, Operands, PackedB, Scale, Size};
pub use gradients::{OutputGradient, RoundedAway, input_gradient, weight_gradient};
pub use group_panels::GroupPanels;
pub use grouped_product::grouped_product;
pub use int8::{Int8Matrix, PanelGroup};
pub use kernel::Kernel;
pub use layout::{INT8_ROWS, ROWS_PER_PAIR, SimdWork};
pub use log_sum::LogSum;
pub use memory::{Pages, huge_page_bytes};
pub use panels::{RowGroup, TernaryPanels};
pub use product::{accumulate, matmul};
pub use rounding::{RandomBits, Rounding};
pub use unwritten::{PlainNumber, unwritten};
