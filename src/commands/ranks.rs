//! What commands that several processes run together have in common: how they find each other, share
//! the cores of a machine, and part.

use anyhow::{Error, Result};
use bitnet_train::platform;
use bitnet_train::ranks::{self, Hosts, Ranks};
use bitnet_train::train::{self, TrainError};

use super::set_threads;
use crate::failure::{code_of, say};

/// Runs `work` with the processes that were started together with this one, on this process' share
/// of the machine's cores; more threads than cores only where `oversubscribe` allows it.
pub(super) fn with_ranks(
    threads: Option<usize>,
    oversubscribe: bool,
    work: impl FnOnce(&Ranks) -> Result<()>,
) -> Result<()> {
    let ranks = join()?;
    let all = || {
        set_threads(share_cores(threads, oversubscribe, &ranks)?)?;
        work(&ranks)
    };
    all().map_err(|error| leave(&ranks, error))
}

/// The processes that were started together with this one.
#[cfg(feature = "mpi")]
fn join() -> Result<Ranks> {
    let Some(launched) = ranks::launched() else { return Ok(Ranks::alone()) };
    let mpi = ranks::Mpi::join();
    let found = mpi.map_or_else(Ranks::alone, |mpi| Ranks::new(std::rc::Rc::new(mpi)));
    if found.is_alone() && launched > 1 {
        return Err(TrainError::OtherMpi { ranks: launched }.into());
    }
    Ok(found)
}

/// An ordinary process; several that were started together would all do the same.
#[cfg(not(feature = "mpi"))]
fn join() -> Result<Ranks> {
    match ranks::launched() {
        Some(ranks) if ranks > 1 => Err(TrainError::NoMpi { ranks }.into()),
        _ => Ok(Ranks::alone()),
    }
}

/// Worker threads of this rank, on a machine with cores for all of its ranks.
fn share_cores(
    threads: Option<usize>,
    oversubscribe: bool,
    ranks: &Ranks,
) -> Result<Option<usize>, TrainError> {
    if ranks.is_alone() {
        return Ok(threads);
    }
    let hosts = Hosts::ask(ranks, platform::cores());
    let threads = threads.unwrap_or_else(|| hosts.threads());
    let room = if oversubscribe { Ok(()) } else { hosts.check(threads) };
    train::agree(ranks, room.map_err(TrainError::from))?;
    Ok(Some(threads))
}

/// What a rank says when it ends: nothing where another one does. An error that the others do not
/// know of ends them too.
fn leave(ranks: &Ranks, error: Error) -> Error {
    let known = error.downcast_ref::<TrainError>().filter(|known| known.is_shared());
    match known {
        _ if ranks.is_alone() => error,
        None => {
            say(&format!("error: {}: {error:#}", ranks.name()));
            ranks.abort(code_of(&error));
            error
        }
        Some(TrainError::OnRank { .. }) => error,
        Some(_) if ranks.is_first() => error,
        Some(known) => {
            let (name, code) = (ranks.name(), known.exit_code());
            TrainError::OtherRank { name, code, full_disk: known.is_full_disk() }.into()
        }
    }
}
