//! Several processes that train one model, data parallel.
//!
//! A [`Transport`] moves bytes: MPI between processes and machines (`mpi`), memory between the
//! threads of one process (`threads`). [`Comm`] makes the usual collectives of its three operations
//! and adds all sums itself, in the order of the ranks, so that no transport, topology or message
//! size changes a bit and every rank holds what every other holds. [`ShardPlan`] says which rank
//! owns which numbers, `DataParallel` makes one optimizer step of all ranks, and `consensus` lets
//! all ranks fail or go on together.

mod comm;
mod consensus;
mod data_parallel;
mod hosts;
#[cfg(feature = "mpi")]
mod mpi;
mod shard_plan;
mod threads;

pub use comm::{Comm, Transport, launched};
pub(crate) use consensus::{KeyValue, any_stop, assert_equal_across_ranks};
pub use consensus::{all_ok, first_only};
pub(crate) use data_parallel::{DataParallel, DataParallelSettings, parameter_hash};
pub use hosts::{Hosts, TooManyThreads};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub(crate) use shard_plan::bucket_of;
pub use shard_plan::{CommDType, Shard, ShardPlan};
pub use threads::in_threads;
