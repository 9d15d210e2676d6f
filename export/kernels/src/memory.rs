//! Memory for weights: aligned, on huge pages where the system gives them.
//!
//! A decoder reads every weight once a token, so the rate at which memory streams is its speed. In
//! a virtual machine 2 MiB pages stream up to 1.7 times as fast as 4 KiB pages. Linux gives them to
//! a process that asks before the memory is first touched; where it does not, nothing else changes.
//! Matrices follow each other in large regions, so that no end of one is left on small
//! pages and no huge page is held for a few bytes.
#![expect(unsafe_code, reason = "memory that must be advised before it is written")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// The size and the alignment of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a region that several matrices share. What is not used of it is never touched, so it
/// costs address space only.
const REGION: usize = 64 << 20;

/// Every slice begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// Which pages to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 2 MiB, where they can be had.
    Huge,
    /// 4 KiB.
    Small,
    /// Whatever the allocator has: for what lives shortly.
    Any,
}

/// A slice that owns its part of a region.
pub(crate) struct PageBuffer<T> {
    start: NonNull<T>,
    len: usize,
    /// Lives as long as one of its slices.
    _region: Arc<Region>,
}

// SAFETY: `PageBuffer` owns its values as a boxed slice does.
unsafe impl<T: Send> Send for PageBuffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for PageBuffer<T> {}

/// Memory from the system.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a region is handed out in parts that do not overlap; nothing else touches it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The shared region on huge pages that still has room, and how much of it is taken.
static OPEN: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

impl Region {
    fn new(pages: Pages, bytes: usize) -> Self {
        let alignment = if pages == Pages::Any { ALIGNMENT } else { HUGE_PAGE };
        let layout = Layout::from_size_align(bytes.max(1), alignment)
            .expect("the size of a matrix fits the address space");
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout);
        };
        ask_for(pages, start, layout.size());
        Self { start, layout }
    }

    /// Room for `bytes`: in the open region, or in a new one.
    fn with_room(pages: Pages, bytes: usize) -> (Arc<Self>, NonNull<u8>) {
        // Large matrices have a region each; small ones share, so that few of them end on small
        // pages.
        if pages != Pages::Huge || bytes > REGION / 2 {
            let region = Arc::new(Self::new(pages, bytes));
            let start = region.start;
            return (region, start);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, taken) = match open.take() {
            Some((region, taken)) if taken + bytes <= REGION => (region, taken),
            _ => (Arc::new(Self::new(pages, REGION)), 0),
        };
        // SAFETY: `taken + bytes` lies inside the region.
        let start = unsafe { region.start.add(taken) };
        // Only grows: memory of a dropped slice is not handed out again. Weights are loaded once
        // and live as long as the model.
        *open = Some((Arc::clone(&region), (taken + bytes).next_multiple_of(ALIGNMENT)));
        (region, start)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no slice of it is left.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl<T: Copy> PageBuffer<T> {
    /// `len` copies of a value.
    pub(crate) fn on_pages(pages: Pages, value: T, len: usize) -> Self {
        let layout = Layout::array::<T>(len).expect("the size of a matrix fits the address space");
        assert!(layout.align() <= ALIGNMENT, "values that need no more than a line's alignment");
        let (region, start) = Region::with_room(pages, layout.size());
        let start = start.cast::<T>();
        for place in 0..len {
            // SAFETY: `place` lies inside the room that this slice was given, which is aligned.
            unsafe { start.add(place).write(value) };
        }
        Self { start, len, _region: region }
    }
}

/// A refusal leaves ordinary pages, which only stream more slowly.
#[cfg(target_os = "linux")]
fn ask_for(pages: Pages, start: NonNull<u8>, bytes: usize) {
    let (advice, bytes) = match pages {
        // The end of a region of its own keeps small pages, so that none is wasted.
        Pages::Huge => (rustix::mm::Advice::LinuxHugepage, bytes / HUGE_PAGE * HUGE_PAGE),
        Pages::Small => (rustix::mm::Advice::LinuxNoHugepage, bytes),
        Pages::Any => return,
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

impl<T> Deref for PageBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: all values were written when the memory was made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for PageBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> fmt::Debug for PageBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} values]", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_holds_what_it_was_filled_with_and_then_given() {
        let sizes = [0, 1, 7, 1000, HUGE_PAGE / 8 + 1, HUGE_PAGE, REGION / 16 + 3, REGION / 8];
        for pages in [Pages::Huge, Pages::Small, Pages::Any] {
            let mut all: Vec<PageBuffer<u64>> =
                sizes.iter().map(|&len| PageBuffer::on_pages(pages, 7u64, len)).collect();
            for (memory, len) in all.iter_mut().zip(sizes) {
                assert_eq!(memory.len(), len);
                assert!(memory.as_ptr().addr().is_multiple_of(ALIGNMENT));
                assert!(memory.iter().all(|&value| value == 7), "nobody else wrote here");
                memory.fill(len as u64);
            }
            all.swap_remove(2); // a neighbour that goes takes nothing along
            all.swap_remove(3);
            assert!(all.iter().all(|memory| memory.iter().all(|&x| x == memory.len() as u64)));
        }
    }

    #[test]
    fn threads_get_parts_that_do_not_overlap() {
        std::thread::scope(|scope| {
            for mark in 0..4u8 {
                scope.spawn(move || {
                    let all: Vec<PageBuffer<u8>> = (0..50)
                        .map(|i| PageBuffer::on_pages(Pages::Huge, mark, 1000 * i))
                        .collect();
                    assert!(all.iter().all(|memory| memory.iter().all(|&value| value == mark)));
                });
            }
        });
    }
}
