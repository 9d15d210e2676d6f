//! The rule by which every figure is compared: exactly, or each side is what the f64 model gives for
//! a choice of its near-ties.
//!
//! So a set with a near-tie passes, and a spoiled figure fails on every set: no choice gives it.

use super::reference::Pass;
use super::sets::{Set, largest_difference, relative_distance};

/// Logits, hidden states, log-probabilities: 1e-4 absolute.
pub(crate) fn absolute(a: &[f32], b: &[f32]) -> f64 {
    largest_difference(a, b) / 1e-4
}

/// A loss and its gradients: 1e-5 of the loss, 1e-4 of the length of each parameter's.
pub(crate) fn loss_and_gradients(a: &LossAndGradients, b: &LossAndGradients) -> f64 {
    assert_eq!(a.gradients.len(), b.gradients.len());
    let pairs = a.gradients.iter().zip(&b.gradients);
    let errors = pairs.map(|(a, b)| relative_distance(a, b) / 1e-4);
    largest(errors.chain([(a.loss - b.loss).abs() / b.loss.abs().max(1.0) / 1e-5]))
}

/// A loss and the gradient of every parameter, in the order of the model.
#[derive(Clone)]
pub(crate) struct LossAndGradients {
    pub(crate) loss: f64,
    pub(crate) gradients: Vec<Vec<f32>>,
}

/// The largest; NaN is larger than all others.
pub(crate) fn largest(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |max, error| if error <= max { max } else { error })
}

/// Whether two results differ only by choices at near-ties. `distance` says how far two are apart, as
/// a part of what is allowed, `passes` are those of the f64 model and
/// `result` reads from one what is compared. On success says how far apart they are, and whether at a
/// near-tie.
pub(crate) fn agree<'a, T>(
    [found, expected]: [&T; 2],
    distance: impl Fn(&T, &T) -> f64,
    passes: impl Iterator<Item = Pass<'a>>,
    result: impl Fn(&Pass) -> T,
) -> Result<Agreement, String> {
    let apart = distance(found, expected);
    if apart <= 1.0 {
        return Ok(Agreement { apart, flips: 0, expected: 0 });
    }
    let (mut nearest, mut of_pass) = ([f64::INFINITY; 2], [0; 2]);
    let (mut choices, mut flips) = (0, 0);
    for pass in passes {
        let exact = result(&pass);
        for (side, value) in [found, expected].into_iter().enumerate() {
            let apart = distance(value, &exact);
            if nearest[side] > 1.0 {
                flips += if apart <= 1.0 { pass.flips } else { 0 };
                (nearest[side], of_pass[side]) = (nearest[side].min(apart), choices);
            }
        }
        choices += 1;
        if nearest.iter().all(|&nearest| nearest <= 1.0) {
            let apart = largest(nearest.into_iter());
            return Ok(Agreement { apart, flips, expected: of_pass[1] });
        }
    }
    let [ours, theirs] = nearest;
    Err(format!(
        "{apart:.2} times what is allowed apart, and of {choices} choices at near-ties the nearest \
         to ours is {ours:.2} times away, the nearest to the fixture {theirs:.2}"
    ))
}

/// Two results that agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreement {
    /// How far, as a part of what is allowed; at a flip, how far each is from its choice.
    pub(crate) apart: f64,
    /// Near-ties at which one of them took the farther neighbour.
    pub(crate) flips: usize,
    /// Which of the passes the expected one is, at a flip.
    pub(crate) expected: usize,
}

impl Agreement {
    /// The agreement of several results.
    pub(crate) fn of_all(all: impl Iterator<Item = Result<Self, String>>) -> Result<Self, String> {
        all.reduce(|a, b| {
            let (a, b) = (a?, b?);
            Ok(Self { apart: a.apart.max(b.apart), flips: a.flips + b.flips, expected: 0 })
        })
        .unwrap()
    }
}

/// Prints how well they agree and fails when they do not.
#[track_caller]
pub(crate) fn check(set: &Set, what: &str, agreement: Result<Agreement, String>) {
    match agreement {
        Ok(Agreement { apart, flips, .. }) => {
            let name = set.name();
            let flips = if flips > 0 { format!(", {flips} flipped") } else { String::new() };
            println!("golden {name:>8} {what}: {apart:.2e} of what is allowed{flips}");
        }
        Err(error) => panic!("{} {what}: {error}", set.name()),
    }
}
