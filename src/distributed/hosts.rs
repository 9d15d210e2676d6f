//! Which ranks share a machine, and whether it has enough cores for them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::comm::{Comm, Transport};

/// The host and cores of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Placement {
    host: String,
    /// Ids of the cores this rank may run on.
    cores: BTreeSet<usize>,
}

/// The placement of all ranks, seen from one of them.
#[derive(Clone, Debug)]
pub struct Hosts {
    rank: usize,
    placements: Vec<Placement>,
}

/// The ranks of a machine have more threads than it has cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} has {cores} cores for its {ranks} ranks with {threads} threads each; expected at most a \
     thread a core. Start fewer ranks there (the slots of the hostfile), lower --threads, or \
     say --oversubscribe"
)]
pub struct TooManyThreads {
    host: String,
    cores: usize,
    ranks: usize,
    threads: usize,
}

impl Hosts {
    /// Collects where every rank runs; `cores` are the ids of the cores this rank may run on.
    pub fn gather(comm: &Comm, cores: BTreeSet<usize>) -> Self {
        let host = comm.transport().map(Transport::host).unwrap_or_default();
        let own = serde_json::to_vec(&Placement { host, cores }).expect("a placement serialises");
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).expect("a placement we wrote");
        Self { rank: comm.rank(), placements: comm.gather(&own).into_iter().map(read).collect() }
    }

    fn own(&self) -> &Placement {
        &self.placements[self.rank]
    }

    fn ranks_of_this_host(&self) -> impl Iterator<Item = (usize, &Placement)> {
        let host = &self.own().host;
        self.placements.iter().enumerate().filter(move |(_, placement)| placement.host == *host)
    }

    /// Number of ranks on this machine.
    pub fn local_world_size(&self) -> usize {
        self.ranks_of_this_host().count()
    }

    /// Index of this rank among those of this machine, from 0.
    pub fn local_rank(&self) -> usize {
        self.ranks_of_this_host().filter(|(rank, _)| *rank < self.rank).count()
    }

    /// Cores of all ranks of this machine together, by their ids.
    pub fn local_cores(&self) -> BTreeSet<usize> {
        self.ranks_of_this_host().flat_map(|(_, placement)| placement.cores.clone()).collect()
    }

    /// Index of this machine among those of all ranks, in the order of the ranks, and their number.
    pub fn machine(&self) -> (usize, usize) {
        let mut hosts: Vec<&str> = Vec::new();
        for placement in &self.placements {
            if !hosts.contains(&placement.host.as_str()) {
                hosts.push(&placement.host);
            }
        }
        let own = hosts.iter().position(|host| *host == self.own().host);
        (own.unwrap_or(0), hosts.len())
    }

    /// Default number of worker threads of this rank: its own cores, or its share where the ranks
    /// may all use the same cores.
    pub fn threads(&self) -> usize {
        let claimed: usize =
            self.ranks_of_this_host().map(|(_, placement)| placement.cores.len()).sum();
        let (own, here) = (self.own().cores.len(), self.local_cores().len());
        if claimed <= here { own.max(1) } else { (here / self.local_world_size()).max(1) }
    }

    /// Refuses a machine with fewer cores than threads, if each of its ranks starts `threads`.
    pub fn check(&self, threads: usize) -> Result<(), TooManyThreads> {
        let (cores, ranks) = (self.local_cores().len(), self.local_world_size());
        if ranks == 1 || cores == 0 || ranks * threads <= cores {
            return Ok(());
        }
        Err(TooManyThreads { host: self.own().host.clone(), cores, ranks, threads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(rank: usize, placements: &[(&str, &[usize])]) -> Hosts {
        let placement = |(host, cores): &(&str, &[usize])| Placement {
            host: (*host).to_owned(),
            cores: cores.iter().copied().collect(),
        };
        Hosts { rank, placements: placements.iter().map(placement).collect() }
    }

    #[test]
    fn ranks_bound_to_cores_use_theirs_and_others_share() {
        let bound = hosts(1, &[("a", &[0]), ("a", &[1, 2]), ("b", &[0])]);
        assert_eq!((bound.local_world_size(), bound.local_rank(), bound.threads()), (2, 1, 2));
        assert_eq!((bound.local_cores(), bound.machine()), ([0, 1, 2].into(), (0, 2)));
        assert_eq!(hosts(2, &[("a", &[0]), ("b", &[0]), ("b", &[1])]).machine(), (1, 2));
        let free = hosts(2, &[("b", &[0]), ("a", &[0, 1, 2, 3]), ("a", &[0, 1, 2, 3])]);
        assert_eq!((free.local_world_size(), free.local_rank(), free.threads()), (2, 1, 2));
        assert_eq!(hosts(0, &[("a", &[0, 1, 2])]).threads(), 3);
    }

    #[test]
    fn a_machine_with_more_threads_than_cores_is_named() {
        let full = hosts(0, &[("a", &[0, 1]), ("a", &[0, 1]), ("b", &[0, 1])]);
        assert_eq!(full.check(1), Ok(()));
        let message = full.check(2).unwrap_err().to_string();
        assert!(
            message.starts_with("a has 2 cores for its 2 ranks with 2 threads each"),
            "{message}"
        );
        let crowd = hosts(2, &[("a", &[0, 1]), ("a", &[0, 1]), ("a", &[0, 1])]);
        assert_eq!(crowd.threads(), 1);
        assert!(crowd.check(crowd.threads()).is_err());
    }
}
