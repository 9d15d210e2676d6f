//! Which ranks share a machine, and whether it has room for them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Ranks;

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Berth {
    host: String,
    /// The cores this rank may run on, by number.
    cores: BTreeSet<usize>,
}

/// Where all ranks run, seen from one of them.
#[derive(Clone, Debug)]
pub struct Hosts {
    rank: usize,
    berths: Vec<Berth>,
}

/// More runs on a machine than it has cores for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} has {cores} cores for its {ranks} ranks with {threads} threads each; expected at most a \
     thread a core. Start fewer ranks there (the slots of the hostfile), lower --threads, or \
     say --oversubscribe"
)]
pub struct Crowded {
    host: String,
    cores: usize,
    ranks: usize,
    threads: usize,
}

impl Hosts {
    /// Asks every rank where it runs; `cores` are the numbers of those that this one may run on.
    pub fn ask(ranks: &Ranks, cores: BTreeSet<usize>) -> Self {
        let host = ranks.exchange().map(super::Exchange::host).unwrap_or_default();
        let own = serde_json::to_vec(&Berth { host, cores }).expect("a berth serialises");
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).expect("a berth of our own");
        Self { rank: ranks.rank(), berths: ranks.gather(&own).into_iter().map(read).collect() }
    }

    fn own(&self) -> &Berth {
        &self.berths[self.rank]
    }

    fn neighbours(&self) -> impl Iterator<Item = (usize, &Berth)> {
        let host = &self.own().host;
        self.berths.iter().enumerate().filter(move |(_, berth)| berth.host == *host)
    }

    /// How many ranks run on this machine.
    pub fn ranks_here(&self) -> usize {
        self.neighbours().count()
    }

    /// Which of them this one is, from 0.
    pub fn place_here(&self) -> usize {
        self.neighbours().filter(|(rank, _)| *rank < self.rank).count()
    }

    /// How many cores the ranks of this machine have together.
    fn cores_here(&self) -> usize {
        self.neighbours().flat_map(|(_, berth)| &berth.cores).collect::<BTreeSet<_>>().len()
    }

    /// Worker threads of this rank where nothing else is asked for: its own cores, or its share of
    /// cores that all may use.
    pub fn threads(&self) -> usize {
        let claimed: usize = self.neighbours().map(|(_, berth)| berth.cores.len()).sum();
        let (own, here) = (self.own().cores.len(), self.cores_here());
        if claimed <= here { own.max(1) } else { (here / self.ranks_here()).max(1) }
    }

    /// Refuses a machine with fewer cores than its ranks have threads, each as many as this one.
    pub fn check(&self, threads: usize) -> Result<(), Crowded> {
        let (cores, ranks) = (self.cores_here(), self.ranks_here());
        if ranks == 1 || cores == 0 || ranks * threads <= cores {
            return Ok(());
        }
        Err(Crowded { host: self.own().host.clone(), cores, ranks, threads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(rank: usize, berths: &[(&str, &[usize])]) -> Hosts {
        let berth = |(host, cores): &(&str, &[usize])| Berth {
            host: (*host).to_owned(),
            cores: cores.iter().copied().collect(),
        };
        Hosts { rank, berths: berths.iter().map(berth).collect() }
    }

    #[test]
    fn ranks_bound_to_cores_use_theirs_and_others_share() {
        let bound = hosts(1, &[("a", &[0]), ("a", &[1, 2]), ("b", &[0])]);
        assert_eq!((bound.ranks_here(), bound.place_here(), bound.threads()), (2, 1, 2));
        let free = hosts(2, &[("b", &[0]), ("a", &[0, 1, 2, 3]), ("a", &[0, 1, 2, 3])]);
        assert_eq!((free.ranks_here(), free.place_here(), free.threads()), (2, 1, 2));
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
