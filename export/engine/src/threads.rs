//! The thread pool of the engine.
//!
//! A token is some two hundred short products, one after the other, so what counts is how fast a
//! piece of work starts and ends. Between two pieces the others spin for a moment and only
//! then sleep. A free thread takes the next part of a piece, and parts become smaller towards its
//! end, so that all threads are done at nearly the same time. The caller waits for parts that were
//! begun and never for a thread that did not come, so another program on a core costs its time and
//! not a multiple of it. Each unit is computed by one thread in one order: neither the number of
//! threads nor the cut shows in a result.
#![expect(unsafe_code, reason = "work is lent to other threads for the time of a call")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Multiply-adds below which a part is not worth handing to another thread: a microsecond or two.
const SMALLEST_PART: usize = 1 << 16;

/// A thread takes this part of its share of what is left.
const PARTS: usize = 2;

/// How often a thread looks for work before it sleeps: about a tenth of a millisecond.
const SPINS_BEFORE_SLEEP: usize = 1 << 14;

/// A pool of threads, the caller's included.
#[derive(Debug)]
pub struct ThreadPool {
    shared: Arc<Shared>,
    others: Vec<JoinHandle<()>>,
    /// One piece of work at a time.
    turn: Mutex<()>,
}

/// What a piece of work is to each thread: a call that takes parts until none is left.
type Work<'a> = &'a (dyn Fn() + Sync);

#[derive(Debug)]
struct Shared {
    /// Counts the pieces of work; a change is the signal to begin.
    piece: AtomicUsize,
    /// The current piece. Written while it is closed and nobody is in it.
    work: UnsafeCell<Option<Work<'static>>>,
    /// Whether others may still begin with it.
    open: AtomicBool,
    /// Other threads that are in it, or look whether they may.
    inside: AtomicUsize,
    sleeping: AtomicUsize,
    panicked: AtomicBool,
    ended: AtomicBool,
}

// SAFETY: `work` is written only by the thread that holds `turn`, while `open` is false and after
// `inside` was 0; the others read it only between raising and lowering `inside`, if they find it
// open. All of these are `SeqCst`: a thread that finds it open raised `inside` before it was closed, so
// the writer sees that and waits.
unsafe impl Sync for Shared {}

impl ThreadPool {
    /// A pool of `count` threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            piece: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let mut pool = Self { shared, others: Vec::new(), turn: Mutex::new(()) };
        for number in 1..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("bitnet-{number}"));
            pool.others.push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// Calls `work` here and on the threads that come in time, and waits for those.
    fn together(&self, work: Work) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: it is closed and nobody is inside; and `work` outlives its use, because this
        // function closes it and waits for all inside before it returns or unwinds.
        unsafe {
            *shared.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work));
        }
        shared.open.store(true, Ordering::SeqCst);
        shared.piece.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.others.iter().for_each(|other| other.thread().unpark());
        }
        let own = catch_unwind(AssertUnwindSafe(work));
        // From here no other thread can enter; those inside still finish their part. Closing comes
        // before waiting, or a thread could slip in after the count was read.
        shared.open.store(false, Ordering::SeqCst);
        shared.wait_for_all();
        finish(own, shared.panicked.swap(false, Ordering::SeqCst));
    }

    /// Calls `compute(first unit, places)` on parts of `out` until all of it is covered.
    ///
    /// `unit` places belong together and cost `cost` multiply-adds; the last unit may be shorter.
    pub fn split<T: Send>(
        &self,
        out: &mut [T],
        unit: usize,
        cost: usize,
        compute: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let units = out.len().div_ceil(unit);
        let smallest = SMALLEST_PART.div_ceil(cost.max(1));
        if units < 2 * smallest || self.others.is_empty() {
            return compute(0, out);
        }
        let (places, start) = (out.len(), Lent(out.as_mut_ptr()));
        let next = AtomicUsize::new(0);
        // Large parts first: one that begins anew waits for its first weights. Small ones last: what
        // a thread may be ahead of another is a part. A unit is computed by one thread alone, so
        // neither the cut nor who takes a part shows in a result.
        let end = |first: usize| {
            let left = units - first;
            first + (left / (PARTS * self.count())).max(smallest).min(left)
        };
        self.together(&|| {
            let take = |first: usize| (first < units).then(|| end(first));
            while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                let range = first * unit..(end(first) * unit).min(places);
                // SAFETY: each part is taken once, the ranges of different parts do not overlap
                // and lie inside `out`, and `out` is borrowed until all threads are done.
                let part =
                    unsafe { std::slice::from_raw_parts_mut(start.at(range.start), range.len()) };
                compute(first, part);
            }
        });
    }
}

