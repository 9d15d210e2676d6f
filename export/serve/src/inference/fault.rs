//! A panic on demand, for the tests of what follows one. Outside of tests it does nothing.

use super::sequence::RunningSequence;

#[cfg(not(test))]
pub(super) fn before_pass(_: &[RunningSequence], _: &[usize]) {}

/// A pass over a prompt with this token panics in tests.
#[cfg(test)]
pub(crate) const FAULT_TOKEN: u32 = 250;

#[cfg(test)]
pub(super) fn before_pass(running: &[RunningSequence], tokens: &[usize]) {
    for (sequence, count) in running.iter().zip(tokens) {
        let start = sequence.cache.len();
        let fault = sequence.tokens[start..start + count].contains(&FAULT_TOKEN);
        assert!(!(fault && sequence.job.prompt.contains(&FAULT_TOKEN)), "a fault on demand");
    }
}
