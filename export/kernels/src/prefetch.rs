//! Asking for weights before they are read.
//!
//! One token's product reads each code once and does little with it. CPUs guess what is read next, but stop at
//! the end of each 4 KiB, so the codes arrive at three quarters of the memory's rate; asked for one page ahead,
//! they arrive at all of it (`examples/kernel_speed.rs`). A matrix is one stream, so the page ahead is the next rows'.
//!
//! Intel's cores wait for at most sixteen lines of the first cache at a time, which is too few for a memory as
//! far away as a server's. There the second cache is asked first, two pages ahead, and the first one shortly before.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the instruction takes an address")
)]

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes ahead. From 2 to 16 KiB there is little difference.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// Bytes ahead in the second cache and in the first where both are asked.
#[cfg(target_arch = "x86_64")]
const AHEAD_IN_BOTH: [usize; 2] = [8192, 1024];

/// What the cache holds together.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Whether both caches are asked.
#[cfg(target_arch = "x86_64")]
static ASKS_BOTH: AtomicBool = AtomicBool::new(false);

/// Chooses how to ask for the CPU that runs this.
#[cfg(target_arch = "x86_64")]
pub(crate) fn choose() {
    let maker = std::arch::x86_64::__cpuid(0);
    let name = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
    ASKS_BOTH.store(name.as_flattened() == b"GenuineIntel", Ordering::Relaxed);
}

/// Asks for what lies behind `chunk`, as long as it; nothing is read, and there need not be anything.
#[inline(always)]
pub(crate) fn prefetch_after<T>(chunk: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

        let chunk = std::ptr::from_ref(chunk).cast::<i8>();
        let both = ASKS_BOTH.load(Ordering::Relaxed);
        for line in 0..size_of::<T>().div_ceil(LINE) {
            let line = chunk.wrapping_add(LINE * line);
            // SAFETY: every x86-64 CPU has the instruction, and it faults on no address.
            unsafe {
                if both {
                    let [second, first] = AHEAD_IN_BOTH;
                    _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(second));
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(first));
                } else {
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD));
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = chunk;
}