fn finish(own: Result<(), Box<dyn Any + Send>>, others_panicked: bool) {
    if let Err(panic) = own {
        resume_unwind(panic);
    }
    assert!(!others_panicked, "a thread of the engine panicked");
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.piece.fetch_add(1, Ordering::SeqCst);
        for other in self.others.drain(..) {
            other.thread().unpark();
            // A panic of it was reported when it happened.
            let _ = other.join();
        }
    }
}

impl Shared {
    /// The life of another thread of the pool.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            seen = self.next_piece(seen);
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            // Announce first, then look: the other order would let the caller leave in between.
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) {
                // SAFETY: it is open and we are inside: see `Sync` above.
                let work = unsafe { *self.work.get() }.expect("a piece comes with its work");
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    self.panicked.store(true, Ordering::SeqCst);
                }
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits for a piece after `seen`.
    fn next_piece(&self, seen: usize) -> usize {
        // The next piece of the same token comes within microseconds; waking a sleeping thread
        // takes longer.
        for _ in 0..SPINS_BEFORE_SLEEP {
            let piece = self.piece.load(Ordering::Acquire);
            if piece != seen {
                return piece;
            }
            std::hint::spin_loop();
        }
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        // A thread that begins a piece looks at `sleeping` afterwards, so no wake-up is lost.
        let piece = loop {
            let piece = self.piece.load(Ordering::SeqCst);
            if piece != seen {
                break piece;
            }
            std::thread::park();
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        piece
    }

    fn wait_for_all(&self) {
        let mut spins = 0;
        while self.inside.load(Ordering::SeqCst) > 0 {
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now(); // more threads than cores
            }
        }
    }
}

/// The start of a slice, for threads that each take another part of it.
struct Lent<T>(*mut T);

// SAFETY: each thread makes a slice of another part only.
unsafe impl<T: Send> Sync for Lent<T> {}

impl<T> Lent<T> {
    fn at(&self, place: usize) -> *mut T {
        self.0.wrapping_add(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_computed_once_whatever_the_number_of_threads() {
        for count in 1..=5 {
            let threads = ThreadPool::new(count).unwrap();
            assert_eq!(threads.count(), count);
            for _ in 0..50 {
                let mut out = vec![0.0; 23];
                threads.split(&mut out, 5, SMALLEST_PART, |first, places| {
                    for (place, value) in places.iter_mut().zip(first * 5..) {
                        *place += value as f32;
                    }
                });
                assert!(out.iter().enumerate().all(|(i, &value)| value == i as f32));
            }
        }
    }

    #[test]
    fn small_work_stays_with_its_caller() {
        let threads = ThreadPool::new(3).unwrap();
        let caller = std::thread::current().id();
        threads.split(&mut [0u8; 9], 1, SMALLEST_PART / 9 - 1, |_, places| {
            assert_eq!(std::thread::current().id(), caller);
            assert_eq!(places.len(), 9);
        });
    }

    #[test]
    fn a_pool_that_slept_wakes_up() {
        let threads = ThreadPool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut out = [0; 2];
            threads.split(&mut out, 1, SMALLEST_PART, |first, places| places[0] = first + 1);
            assert_eq!(out, [1, 2]);
        }
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_pool_goes_on() {
        let threads = ThreadPool::new(2).unwrap();
        for culprit in 0..2 {
            let panics = catch_unwind(AssertUnwindSafe(|| {
                threads
                    .split(&mut [0u8; 2], 1, SMALLEST_PART, |first, _| assert_ne!(first, culprit));
            }));
            assert!(panics.is_err());
            let mut out = [0; 2];
            threads.split(&mut out, 1, SMALLEST_PART, |first, places| places[0] = first);
            assert_eq!(out, [0, 1]);
        }
    }
}
