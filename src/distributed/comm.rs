//! The ranks of a run and the collectives between them.

use std::ops::Range;
use std::rc::Rc;

/// Bytes of one broadcast; a transport may count them in 32 bits.
const BROADCAST_BYTES: usize = 1 << 26;

/// Variables by which MPI launchers say how many processes they started: Open MPI, MPICH and its
/// relatives, and Slurm last, because the others may run under it.
const LAUNCHERS: [&str; 4] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Moves bytes between ranks. All ranks make every call, in the same order.
pub trait Transport {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// The machine this rank runs on.
    fn host(&self) -> String;

    /// Sends part `i` of `send` to rank `i`; part `i` of `receive` comes from there. All parts have
    /// the same length. A rank's own part is not sent and its place in `receive` is left as it is.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]);

    /// Part `i` of `all` becomes the `own` of rank `i`.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);

    /// `bytes` become those of rank 0.
    fn broadcast(&self, bytes: &mut [u8]);

    /// Ends all ranks at once, this one with `code`.
    fn abort(&self, code: u8) -> !;
}

/// The ranks of a run, seen from one of them; cheap to clone.
#[derive(Clone, Default)]
pub struct Comm(Option<Rc<dyn Transport>>);

impl std::fmt::Debug for Comm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.world_size())
    }
}

impl Comm {
    /// A process on its own: world size 1.
    pub fn single() -> Self {
        Self(None)
    }

    /// One of several ranks; a transport of world size 1 gives [`Comm::single`].
    pub fn new(transport: Rc<dyn Transport>) -> Self {
        Self((transport.world_size() > 1).then_some(transport))
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |transport| transport.rank())
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.0.as_ref().map_or(1, |transport| transport.world_size())
    }

    /// Whether this is rank 0, which alone prints, logs and writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's share of `total` items; the shares of all ranks follow each other without a gap.
    pub fn share(&self, total: usize) -> Range<usize> {
        let (rank, ranks) = (self.rank(), self.world_size());
        // Rounding down at both ends with one formula: the end of a share is the beginning of the
        // next.
        rank * total / ranks..(rank + 1) * total / ranks
    }

    /// Whether this rank owns item `index` where items are dealt out round robin.
    pub fn owns(&self, index: usize) -> bool {
        index % self.world_size() == self.rank()
    }

    /// A name for messages: rank and host.
    pub fn name(&self) -> String {
        let host = self.0.as_ref().map(|transport| format!(" on {}", transport.host()));
        format!("rank {}{}", self.rank(), host.unwrap_or_default())
    }

    /// Element-wise sums over all ranks, added in the order of the ranks.
    pub fn all_reduce_sum(&self, own: &[f64]) -> Vec<f64> {
        let Some(transport) = self.0.as_ref().filter(|_| !own.is_empty()) else {
            return own.to_vec();
        };
        // Gathered and added here, not reduced by the transport, whose order of sums is its own
        // affair.
        let mut all = vec![0.0; own.len() * transport.world_size()];
        transport.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        let sum = |index: usize| all[index..].iter().step_by(own.len()).sum();
        (0..own.len()).map(sum).collect()
    }

    /// The largest value over all ranks.
    pub fn all_reduce_max(&self, own: u8) -> u8 {
        self.gather(&[own]).concat().into_iter().max().unwrap_or(own)
    }

    /// The bytes of every rank, in the order of the ranks; lengths may differ.
    pub fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let Some(transport) = &self.0 else { return vec![own.to_vec()] };
        // Collectives move equal lengths only: tell all the lengths, pad to the longest, cut again.
        let mut lengths = vec![0_u64; transport.world_size()];
        let length = [own.len() as u64];
        transport.all_gather(bytemuck::cast_slice(&length), bytemuck::cast_slice_mut(&mut lengths));
        let longest = lengths.iter().max().map_or(0, |&length| length as usize);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let mut all = vec![0; longest * lengths.len()];
        transport.all_gather(&padded, &mut all);
        let of = |(rank, &length): (usize, &u64)| all[rank * longest..][..length as usize].to_vec();
        lengths.iter().enumerate().map(of).collect()
    }

    /// The bytes of rank 0; `own` of the other ranks is ignored.
    pub fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        let Some(transport) = &self.0 else { return own };
        // The others do not know how much comes.
        let mut length = [own.len() as u64];
        transport.broadcast(bytemuck::cast_slice_mut(&mut length));
        let mut bytes = own;
        bytes.resize(length[0] as usize, 0);
        bytes.chunks_mut(BROADCAST_BYTES).for_each(|part| transport.broadcast(part));
        bytes
    }

    /// `values` become those of rank 0, which has as many.
    pub fn broadcast_floats(&self, values: &mut [f32]) {
        let Some(transport) = &self.0 else { return };
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        bytes.chunks_mut(BROADCAST_BYTES).for_each(|part| transport.broadcast(part));
    }

    /// Ends all ranks at once; does nothing at world size 1.
    pub fn abort(&self, code: u8) {
        if let Some(transport) = &self.0 {
            transport.abort(code);
        }
    }

    pub(super) fn transport(&self) -> Option<&dyn Transport> {
        self.0.as_deref()
    }
}

/// The number of processes that an MPI launcher started this one among; `None` without a launcher.
pub fn launched() -> Option<usize> {
    let size = |name: &&str| std::env::var(name).ok()?.parse().ok();
    // PMIx gives the rank only; the size is known once MPI is up.
    let unknown = || std::env::var_os("PMIX_RANK").map(|_| 1);
    LAUNCHERS.iter().find_map(size).or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::super::threads::in_threads;
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for (total, ranks) in [(8, 3), (3, 3), (100, 7), (2, 4)] {
            let shares = in_threads(ranks, |comm| comm.share(total).collect::<Vec<_>>());
            assert_eq!(shares.concat(), (0..total).collect::<Vec<_>>());
        }
        assert_eq!(Comm::single().share(5), 0..5);
    }

    #[test]
    fn every_rank_gets_what_every_rank_gave() {
        let found = in_threads(3, |comm| {
            let rank = comm.rank() as u8;
            let words = comm.gather(&vec![rank; rank as usize]);
            let sums = comm.all_reduce_sum(&[f64::from(rank), 1.0]);
            (words, sums, comm.all_reduce_max(7 - rank), comm.broadcast(vec![rank + 9; 3]))
        });
        for (words, sums, max, broadcast) in found {
            assert_eq!(words, [vec![], vec![1], vec![2, 2]]);
            assert_eq!((sums, max, broadcast), (vec![3.0, 3.0], 7, vec![9; 3]));
        }
    }

    #[test]
    fn a_single_process_gets_back_what_it_gives() {
        let single = Comm::single();
        assert_eq!(single.gather(&[1, 2]), [[1, 2]]);
        assert_eq!(single.all_reduce_sum(&[0.1]), [0.1]);
        let facts = (single.world_size(), single.is_first(), single.name());
        assert_eq!(facts, (1, true, "rank 0".to_owned()));
        let mut values = [1.5];
        single.broadcast_floats(&mut values);
        assert_eq!(values[0].to_bits(), 1.5_f32.to_bits());
    }
}
