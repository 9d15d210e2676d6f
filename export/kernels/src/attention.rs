//! Attention of a few query rows over one key head, sixteen keys at a time.
//!
//! Keys and values lie as `pages` says. A score is the sum over the elements in order, an output the sum
//! over the tokens in order, each step one fused multiply-add. Vectors only do sixteen of these
//! sums side by side, so every kernel gives the same bits, and a row's result does not depend on
//! the rows beside it.
//!
//! ```text
//! scores    s[0..16] += q[d] · keys[block][d][0..16]       for d = 0 … D-1, a block of 16 tokens at a time
//! weights   exp(s - max s) / Σ                              over the visible tokens
//! output    o[0..16] += w[t] · values[t][0..16]             for t = 0, 1, …: oldest first
//! ```
#![expect(unsafe_code, reason = "one body is compiled for each instruction set")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::Kernel;
pub use crate::pages::{HeadLayout, HeadView, LANES, PAGE};
pub use body::QueryRow;
use body::body;
pub use softmax::{exp, largest, sum};
pub use vector::Element;

mod body;
mod softmax;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Query rows that share a pass over keys and values.
pub const QUERIES: usize = 8;

/// `out [rows, padded D]` = softmax(`q·k / sqrt(D)`) · values, for at most [`QUERIES`] rows.
///
/// `scratch` is memory that may be used again.
pub fn attend<E: Element>(
    kernel: Kernel,
    rows: &[QueryRow],
    head: HeadView<E>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    // Q · W sums and W keys must fit the 32 registers of AVX-512: 4 · 4, 5 · 3, 8 · 2.
    match rows.len() {
        1 => run::<E, 1, 4>(kernel, rows, head, scratch, out),
        2 => run::<E, 2, 4>(kernel, rows, head, scratch, out),
        3 => run::<E, 3, 4>(kernel, rows, head, scratch, out),
        4 => run::<E, 4, 4>(kernel, rows, head, scratch, out),
        5 => run::<E, 5, 3>(kernel, rows, head, scratch, out),
        6 => run::<E, 6, 2>(kernel, rows, head, scratch, out),
        7 => run::<E, 7, 2>(kernel, rows, head, scratch, out),
        8 => run::<E, 8, 2>(kernel, rows, head, scratch, out),
        other => panic!("1 to {QUERIES} rows, got {other}"),
    }
}

/// `W`: how many vectors of keys or values 32 registers hold sums for, beside `Q` rows.
fn run<E: Element, const Q: usize, const W: usize>(
    kernel: Kernel,
    rows: &[QueryRow],
    head: HeadView<E>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let rows: &[QueryRow; Q] = rows.try_into().expect("counted by the caller");
    let longest = rows.iter().map(|row| row.visible).max().unwrap_or(0);
    let HeadLayout { width } = head.layout;
    assert!(rows.iter().all(|row| row.query.len() == width), "queries as wide as the head");
    assert!(out.len() == Q * head.layout.padded(), "one place for each row and element");
    assert!(head.pages.len() * PAGE >= longest, "keys and values for every token that is seen");
    let blocks = longest.div_ceil(LANES);
    scratch.clear();
    scratch.resize(Q * blocks * LANES, 0.0);
    // SAFETY: each body only needs the instructions of its kernel, which this CPU has: a `Kernel`
    // exists only after it was detected.
    unsafe {
        match kernel {
            Kernel::Scalar => body::<[f32; LANES], E, Q, 1>(rows, head, scratch, out),
            #[cfg(target_arch = "aarch64")]
            Kernel::NeonDotprod => body::<[f32; LANES], E, Q, 1>(rows, head, scratch, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::AvxVnni => x86::avx2::<E, Q>(rows, head, scratch, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni | Kernel::AmxInt8 => {
                x86::avx512::<E, Q, W>(rows, head, scratch, out);
            }
        }
    }
}
