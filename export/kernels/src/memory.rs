//! Memory for weights: aligned, on huge pages where the system gives them.
//!
//! A decoder reads every weight once a token, so the rate at which memory streams is its speed. In
//! a virtual machine 2 MiB pages stream about 1.7 times as fast as 4 KiB pages. Linux gives them to
//! whoever asks before the memory is first touched; where it does not, nothing else changes.
#![expect(unsafe_code, reason = "memory that must be advised before it is written")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The size and the alignment of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// A slice that owns its memory.
pub(crate) struct Memory<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: `Memory` owns its values as a boxed slice does.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Memory<T> {}

/// Which pages to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 2 MiB, where they can be had.
    Huge,
    /// 4 KiB.
    Small,
}

impl<T: Copy> Memory<T> {
    /// `len` copies of a value, on huge pages if that is worth it.
    pub(crate) fn filled(value: T, len: usize) -> Self {
        Self::on_pages(Pages::Huge, value, len)
    }

    /// `len` copies of a value.
    pub(crate) fn on_pages(pages: Pages, value: T, len: usize) -> Self {
        let layout = layout::<T>(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }.cast::<T>()) else {
            handle_alloc_error(layout);
        };
        if layout.align() == HUGE_PAGE {
            ask_for(pages, start.cast(), layout.size());
        }
        for place in 0..len {
            // SAFETY: `place` lies inside the allocation.
            unsafe { start.add(place).write(value) };
        }
        Self { start, len }
    }
}

/// Large memory begins with a huge page. Its end keeps small ones, so that none is held in vain.
fn layout<T>(len: usize) -> Layout {
    let layout = Layout::array::<T>(len).expect("the size of a matrix fits the address space");
    if layout.size() < HUGE_PAGE {
        return layout;
    }
    layout.align_to(HUGE_PAGE).expect("a huge page's alignment")
}

/// A refusal leaves ordinary pages, which only stream more slowly.
#[cfg(target_os = "linux")]
fn ask_for(pages: Pages, start: NonNull<u8>, bytes: usize) {
    let advice = match pages {
        Pages::Huge => rustix::mm::Advice::LinuxHugepage,
        Pages::Small => rustix::mm::Advice::LinuxNoHugepage,
    };
    let bytes = match pages {
        Pages::Huge => bytes / HUGE_PAGE * HUGE_PAGE,
        Pages::Small => bytes,
    };
    // SAFETY: the range was just allocated and holds nothing yet; the advice changes no content.
    let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes, advice) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for(_pages: Pages, _start: NonNull<u8>, _bytes: usize) {}

/// Bytes of this process that lie on huge pages; `None` where unknown.
pub fn huge_page_bytes() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

impl<T> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: all values were written when the memory was made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        let layout = layout::<T>(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated with this layout; values are `Copy` and need no drop.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T> fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} values]", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_what_it_was_filled_with_and_then_given() {
        for len in [0, 1, 1000, HUGE_PAGE / 8, HUGE_PAGE / 8 + 1, HUGE_PAGE] {
            let mut memory = Memory::filled(7u64, len);
            assert_eq!(memory.len(), len);
            assert!(memory.iter().all(|&value| value == 7));
            memory.iter_mut().zip(0..).for_each(|(place, value)| *place = value);
            assert!(memory.iter().zip(0..).all(|(&value, expected)| value == expected));
            let large = len * 8 >= HUGE_PAGE;
            assert!(!large || memory.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        }
    }
}
