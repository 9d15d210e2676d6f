//! One Muon update of a matrix: momentum, orthogonalisation (`ops::muon`), a step with decay.
//!
//! ```text
//! M ← μ·M + (1 − μ)·G         U = μ·M + (1 − μ)·G            (Nesterov's form)
//! W ← (1 − η·λ)·W − η·0.2·√max(out, in)·X                    X: U orthogonalised
//! ```
//!
//! `0.2·√max(out, in)` gives the step the size of one of AdamW's (arXiv 2502.16982, §2.2). Momentum and
//! latents are read and written chunk by chunk in whatever form they are kept.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::{RandomBits, SimdWork};
use rayon::prelude::*;

use super::moments::{Moment, MomentChunk};
use crate::latents::codec::{CHUNK, LatentChunk};
use crate::latents::rounding::RoundingKey;
use crate::model::WidthRatio;
use crate::ops::{self, OpBackend};
use crate::recipe::StepRates;

/// What a matrix of a block is trained by, beside an AdamW for everything else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonSettings {
    /// Decay of the momentum, `μ`.
    pub momentum: f64,
    /// Newton–Schulz iterations.
    pub iterations: usize,
    /// The rate of matrices over that of the schedule.
    pub rate_ratio: f64,
    /// The decay of matrices over that of the schedule.
    pub decay_ratio: f64,
}

impl Default for MuonSettings {
    /// The best of the simulations: rate 0.016 where AdamW has 0.003.
    fn default() -> Self {
        Self { momentum: 0.95, iterations: 5, rate_ratio: 5.0, decay_ratio: 1.0 }
    }
}

/// The momentum of a matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) struct MuonState {
    pub(crate) momentum: Moment,
    pub(crate) shape: [usize; 2],
}

/// One update: what to multiply the gradient by, and the coefficients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MuonUpdate {
    gradient: f32,
    momentum: f32,
    iterations: usize,
    keep: f32,
    step: f32,
}

impl MuonSettings {
    /// The update of a matrix of this shape, each gradient times `factor`, in a model of this width.
    pub(crate) fn update(
        self,
        shape: [usize; 2],
        factor: f64,
        (rates, width): (StepRates, WidthRatio),
    ) -> MuonUpdate {
        let rate = rates.learning_rate * self.rate_ratio;
        MuonUpdate {
            gradient: factor as f32,
            momentum: self.momentum as f32,
            iterations: self.iterations,
            keep: (1.0 - rate * rates.weight_decay * self.decay_ratio) as f32,
            step: (rate * width.muon_rate() * 0.2 * (shape[0].max(shape[1]) as f64).sqrt()) as f32,
        }
    }
}

impl MuonState {
    /// Takes a gradient in; returns the direction to step in, `[out · in]`.
    pub(crate) fn direction(
        &mut self,
        gradient: &[f32],
        update: MuonUpdate,
        backend: OpBackend,
    ) -> Vec<f32> {
        let mut direction = vec![0.0; gradient.len()];
        let chunks = self.momentum.chunks().into_par_iter();
        let chunks = chunks.zip(gradient.par_chunks(CHUNK)).zip(direction.par_chunks_mut(CHUNK));
        chunks.for_each(|((momentum, gradient), direction)| {
            backend.kernel.dispatch(TakeIn { momentum, gradient, direction, update });
        });
        ops::orthogonalise(direction, self.shape, update.iterations, backend)
    }
}

/// Steps along `direction`. The rounding depends on `key` and the place of an element only.
pub(crate) fn step(
    latents: Vec<LatentChunk>,
    direction: &[f32],
    (update, key): (MuonUpdate, RoundingKey),
    backend: OpBackend,
) {
    let chunks = latents.into_par_iter().zip(direction.par_chunks(CHUNK)).enumerate();
    chunks.for_each(|(index, (latents, direction))| {
        let key = key.chunk(index);
        backend.kernel.dispatch(Step { latents, direction, update, key });
    });
}

struct TakeIn<'a> {
    momentum: MomentChunk<'a>,
    gradient: &'a [f32],
    direction: &'a mut [f32],
    update: MuonUpdate,
}

impl SimdWork for TakeIn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { mut momentum, gradient, direction, update } = self;
        let mut values = [0.0; CHUNK];
        let values = &mut values[..gradient.len()];
        momentum.load(values);
        // Nesterov: the direction looks one step ahead of the momentum that is stored.
        let (keep, take) = (update.momentum, 1.0 - update.momentum);
        for ((value, gradient), direction) in values.iter_mut().zip(gradient).zip(direction) {
            let new = take * (gradient * update.gradient);
            *value = keep * *value + new;
            *direction = keep * *value + new;
        }
        momentum.store(values);
    }
}

struct Step<'a> {
    latents: LatentChunk<'a>,
    direction: &'a [f32],
    update: MuonUpdate,
    key: RandomBits,
}

impl SimdWork for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { mut latents, direction, update, key } = self;
        let mut values = [0.0; CHUNK];
        let values = &mut values[..direction.len()];
        latents.load(values);
        for (value, direction) in values.iter_mut().zip(direction) {
            *value = update.keep * *value - update.step * direction;
        }
        latents.store(values, key);
    }
}
