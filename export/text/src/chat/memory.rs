//! Bounds the memory of one thread, for templates that double a text until nothing is left.
//!
//! The template engine counts steps and not bytes, and a value can grow in any of them. So the
//! bound sits where all of them end: in the allocator. A program installs [`LimitedAllocator`];
//! in one that does not, templates have no bound on memory.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a thread may still allocate, and where it says that this was too little.
#[derive(Clone, Copy)]
struct Limit {
    left: isize,
    exceeded: *const AtomicBool,
}

thread_local! {
    // `const` and without a destructor: reading it never allocates.
    static LIMIT: Cell<Option<Limit>> = const { Cell::new(None) };
}

/// The bytes that one piece of work may hold.
#[derive(Clone)]
pub(super) struct Budget {
    bytes: usize,
    exceeded: Arc<AtomicBool>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, exceeded: Arc::new(AtomicBool::new(false)) }
    }

    /// Runs `work`. A thread that asks for more sleeps for ever and keeps what it has.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let left = isize::try_from(self.bytes).unwrap_or(isize::MAX);
        let _limited = LimitedWork;
        LIMIT.set(Some(Limit { left, exceeded: Arc::as_ptr(&self.exceeded) }));
        work()
    }

    /// Whether the work asked for more.
    pub(super) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }
}

/// Ends the limit of this thread with the work, also where that panics: a thread that goes on would
/// sleep for ever at some later allocation, with a flag that may be gone.
struct LimitedWork;

impl Drop for LimitedWork {
    fn drop(&mut self) {
        LIMIT.set(None);
    }
}

/// An allocator that bounds the memory of a template that runs; for `#[global_allocator]`.
#[derive(Debug)]
pub struct LimitedAllocator<A>(pub A);

// SAFETY: every call is passed on unchanged.
unsafe impl<A: GlobalAlloc> GlobalAlloc for LimitedAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        spend(layout.size() as isize);
        // SAFETY: the caller's promises.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        spend(layout.size() as isize);
        // SAFETY: the caller's promises.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        spend(size as isize - layout.size() as isize);
        // SAFETY: the caller's promises.
        unsafe { self.0.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        spend(-(layout.size() as isize));
        // SAFETY: the caller's promises.
        unsafe { self.0.dealloc(place, layout) }
    }
}

/// Counts bytes that this thread takes, or gives back where negative.
fn spend(bytes: isize) {
    // The thread may be ending, and its counter gone.
    let Ok(Some(mut limit)) = LIMIT.try_with(Cell::get) else { return };
    limit.left = limit.left.saturating_sub(bytes);
    // A thread that panics must not sleep here: it holds locks of the standard library while it
    // reports, and every other thread that panics would wait for them.
    if limit.left >= 0 || bytes < 0 || std::thread::panicking() {
        LIMIT.set(Some(limit));
        return;
    }
    LIMIT.set(None);
    // SAFETY: `Budget::run` borrows the flag until the work ends, and this work never does.
    unsafe { &*limit.exceeded }.store(true, Ordering::Relaxed);
    // An allocator may neither fail here, which would end the program, nor unwind.
    loop {
        std::thread::sleep(Duration::from_hours(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: LimitedAllocator<std::alloc::System> = LimitedAllocator(std::alloc::System);

    #[test]
    fn work_that_panics_leaves_no_limit_behind() {
        // Of one byte: the report of the panic needs more, and is written all the same.
        let budget = Budget::new(1);
        let panicked = std::panic::catch_unwind(|| budget.run::<()>(|| panic!("on demand")));
        assert!(panicked.is_err() && LIMIT.get().is_none() && !budget.is_exceeded());
    }

    #[test]
    fn work_within_its_budget_ends_and_beyond_it_says_so() {
        let budget = Budget::new(1 << 20);
        assert_eq!(
            budget.run(|| (0..100).map(|_| vec![0_u8; 1 << 19].len()).sum::<usize>()),
            100 << 19
        );
        assert!(!budget.is_exceeded());
        let asking = budget.clone();
        std::thread::spawn(move || asking.run(|| vec![0_u8; 1 << 21]));
        let begin = std::time::Instant::now();
        while !budget.is_exceeded() {
            assert!(begin.elapsed() < Duration::from_mins(1));
            std::thread::yield_now();
        }
    }
}
