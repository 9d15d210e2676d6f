//! Processes that train one model together: who they are, and how numbers travel between them.
//!
//! An engine ([`Exchange`]) moves bytes: MPI between processes and machines (`mpi`), memory between
//! the threads of one process (`threads`). Everything else is made of its three operations. Sums are
//! added here and in the order of the ranks, so that no engine, topology or size of a message
//! changes a bit, and every rank holds what every other holds. What is trained, and when ranks talk
//! to each other, is the business of `train`.

mod cut;
mod hosts;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;

use std::ops::Range;
use std::rc::Rc;

pub(crate) use cut::bucket_of;
pub use cut::{Cut, Piece, Wire};
pub use hosts::{Crowded, Hosts};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use threads::in_threads;

/// Bytes of one broadcast; an engine may count them in 32 bits.
const BROADCAST_BYTES: usize = 1 << 26;

/// Variables by which launchers of MPI programs say how many processes they started: Open MPI,
/// MPICH and its relatives, and Slurm last, under which the others may run.
const LAUNCHERS: [&str; 4] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Moves bytes between ranks. Every call is made by all of them, in the same order.
pub trait Exchange {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// The machine this rank runs on.
    fn host(&self) -> String;

    /// Part `i` of `send` goes to rank `i`; part `i` of `receive` comes from there. All parts are
    /// equally long. A rank's own part goes nowhere and is left as it is.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]);

    /// Part `i` of `all` becomes what rank `i` gave as `own`.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);

    /// `bytes` become those of rank 0.
    fn broadcast(&self, bytes: &mut [u8]);

    /// Ends all ranks at once, this one with `code`.
    fn abort(&self, code: u8) -> !;
}

/// The ranks of a run, seen from one of them; cheap to clone.
#[derive(Clone, Default)]
pub struct Ranks(Option<Rc<dyn Exchange>>);

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.count())
    }
}

impl Ranks {
    /// An ordinary process.
    pub fn alone() -> Self {
        Self(None)
    }

    /// One of several ranks; a single one is an ordinary process.
    pub fn new(exchange: Rc<dyn Exchange>) -> Self {
        Self((exchange.count() > 1).then_some(exchange))
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |exchange| exchange.rank())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |exchange| exchange.count())
    }

    /// Whether this is the one that prints, logs and writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there is no other.
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// The part of `total` things that this rank deals with; all parts together are all of them.
    pub fn share(&self, total: usize) -> Range<usize> {
        let (rank, count) = (self.rank(), self.count());
        rank * total / count..(rank + 1) * total / count
    }

    /// Whether this rank deals with thing `number`, where they are dealt out one by one.
    pub fn deals_with(&self, number: usize) -> bool {
        number % self.count() == self.rank()
    }

    /// Who this is, for a message.
    pub fn name(&self) -> String {
        let host = self.0.as_ref().map(|exchange| format!(" on {}", exchange.host()));
        format!("rank {}{}", self.rank(), host.unwrap_or_default())
    }

    /// The sums over all ranks of as many numbers as each of them gives.
    pub fn sums(&self, own: &[f64]) -> Vec<f64> {
        let Some(exchange) = self.0.as_ref().filter(|_| !own.is_empty()) else {
            return own.to_vec();
        };
        let mut all = vec![0.0; own.len() * exchange.count()];
        exchange.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        let sum = |index: usize| all[index..].iter().step_by(own.len()).sum();
        (0..own.len()).map(sum).collect()
    }

    /// What each rank gives, in their order; the lengths may differ.
    pub fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let Some(exchange) = &self.0 else { return vec![own.to_vec()] };
        let mut lengths = vec![0_u64; exchange.count()];
        let length = [own.len() as u64];
        exchange.all_gather(bytemuck::cast_slice(&length), bytemuck::cast_slice_mut(&mut lengths));
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let mut all = vec![0; longest * lengths.len()];
        exchange.all_gather(&padded, &mut all);
        let of = |(rank, &length): (usize, &u64)| all[rank * longest..][..length as usize].to_vec();
        lengths.iter().enumerate().map(of).collect()
    }

    /// The largest of what the ranks give.
    pub fn most(&self, own: u8) -> u8 {
        self.gather(&[own]).concat().into_iter().max().unwrap_or(own)
    }

    /// What rank 0 gives; nobody else's `own` is looked at.
    pub fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        let Some(exchange) = &self.0 else { return own };
        let mut length = [own.len() as u64];
        exchange.broadcast(bytemuck::cast_slice_mut(&mut length));
        let mut bytes = own;
        bytes.resize(length[0] as usize, 0);
        bytes.chunks_mut(BROADCAST_BYTES).for_each(|part| exchange.broadcast(part));
        bytes
    }

    /// `values` become those of rank 0, which are as many.
    pub fn broadcast_floats(&self, values: &mut [f32]) {
        let Some(exchange) = &self.0 else { return };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        bytes.chunks_mut(BROADCAST_BYTES).for_each(|part| exchange.broadcast(part));
    }

    /// Ends all ranks at once; does nothing where there is no other.
    pub fn abort(&self, code: u8) {
        if let Some(exchange) = &self.0 {
            exchange.abort(code);
        }
    }

    fn exchange(&self) -> Option<&dyn Exchange> {
        self.0.as_deref()
    }
}

/// How many processes a launcher of MPI programs started this one among; `None` where none did.
pub fn launched() -> Option<usize> {
    let size = |name: &&str| std::env::var(name).ok()?.parse().ok();
    // PMIx tells the rank only; the size is known once MPI is up.
    let unknown = || std::env::var_os("PMIX_RANK").map(|_| 1);
    LAUNCHERS.iter().find_map(size).or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for (total, count) in [(8, 3), (3, 3), (100, 7), (2, 4)] {
            let shares = in_threads(count, |ranks| ranks.share(total).collect::<Vec<_>>());
            assert_eq!(shares.concat(), (0..total).collect::<Vec<_>>());
        }
        assert_eq!(Ranks::alone().share(5), 0..5);
    }

    #[test]
    fn everybody_knows_what_everybody_gave() {
        let found = in_threads(3, |ranks| {
            let rank = ranks.rank() as u8;
            let words = ranks.gather(&vec![rank; rank as usize]);
            let sums = ranks.sums(&[f64::from(rank), 1.0]);
            (words, sums, ranks.most(7 - rank), ranks.broadcast(vec![rank + 9; 3]))
        });
        for (words, sums, most, broadcast) in found {
            assert_eq!(words, [vec![], vec![1], vec![2, 2]]);
            assert_eq!((sums, most, broadcast), (vec![3.0, 3.0], 7, vec![9; 3]));
        }
    }

    #[test]
    fn an_ordinary_process_gets_back_what_it_gives() {
        let alone = Ranks::alone();
        assert_eq!(alone.gather(&[1, 2]), [[1, 2]]);
        assert_eq!(alone.sums(&[0.1]), [0.1]);
        assert_eq!((alone.count(), alone.is_first(), alone.name()), (1, true, "rank 0".to_owned()));
        let mut values = [1.5];
        alone.broadcast_floats(&mut values);
        assert_eq!(values[0].to_bits(), 1.5_f32.to_bits());
    }
}
