//! Whether this machine has tiles of bytes, and this process may use them.
#![expect(unsafe_code, reason = "the CPU and the system are asked")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use crate::avx512;

/// Whether this CPU has the instructions, and the system gives this process their registers.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        avx512::is_available() && has(AMX_TILE | AMX_INT8) && saves_tiles() && may_use_tiles()
    })
}

// Bits of `CPUID.(EAX=7, ECX=0):EDX`.
pub(crate) const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;

/// Whether this CPU says that it has all of these.
pub(crate) fn has(features: u32) -> bool {
    __cpuid_count(7, 0).edx & features == features
}

/// Whether the system keeps the registers of a thread that waits.
fn saves_tiles() -> bool {
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    // SAFETY: a CPU with AVX-512 that is in use has XGETBV.
    unsafe { extended_state() & TILE_STATE == TILE_STATE }
}

#[target_feature(enable = "xsave")]
fn extended_state() -> u64 {
    // SAFETY: register 0 is always there.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tile registers, which it gives to processes that ask (`arch_prctl(2)`).
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that takes two numbers and touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}
