//! What ranks must have in common: whether something worked, and what they are about to do.
//!
//! A rank that fails while the others wait for it would keep them waiting for ever. So wherever
//! one may fail alone, all of them learn of it before they go on ([`agree`]); elsewhere the program
//! ends all ranks at once.

use serde::{Deserialize, Serialize};

use crate::platform::Stop;
use crate::ranks::Ranks;
use crate::train::TrainError;

/// What became of a rank's work.
#[derive(Serialize, Deserialize)]
struct Outcome {
    name: String,
    code: Option<u8>,
    full_disk: bool,
}

/// A result that all ranks have had, or the error of the first rank that failed: on that rank its
/// own, on the others [`TrainError::OtherRank`].
pub fn agree<T>(ranks: &Ranks, result: Result<T, TrainError>) -> Result<T, TrainError> {
    if ranks.is_alone() {
        return result;
    }
    let error = result.as_ref().err();
    let own = Outcome {
        name: ranks.name(),
        code: error.map(TrainError::exit_code),
        full_disk: error.is_some_and(TrainError::is_full_disk),
    };
    let own = serde_json::to_vec(&own).expect("an outcome serialises");
    let outcomes = ranks.gather(&own).into_iter();
    let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).expect("an outcome of our own");
    let failed = outcomes.map(read).enumerate().find(|(_, one): &(_, Outcome)| one.code.is_some());
    match (failed, result) {
        (None, result) => result,
        (Some((rank, _)), Err(error)) if rank == ranks.rank() => Err(agreed(ranks, error)),
        (Some((_, Outcome { name, code, full_disk })), _) => {
            let code = code.expect("it failed");
            Err(TrainError::OtherRank { name, code, full_disk })
        }
    }
}

/// An error that all ranks know of, with the name of the one that had it. A stop is nobody's.
fn agreed(ranks: &Ranks, error: TrainError) -> TrainError {
    match error {
        stop @ TrainError::Stopped(_) => stop,
        error => TrainError::OnRank { name: ranks.name(), error: Box::new(error) },
    }
}

/// Does on the first rank what only that one does; all learn whether it worked.
pub fn first_only<T>(
    ranks: &Ranks,
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<Option<T>, TrainError> {
    agree(ranks, if ranks.is_first() { work().map(Some) } else { Ok(None) })
}

/// The stop that any rank asks for.
pub(crate) fn any_stop(ranks: &Ranks, own: Option<Stop>) -> Option<Stop> {
    let code = own.map_or(0, Stop::exit_code);
    let most = if ranks.is_alone() { code } else { ranks.most(code) };
    [Stop::Interrupt, Stop::Terminate].into_iter().find(|stop| stop.exit_code() == most)
}

/// Something that has to be the same on all ranks: what it is called, and what it is here.
pub(crate) type Term = (String, String);

/// Refuses ranks that do not have the same terms.
///
/// # Errors
/// Names the first rank that differs from rank 0, and what differs.
pub(crate) fn require_same(ranks: &Ranks, terms: &[Term]) -> Result<(), TrainError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let own = serde_json::to_vec(&(ranks.name(), terms)).expect("terms serialise");
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).expect("terms of our own");
    let all: Vec<(String, Vec<Term>)> = ranks.gather(&own).iter().map(read).collect();
    let (first, expected) = &all[0];
    match all.iter().find(|(_, terms)| terms != expected) {
        None => Ok(()),
        Some((other, terms)) => {
            let what = differences(expected, terms).join("\n");
            let what = format!("is about to do something else than {first}:\n{what}");
            let error = TrainError::Drift(what);
            let (name, code) = (other.clone(), error.exit_code());
            Err(if ranks.is_first() {
                TrainError::OnRank { name, error: Box::new(error) }
            } else {
                TrainError::OtherRank { name, code, full_disk: false }
            })
        }
    }
}

/// A line for each term that two ranks do not have in common.
fn differences(first: &[Term], other: &[Term]) -> Vec<String> {
    let value = |terms: &[Term], name: &str| {
        let found = terms.iter().find(|(known, _)| known == name);
        found.map_or_else(|| "unset".to_owned(), |(_, value)| value.clone())
    };
    let mut names: Vec<&String> = first.iter().chain(other).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let line = |name: &String| {
        let (here, there) = (value(first, name), value(other, name));
        (here != there).then(|| format!("  {name}: {here} there, {there} here"))
    };
    names.into_iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::in_threads;

    fn failing(ranks: &Ranks, which: &[usize]) -> Result<u8, TrainError> {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        if which.contains(&ranks.rank()) { Err(full().into()) } else { Ok(7) }
    }

    #[test]
    fn one_failure_is_everybodys_and_told_once() {
        let found = in_threads(3, |ranks| match agree(&ranks, failing(&ranks, &[1, 2])) {
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
        let fine = in_threads(2, |ranks| agree(&ranks, failing(&ranks, &[])).unwrap());
        assert_eq!(fine, [7, 7]);
    }

    #[test]
    fn the_first_rank_works_and_all_learn_of_it() {
        let found = in_threads(2, |ranks| first_only(&ranks, || failing(&ranks, &[])).unwrap());
        assert_eq!(found, [Some(7), None]);
        let codes = in_threads(2, |ranks| {
            first_only(&ranks, || failing(&ranks, &[0])).unwrap_err().exit_code()
        });
        assert_eq!(codes, [5, 5]);
    }

    #[test]
    fn a_signal_to_any_rank_is_a_signal_to_all() {
        let stops =
            in_threads(3, |ranks| any_stop(&ranks, (ranks.rank() == 2).then_some(Stop::Interrupt)));
        assert_eq!(stops, [Some(Stop::Interrupt); 3]);
        assert_eq!(in_threads(2, |ranks| any_stop(&ranks, None)), [None; 2]);
    }

    #[test]
    fn ranks_that_differ_are_named_with_what_differs() {
        let messages = in_threads(3, |ranks| {
            let steps = if ranks.rank() == 2 { "30" } else { "20" };
            let terms = [("seed", "1"), ("train.steps", steps)];
            let terms = terms.map(|(name, value)| (name.to_owned(), value.to_owned()));
            require_same(&ranks, &terms).map_err(|error| (error.exit_code(), error.to_string()))
        });
        let (code, message) = messages[0].clone().unwrap_err();
        assert_eq!(code, 3);
        let expected = "rank 2 on this process: is about to do something else than rank 0 on this \
                        process:\n  train.steps: 20 there, 30 here";
        assert_eq!(message, expected);
        assert!(messages.iter().all(Result::is_err));
    }
}
