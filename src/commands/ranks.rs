//! Start and end of commands that several ranks run together: joining them, dividing a machine's
//! cores, reporting errors once.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Error, Result};
use bitnet_train::distributed::{self, Comm, Hosts};
use bitnet_train::platform;
use bitnet_train::train::{TrainError, all_ok};

use super::set_threads;
use crate::bug;
use crate::failure::code_of;

/// Runs `work` with all ranks that were started together, on this rank's share of the machine's
/// cores; more threads than cores only if `oversubscribe` allows it.
pub(super) fn with_ranks(
    threads: Option<usize>,
    oversubscribe: bool,
    work: impl FnOnce(&Comm) -> Result<()>,
) -> Result<()> {
    let comm = join()?;
    let all = || {
        set_threads(share_cores(threads, oversubscribe, &comm)?)?;
        work(&comm)
    };
    // Nothing looks at what a panic left half-done: it goes on, or ends the process.
    match catch_unwind(AssertUnwindSafe(all)) {
        Ok(done) => done.map_err(|error| leave(&comm, error)),
        Err(panic) => {
            if comm.world_size() > 1 {
                // Does not return; the other ranks would wait for this one.
                let _ = bug::report();
                comm.abort(bug::INTERNAL);
            }
            resume_unwind(panic)
        }
    }
}

/// The ranks that were started together.
#[cfg(feature = "mpi")]
fn join() -> Result<Comm> {
    let Some(launched) = distributed::launched() else { return Ok(Comm::single()) };
    let mpi = distributed::Mpi::join();
    let found = mpi.map_or_else(Comm::single, |mpi| Comm::new(std::rc::Rc::new(mpi)));
    // Started by another MPI than the one that is linked, each process takes itself for the
    // only one.
    if found.world_size() == 1 && launched > 1 {
        return Err(TrainError::OtherMpi { ranks: launched }.into());
    }
    Ok(found)
}

/// A single process. Several processes without MPI would all do the same work, so they are refused.
#[cfg(not(feature = "mpi"))]
fn join() -> Result<Comm> {
    match distributed::launched() {
        Some(ranks) if ranks > 1 => Err(TrainError::NoMpi { ranks }.into()),
        _ => Ok(Comm::single()),
    }
}

/// Worker threads of this rank, on a machine with cores for all of its ranks.
fn share_cores(
    threads: Option<usize>,
    oversubscribe: bool,
    comm: &Comm,
) -> Result<Option<usize>, TrainError> {
    if comm.world_size() == 1 {
        return Ok(threads);
    }
    let hosts = Hosts::gather(comm, platform::cores());
    let threads = threads.unwrap_or_else(|| hosts.threads());
    let enough = if oversubscribe { Ok(()) } else { hosts.check(threads) };
    // One machine may be short of cores and another not.
    all_ok(comm, enough.map_err(TrainError::from))?;
    Ok(Some(threads))
}

/// The error that this rank ends with. An error known to all ranks is reported by one of them; any
/// other aborts the remaining ranks.
fn leave(comm: &Comm, error: Error) -> Error {
    let known = error.downcast_ref::<TrainError>().filter(|known| known.is_shared());
    match known {
        _ if comm.world_size() == 1 => error,
        None => {
            bitnet_terminal::report(&format!("{}: {error:#}", comm.name()), code_of(&error));
            comm.abort(code_of(&error));
            error
        }
        // The rank where it happened says so; the others have `OtherRank`, which is not printed.
        Some(TrainError::OnRank { .. }) => error,
        Some(_) if comm.is_first() => error,
        Some(known) => {
            let (name, code) = (comm.name(), known.exit_code());
            TrainError::OtherRank { name, code, full_disk: known.is_full_disk() }.into()
        }
    }
}
