//! The program's memory. Training takes and gives back the same large buffers again and again; the
//! system's allocator returns them to the kernel each time, which then clears every page anew.
#![expect(unsafe_code, reason = "an option of the allocator is set through C")]

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the crate does not name.
const PURGE_DELAY: mi_option_t = 15;

/// Pages that were given back stay with the process, instead of returning to the kernel 10 ms
/// later: a step needs them again. `MIMALLOC_PURGE_DELAY` in the environment wins.
pub(crate) fn keep_pages() {
    // SAFETY: sets one number; every value is allowed, -1 means never.
    unsafe { mi_option_set_default(PURGE_DELAY, -1) }
}
