//! Ranks that are threads of one process, for tests and for programs that embed the trainer: the
//! same code as between machines, with memory in the place of a network.

use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};

use super::{Exchange, Ranks};

/// What the threads share: a place for each to leave bytes in, and a gate.
struct Table {
    places: Vec<Mutex<Vec<u8>>>,
    gate: Barrier,
}

struct Thread {
    rank: usize,
    table: Arc<Table>,
}

/// Runs `work` as each of `count` ranks at the same time; what they give, in the order of the ranks.
///
/// # Panics
/// When one of them does. The others then wait for it for ever, unless they have ended.
pub fn in_threads<R: Send>(count: usize, work: impl Fn(Ranks) -> R + Sync) -> Vec<R> {
    let places = (0..count).map(|_| Mutex::default()).collect();
    let table = Arc::new(Table { places, gate: Barrier::new(count) });
    std::thread::scope(|scope| {
        let one = |rank| {
            let (table, work) = (table.clone(), &work);
            scope.spawn(move || work(Ranks::new(Rc::new(Thread { rank, table }))))
        };
        let threads: Vec<_> = (0..count).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

impl Thread {
    /// Leaves `own` on the table, lets `take` look at what all have left, and clears up.
    fn meet(&self, own: &[u8], mut take: impl FnMut(usize, &[u8])) {
        *self.place(self.rank) = own.to_vec();
        self.table.gate.wait();
        (0..self.count()).for_each(|rank| take(rank, &self.place(rank)));
        self.table.gate.wait();
    }

    fn place(&self, rank: usize) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.table.places[rank].lock().expect("nobody panics while holding a place")
    }
}

impl Exchange for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.table.places.len()
    }

    fn host(&self) -> String {
        "this process".to_owned()
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        let part = send.len() / self.count();
        self.meet(send, |rank, theirs| {
            if rank != self.rank {
                receive[rank * part..][..part].copy_from_slice(&theirs[self.rank * part..][..part]);
            }
        });
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.meet(own, |rank, theirs| all[rank * own.len()..][..own.len()].copy_from_slice(theirs));
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        let own = bytes.to_vec();
        self.meet(&own, |rank, theirs| {
            if rank == 0 {
                bytes.copy_from_slice(theirs);
            }
        });
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}
