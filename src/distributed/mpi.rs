//! MPI as the transport between ranks: the only file that names it.

use mpi::Count;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::comm::Transport;

/// The processes that `mpirun`, `mpiexec` or `srun` started together.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Dropping it finalises MPI in this process.
    _universe: Universe,
}

impl Mpi {
    /// Initialises MPI; `None` when this process did so before. Only the thread that calls this may
    /// communicate.
    pub fn join() -> Option<Self> {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)?;
        Some(Self { world: universe.world(), _universe: universe })
    }
}

impl Drop for Mpi {
    /// Finalising waits for the other ranks, and they would wait for ever for one that panicked.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.abort(1);
        }
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.world.size() as usize
    }

    fn host(&self) -> String {
        mpi::environment::processor_name().unwrap_or_else(|_| "an unnamed host".to_owned())
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        let (ranks, part) = (self.world_size(), (send.len() / self.world_size()) as Count);
        let starts: Vec<Count> = (0..ranks as Count).map(|rank| rank * part).collect();
        let mut lengths = vec![part; ranks];
        lengths[self.rank()] = 0;
        let send = Partition::new(send, &lengths[..], &starts[..]);
        let mut receive = PartitionMut::new(receive, &lengths[..], &starts[..]);
        self.world.all_to_all_varcount_into(&send, &mut receive);
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.world.all_gather_into(own, all);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        self.world.process_at_rank(0).broadcast_into(bytes);
    }

    fn abort(&self, code: u8) -> ! {
        self.world.abort(code.into())
    }
}
