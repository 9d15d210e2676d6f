//! Asking for weights before they are read.
//!
//! One token's product reads each code once and does little with it. CPUs guess what is read next, but stop at
//! the end of each 4 KiB, so the codes arrive at three quarters of the memory's rate; asked for one page ahead,
//! they arrive at all of it (`examples/kernel_speed.rs`). A matrix is one stream, so the page ahead is the next rows'.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the instruction takes an address")
)]

/// Bytes ahead. From 2 to 16 KiB there is little difference.
const AHEAD: usize = 4096;

/// What the cache holds together.
const LINE: usize = 64;

/// Asks for what lies a page after `chunk`, as long as it; nothing is read, and there need not be anything.
#[inline(always)]
pub(crate) fn prefetch_after<T>(chunk: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        let ahead = std::ptr::from_ref(chunk).cast::<i8>().wrapping_add(AHEAD);
        for line in 0..size_of::<T>().div_ceil(LINE) {
            // SAFETY: every x86-64 CPU has the instruction, and it faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(LINE * line)) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (chunk, AHEAD, LINE);
}
