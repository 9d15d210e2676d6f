//! The program's allocator. Every training step allocates and frees the same large buffers. The
//! system allocator returns them to the kernel each time, which then has to zero every page again.
#![expect(unsafe_code, reason = "an option of the allocator is set through C")]

use bitnet_format::allocation::ReportingAllocator;
use bitnet_text::LimitedAllocator;
use libmimalloc_sys::{mi_option_set, mi_option_set_default, mi_option_t};

/// Bounds what a model's chat template may allocate, and says where memory ends.
#[global_allocator]
static ALLOCATOR: LimitedAllocator<ReportingAllocator<mimalloc::MiMalloc>> =
    LimitedAllocator(ReportingAllocator(mimalloc::MiMalloc));

/// `mi_option_purge_delay` of mimalloc.h; the crate has no constant for it.
const PURGE_DELAY: mi_option_t = 15;

/// Keeps freed pages in the process, where the next step reuses them, instead of returning them to
/// the kernel after 10 ms. `MIMALLOC_PURGE_DELAY` in the environment takes precedence.
pub(crate) fn keep_pages() {
    // SAFETY: sets one number; every value is allowed, -1 means never.
    unsafe { mi_option_set_default(PURGE_DELAY, -1) }
}

/// Returns freed pages after three seconds: for runs that must get by with little memory. What a model's
/// tensors took on their way in would stay otherwise; what a block uses is wanted again by the next, on a slow
/// machine more than a second later.
pub(crate) fn return_pages() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: as above.
        unsafe { mi_option_set(PURGE_DELAY, 3000) }
    }
}
