//! A failed allocation ends the program with a sentence and the exit code for the environment,
//! where the language's own answer is SIGABRT. Files get their names only when complete, so nothing
//! is torn.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout};
use std::io::Write;

/// The exit code for disk, memory, permission, device.
const ENVIRONMENT: i32 = 5;

/// An allocator that never returns without memory.
#[derive(Debug)]
pub struct ReportingAllocator<A>(pub A);

// SAFETY: every call is passed on as it came; only a null result is not passed back.
unsafe impl<A: GlobalAlloc> GlobalAlloc for ReportingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the inner allocator.
        found(unsafe { self.0.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        found(unsafe { self.0.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        found(unsafe { self.0.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

#[inline]
fn found(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        end(bytes);
    }
    pointer
}

/// Allocates nothing.
#[cold]
fn end(bytes: usize) -> ! {
    let mut line = [0; 192];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "error: out of memory: the system gave no {bytes} bytes more; use a machine with more memory, \
         or less at a time"
    );
    let free = rest.len();
    let _ = std::io::stderr().write_all(&line[..line.len() - free]);
    std::process::exit(ENVIRONMENT)
}
