//! How all ranks fail or continue together.
//!
//! A rank that fails while the others wait in a collective would keep them waiting for ever. So all
//! ranks learn of every step that can fail on one of them alone ([`all_ok`], [`first_only`]) before
//! they go on. Any other failure makes the program end all ranks at once.

use serde::{Deserialize, Serialize};

use super::comm::Comm;
use crate::error::TrainError;
use crate::platform::StopSignal;

/// How the work of one rank ended, as the ranks tell each other.
#[derive(Serialize, Deserialize)]
struct RankStatus {
    name: String,
    /// The exit code of its error; `None` when it succeeded.
    code: Option<u8>,
    full_disk: bool,
}

/// `result` if every rank succeeded. Otherwise the error of the first rank that failed: its own
/// error on that rank, [`TrainError::OtherRank`] on the others.
pub fn all_ok<T>(comm: &Comm, result: Result<T, TrainError>) -> Result<T, TrainError> {
    if comm.world_size() == 1 {
        return result;
    }
    let error = result.as_ref().err();
    let own = RankStatus {
        name: comm.name(),
        code: error.map(TrainError::exit_code),
        full_disk: error.is_some_and(TrainError::is_full_disk),
    };
    let own = serde_json::to_vec(&own).expect("a status serialises");
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).expect("a status we wrote");
    let statuses = comm.gather(&own).into_iter().map(read).enumerate();
    let failed = { statuses }.find(|(_, status): &(_, RankStatus)| status.code.is_some());
    match (failed, result) {
        (None, result) => result,
        (Some((rank, _)), Err(error)) if rank == comm.rank() => Err(shared(comm, error)),
        (Some((_, RankStatus { name, code, full_disk })), _) => {
            let code = code.expect("it failed");
            Err(TrainError::OtherRank { name, code, full_disk })
        }
    }
}

/// An error that all ranks know of, with the name of the rank that had it. A stop has no name.
fn shared(comm: &Comm, error: TrainError) -> TrainError {
    match error {
        stop @ TrainError::Stopped(_) => stop,
        error => TrainError::OnRank { name: comm.name(), error: Box::new(error) },
    }
}

/// Runs `work` on rank 0 only; all ranks learn whether it succeeded.
pub fn first_only<T>(
    comm: &Comm,
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<Option<T>, TrainError> {
    all_ok(comm, if comm.is_first() { work().map(Some) } else { Ok(None) })
}

/// The stop that any rank was asked for.
pub(crate) fn any_stop(comm: &Comm, own: Option<StopSignal>) -> Option<StopSignal> {
    if comm.world_size() == 1 {
        return own;
    }
    // Its place in the list, from 1 on; 0 is none.
    let place = StopSignal::ALL.iter().position(|stop| Some(*stop) == own);
    let place = comm.all_reduce_max(place.map_or(0, |at| at as u8 + 1));
    StopSignal::ALL.get(usize::from(place).checked_sub(1)?).copied()
}

/// Something that must be equal on all ranks: its name, and its value on this rank.
pub(crate) type KeyValue = (String, String);

/// Refuses ranks whose values differ.
///
/// # Errors
/// Names the first rank that differs from rank 0, and each value that differs.
pub(crate) fn assert_equal_across_ranks(comm: &Comm, own: &[KeyValue]) -> Result<(), TrainError> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(&(comm.name(), own)).expect("strings serialise");
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("values we wrote");
    let all: Vec<(String, Vec<KeyValue>)> = comm.gather(&own).iter().map(read).collect();
    let (first, expected) = &all[0];
    let Some((other, values)) = all.iter().find(|(_, values)| values != expected) else {
        return Ok(());
    };
    let what = differences(expected, values).join("\n");
    let what = format!("is about to do something else than {first}:\n{what}");
    let (name, error) = (other.clone(), TrainError::Drift(what));
    Err(if comm.is_first() {
        TrainError::OnRank { name, error: Box::new(error) }
    } else {
        TrainError::OtherRank { name, code: error.exit_code(), full_disk: false }
    })
}

/// A line for each key whose values differ.
fn differences(first: &[KeyValue], other: &[KeyValue]) -> Vec<String> {
    let value = |values: &[KeyValue], key: &str| {
        let found = values.iter().find(|(known, _)| known == key);
        found.map_or_else(|| "unset".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = first.iter().chain(other).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let line = |key: &String| {
        let (here, there) = (value(first, key), value(other, key));
        (here != there).then(|| format!("  {key}: {here} there, {there} here"))
    };
    keys.into_iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::threads::in_threads;
    use super::*;

    fn failing(comm: &Comm, which: &[usize]) -> Result<u8, TrainError> {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        if which.contains(&comm.rank()) { Err(full().into()) } else { Ok(7) }
    }

    #[test]
    fn one_failure_reaches_all_ranks_and_is_reported_once() {
        let found = in_threads(3, |comm| match all_ok(&comm, failing(&comm, &[1, 2])) {
            Err(error) => {
                assert!(error.is_shared() && error.is_full_disk());
                (error.exit_code(), matches!(error, TrainError::OnRank { .. }), error.to_string())
            }
            Ok(_) => unreachable!("a rank failed"),
        });
        let [zero, one, two] = found.try_into().unwrap();
        assert_eq!((zero.0, one.0, two.0), (5, 5, 5));
        assert_eq!((zero.1, one.1, two.1), (false, true, false));
        assert!(one.2.starts_with("rank 1 on this process: "), "{}", one.2);
        let fine = in_threads(2, |comm| all_ok(&comm, failing(&comm, &[])).unwrap());
        assert_eq!(fine, [7, 7]);
    }

    #[test]
    fn the_first_rank_works_and_all_ranks_learn_the_result() {
        let found = in_threads(2, |comm| first_only(&comm, || failing(&comm, &[])).unwrap());
        assert_eq!(found, [Some(7), None]);
        let codes = in_threads(2, |comm| {
            first_only(&comm, || failing(&comm, &[0])).unwrap_err().exit_code()
        });
        assert_eq!(codes, [5, 5]);
    }

    #[test]
    fn a_signal_to_any_rank_is_a_signal_to_all() {
        let stops = in_threads(3, |comm| {
            any_stop(&comm, (comm.rank() == 2).then_some(StopSignal::Interrupt))
        });
        assert_eq!(stops, [Some(StopSignal::Interrupt); 3]);
        assert_eq!(in_threads(2, |comm| any_stop(&comm, None)), [None; 2]);
    }

    #[test]
    fn ranks_that_differ_are_named_with_what_differs() {
        let messages = in_threads(3, |comm| {
            let steps = if comm.rank() == 2 { "30" } else { "20" };
            let terms = [("seed", "1"), ("train.steps", steps)];
            let terms = terms.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_equal_across_ranks(&comm, &terms)
                .map_err(|error| (error.exit_code(), error.to_string()))
        });
        let (code, message) = messages[0].clone().unwrap_err();
        assert_eq!(code, 3);
        let expected = "rank 2 on this process: is about to do something else than rank 0 on this \
                        process:\n  train.steps: 20 there, 30 here";
        assert_eq!(message, expected);
        assert!(messages.iter().all(Result::is_err));
    }
}
