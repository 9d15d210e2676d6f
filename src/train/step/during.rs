//! `train.update = "during"`: parameters are updated in the middle of the backward pass, each block as
//! soon as its gradients are complete, and the gradients dropped. A step never holds the gradients of
//! the whole model.
//!
//! ```text
//! forward   loss finite, below its limit?      no: the step is skipped, nothing has changed
//! backward  norm, head → block L → … → block 1 → embedding
//!             of each: finite? → clip → update → drop
//! ```
//!
//! The norm of a step is known when its last gradient is, so clipping estimates it. With `S` the squares
//! of the gradients that this step has seen so far, `P` those of the same tensors in the step before, and
//! `G` the norm of the step before:
//!
//! ```text
//! norm ≈ max(√S, G · √(S / P))          factor = min(1, c / norm)
//! ```
//!
//! The first step of a run has none before it: its backward pass runs twice, once to measure. (Clipped by
//! what was seen so far, the first blocks would keep too large a second moment for a hundred steps.)
//!
//! `√S` is a lower bound, so no gradient that is applied exceeds the limit by itself; the ratio notices
//! a step that is larger or smaller than the last from its first gradients on. (The norm of the step
//! before alone lags behind: docs/src/log.md, "A third of the memory".)
//!
//! A gradient that is not finite before anything was updated skips the step. Behind that point the
//! parameters are half new: the run ends with exit code 6 and saves nothing, so its last checkpoint
//! stands.

use std::cell::{Cell, RefCell};

use burn::tensor::Tensor;

use super::adamw::AdamW;
use super::clip::{self, clip_factor};
use super::guard::Skip;
use super::report::StepSettings;
use crate::model::LanguageModel;
use crate::recipe::StepRates;

/// What a step's backward pass updates as it goes.
#[derive(Debug)]
pub struct UpdateDuring<'a> {
    optimizer: RefCell<&'a mut AdamW>,
    settings: StepSettings,
    rates: StepRates,
    /// What gradients are divided by.
    divisor: Cell<f64>,
    applied: RefCell<Applied>,
}

/// What a step has done by the end of its backward pass.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Squares of the gradients of each tensor, of the reduced loss; 0 of those not seen. In f32, which a
    /// checkpoint's JSON gives back to the bit.
    pub(super) squares: Vec<f32>,
    /// Why nothing was updated.
    pub(super) skipped: Option<Skip>,
    /// The first tensor whose gradient was not finite when others were updated already.
    pub(crate) broken: Option<usize>,
    updated: bool,
    /// Gradients of tensors of Burn's own, with the factor of each: they are few and wait for the end.
    pub(super) rest: Vec<(usize, Tensor<1>, f64)>,
}

impl<'a> UpdateDuring<'a> {
    /// The updates of one step with these rates.
    pub fn new(optimizer: &'a mut AdamW, settings: StepSettings, rates: StepRates) -> Self {
        let optimizer = RefCell::new(optimizer);
        Self { optimizer, settings, rates, divisor: Cell::new(1.0), applied: RefCell::default() }
    }

    /// Looks at the mean loss over `count` items; false where the step is skipped.
    pub(super) fn begin(&self, loss: f32, count: f64) -> bool {
        self.divisor.set(self.settings.reduction.divisor(count));
        let mut applied = self.applied.borrow_mut();
        // The norm is not known before the backward pass ends, so only the loss can skip such a
        // step.
        applied.skipped = self.settings.limits.check(loss, 0.0);
        applied.skipped.is_none()
    }

    /// Takes the gradients of tensors `first ..`.
    pub(super) fn take(
        &self,
        model: &LanguageModel,
        first: usize,
        gradients: Vec<Option<Tensor<1>>>,
    ) {
        let applied = &mut *self.applied.borrow_mut();
        if applied.skipped.is_some() || applied.broken.is_some() {
            return;
        }
        let divisor = self.divisor.get();
        let squares = self.squares(model, &gradients);
        if let Some(at) = squares.iter().position(|one| one.is_some_and(|one| !one.is_finite())) {
            applied.refuse(first + at);
            return;
        }
        let optimizer = &mut **self.optimizer.borrow_mut();
        // Counted with the first update, so that a step without any leaves the bias correction
        // alone.
        if !applied.updated {
            optimizer.updates += 1;
            applied.updated = true;
        }
        applied.see(first, &squares);
        let norm = applied.estimated_norm(&optimizer.last_squares);
        let factor = clip_factor(norm, self.settings.grad_clip) / divisor;
        let (rates, backend) = (self.rates, model.backend());
        for (index, gradient) in (first..).zip(gradients) {
            let Some(gradient) = gradient else { continue };
            match model.outside().get(index) {
                Some(Some(latents)) => {
                    optimizer.update_outside(index, latents, gradient, (factor, rates), backend);
                }
                _ => applied.rest.push((index, gradient, factor)),
            }
        }
    }

    /// Whether there is no step before, whose norm says what this one's will be.
    pub(super) fn knows_no_norm(&self) -> bool {
        self.settings.grad_clip > 0.0 && self.optimizer.borrow().last_squares.is_empty()
    }

    /// Looks at the gradients of tensors `first ..` and takes none.
    pub(super) fn measure(
        &self,
        model: &LanguageModel,
        first: usize,
        gradients: &[Option<Tensor<1>>],
    ) {
        let squares = self.squares(model, gradients);
        self.applied.borrow_mut().see(first, &squares);
    }

    /// Makes what was measured the norm to go by.
    pub(super) fn measured(&self) {
        let squares = self.applied.take().squares;
        if squares.iter().all(|square| square.is_finite()) {
            self.optimizer.borrow_mut().last_squares = squares;
        }
    }

    /// Squares of gradients of the reduced loss.
    fn squares(&self, model: &LanguageModel, gradients: &[Option<Tensor<1>>]) -> Vec<Option<f32>> {
        let divisor = self.divisor.get();
        let square = |gradient: &Tensor<1>| {
            (clip::squares(gradient, model.backend()) / divisor / divisor) as f32
        };
        gradients.iter().map(|one| one.as_ref().map(square)).collect()
    }

    pub(super) fn finish(&self) -> Applied {
        self.applied.take()
    }
}

impl Applied {
    pub(super) fn see(&mut self, first: usize, squares: &[Option<f32>]) {
        let end = first + squares.len();
        self.squares.resize(self.squares.len().max(end), 0.0);
        for (place, found) in self.squares[first..].iter_mut().zip(squares) {
            *place = found.unwrap_or(0.0);
        }
    }

    /// The norm of the step, as far as it can be told; `before` has the squares of the step before.
    pub(super) fn estimated_norm(&self, before: &[f32]) -> f64 {
        // The part that was seen grew by `seen / same` since the last step; the rest is taken to
        // have grown alike. Never less than what was seen.
        let seen = sum(&self.squares);
        let same = before.iter().zip(&self.squares).filter(|(_, found)| **found > 0.0);
        let same: f64 = same.map(|(before, _)| f64::from(*before)).sum();
        let all = sum(before);
        let grown = if same > 0.0 { seen / same } else { 1.0 };
        seen.max(all * grown).sqrt()
    }

    fn refuse(&mut self, tensor: usize) {
        // Before the first update a step can still be skipped; after it, it cannot be undone.
        if self.updated {
            self.broken = Some(tensor);
        } else {
            self.skipped = Some(Skip::NotFinite);
        }
    }
}

/// Their sum in f64.
pub(super) fn sum(squares: &[f32]) -> f64 {
    squares.iter().map(|&square| f64::from(square)).sum()
}
