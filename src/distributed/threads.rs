//! A transport between threads of one process, for tests and for programs that embed the trainer:
//! the same code as between machines, with memory in place of a network.

use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};

use super::comm::{Comm, Transport};

/// What the threads share: one mailbox a rank, and a barrier.
struct Shared {
    mailboxes: Vec<Mutex<Vec<u8>>>,
    barrier: Barrier,
}

struct ThreadTransport {
    rank: usize,
    shared: Arc<Shared>,
}

/// Runs `work` on `world_size` ranks at the same time; returns their results in the order of the
/// ranks.
///
/// # Panics
/// When a rank panics. Ranks that still wait for it then wait for ever.
pub fn in_threads<R: Send>(world_size: usize, work: impl Fn(Comm) -> R + Sync) -> Vec<R> {
    let mailboxes = (0..world_size).map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { mailboxes, barrier: Barrier::new(world_size) });
    std::thread::scope(|scope| {
        let one = |rank| {
            let (shared, work) = (shared.clone(), &work);
            scope.spawn(move || work(Comm::new(Rc::new(ThreadTransport { rank, shared }))))
        };
        let threads: Vec<_> = (0..world_size).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

impl ThreadTransport {
    /// Puts `own` into this rank's mailbox and calls `take` with every rank's. The second barrier
    /// keeps a fast rank from overwriting a mailbox that a slow one still reads.
    fn swap(&self, own: &[u8], mut take: impl FnMut(usize, &[u8])) {
        *self.mailbox(self.rank) = own.to_vec();
        self.shared.barrier.wait();
        (0..self.world_size()).for_each(|rank| take(rank, &self.mailbox(rank)));
        self.shared.barrier.wait();
    }

    fn mailbox(&self, rank: usize) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.shared.mailboxes[rank].lock().expect("no rank panics while it holds a mailbox")
    }
}

impl Transport for ThreadTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.mailboxes.len()
    }

    fn host(&self) -> String {
        "this process".to_owned()
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        let part = send.len() / self.world_size();
        self.swap(send, |rank, theirs| {
            if rank != self.rank {
                receive[rank * part..][..part].copy_from_slice(&theirs[self.rank * part..][..part]);
            }
        });
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.swap(own, |rank, theirs| all[rank * own.len()..][..own.len()].copy_from_slice(theirs));
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let own = bytes.to_vec();
        self.swap(&own, |rank, theirs| {
            if rank == 0 {
                bytes.copy_from_slice(theirs);
            }
        });
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}
