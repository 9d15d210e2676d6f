//! Asking for weights before they are read.
//!
//! One token's product reads each code once and does little with it. CPUs guess what is read next, but stop at
//! the end of each 4 KiB, so the codes arrive at three quarters of the memory's rate; asked for one page ahead,
//! they arrive at all of it (`examples/kernel_speed.rs`). A matrix is one stream, so the page ahead is the next rows'.
//!
//! Intel's cores wait for at most sixteen lines of the first cache at a time, which is too few for a memory as
//! far away as a server's. There the second cache is asked a page ahead, and the first one shortly before.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the instruction takes an address")
)]
#![expect(clippy::inline_always, reason = "it belongs into the loops of the callers")]

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes ahead. From 3 to 5 KiB there is little difference.
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;

/// Bytes ahead in the first cache on Intel's CPUs. From 256 to 1,024 there is little difference.
#[cfg(target_arch = "x86_64")]
const SHORTLY: usize = 1024;

/// What the cache holds together.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Bytes ahead in the first cache on this CPU.
#[cfg(target_arch = "x86_64")]
static IN_FIRST: AtomicUsize = AtomicUsize::new(PAGE);

/// Chooses how to ask for the CPU that runs this.
#[cfg(target_arch = "x86_64")]
pub(crate) fn choose() {
    let maker = std::arch::x86_64::__cpuid(0);
    let name = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
    if name.as_flattened() == b"GenuineIntel" {
        IN_FIRST.store(SHORTLY, Ordering::Relaxed);
    }
}

/// Asks for some values that will be read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

        // SAFETY: every x86-64 CPU has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// How this CPU is asked: read before a loop, whose every step would read it anew.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    #[cfg(target_arch = "x86_64")]
    in_first: usize,
}

impl Prefetch {
    #[inline]
    pub(crate) fn chosen() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            in_first: IN_FIRST.load(Ordering::Relaxed),
        }
    }

    /// Asks for what lies behind `chunk`, as long as it; nothing is read, and there need not be anything.
    #[inline(always)]
    pub(crate) fn after<T>(self, chunk: &T) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

            let chunk = std::ptr::from_ref(chunk).cast::<i8>();
            for line in 0..size_of::<T>().div_ceil(LINE) {
                let line = chunk.wrapping_add(LINE * line);
                // Both on every CPU, at one address on some: a branch here costs a tenth of the rate.
                // SAFETY: every x86-64 CPU has the instruction, and it faults on no address.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T1>(line.wrapping_add(PAGE));
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(self.in_first));
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = chunk;
    }
}
