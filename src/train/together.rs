//! One optimizer step of several ranks, and the state they share.
//!
//! Gradients are summed when a rank's backward passes are over: Burn's autodiff gives them all at
//! once, at its end. Each rank gets the sums of the pieces it owns ([`Cut`]), and all learn the
//! global norm from the squares of the pieces. With a sharded optimizer (`ZeRO`, arXiv 1910.02054,
//! stage 1) the owner then updates its pieces, whose moments nobody else has, and the new
//! parameters go to all; otherwise the summed gradients do, and everybody makes the same update.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use burn::tensor::{Device, Tensor, TensorData};

use crate::checkpoint::{CheckpointError, MOMENT_KINDS, Moments, StoredMoments, WriteMoment};
use crate::model::{LanguageModel, replace_values, take_values, values};
use crate::ranks::{Cut, Piece, Ranks, Wire};
use crate::train::agreement::{Term, first_only};
use crate::train::step::{Figures, clip_factor, global_norm, in_pool};
use crate::train::{Accumulated, AdamW, AdamWSettings, MadeStep, Rates, StepSettings, TrainError};

/// What several ranks need to train one model.
#[derive(Debug)]
pub(crate) struct Together {
    ranks: Ranks,
    cut: Cut,
    pieces: Vec<Piece>,
    table: Vec<TensorEntry>,
    frozen: Vec<bool>,
    sharded: bool,
    wire: Wire,
    /// Time spent exchanging, waiting for others included.
    exchanged: Cell<Duration>,
}

/// How they do it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TogetherSettings {
    /// Moments live with the owner of a piece and nowhere else.
    pub(crate) sharded: bool,
    /// How gradients travel.
    pub(crate) wire: Wire,
}

impl Together {
    /// For a model of this shape; `None` where there is one rank only.
    pub(crate) fn new(
        ranks: &Ranks,
        spec: &ModelSpec,
        frozen: Vec<bool>,
        settings: TogetherSettings,
    ) -> Option<Self> {
        if ranks.is_alone() {
            return None;
        }
        let table = tensor_table(spec);
        let pairs = table.iter().zip(&frozen);
        let cut = Cut::new(
            ranks,
            pairs.map(|(entry, frozen)| if *frozen { 0 } else { entry.elements() }),
        );
        let TogetherSettings { sharded, wire } = settings;
        let pieces = cut.pieces();
        let exchanged = Cell::default();
        Some(Self { ranks: ranks.clone(), cut, pieces, table, frozen, sharded, wire, exchanged })
    }

    /// The optimizer of step 0 where it is sharded: of the pieces this rank owns.
    pub(crate) fn own_optimizer(&self, settings: AdamWSettings, device: &Device) -> Option<AdamW> {
        let sizes: Vec<usize> = self.pieces.iter().map(|piece| piece.range.len()).collect();
        let decayed = self.pieces.iter().map(|piece| self.table[piece.tensor].is_matrix());
        let own = || AdamW::new(settings, &sizes, decayed.collect(), &device.clone().inner());
        self.sharded.then(own)
    }

    /// As [`Accumulated::make`], with every rank's gradients; the host decides. Loss and count are
    /// those of all ranks already ([`Accumulated::with_others`]).
    pub(crate) fn make(
        &self,
        mut sum: Accumulated,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: Rates,
    ) -> (LanguageModel, MadeStep) {
        let (divisor, compute) = (sum.divisor(settings.reduction), model.compute());
        let device = model.head().device().inner();
        let mut gradients = on_host(sum.take_gradients());
        let pieces = self.timed(|| self.cut.sum(&gradients, self.wire));
        let owned = on_device(pieces, &device);
        let squares = in_pool(|| global_norm(&owned, compute)).powi(2);
        let norm = self.ranks.sums(&[squares])[0].sqrt();
        let (loss, grad_norm) = (sum.loss(), norm / divisor);
        let passed = settings.limits.verdict(loss, grad_norm).is_none();
        let made = sum.made(Figures::Known { loss, grad_norm, passed }, settings.limits);
        if !passed {
            return (model, made);
        }
        let factor = clip_factor(grad_norm, settings.grad_clip) / divisor;
        let (model, old) = take_values(model);
        let update = |optimizer: &mut AdamW, old, gradients| {
            in_pool(|| optimizer.update(old, gradients, factor, rates, compute))
        };
        let new = if self.sharded {
            drop(gradients);
            let mut all = on_host(old);
            let own = on_device(self.own(&all), &device);
            let own = on_host(update(optimizer, own, owned.into_iter().map(Some).collect()));
            self.timed(|| self.cut.spread(&own, &mut all));
            on_device(all, &device)
        } else {
            let owned = on_host(owned);
            self.timed(|| self.cut.spread(&owned, &mut gradients));
            let gradients = optimizer.trained(on_device(gradients, &device));
            update(optimizer, old, gradients)
        };
        (replace_values(model, new), made)
    }

    fn timed<R>(&self, exchange: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = exchange();
        self.exchanged.set(self.exchanged.get() + began.elapsed());
        result
    }

    /// The time spent exchanging since the last call.
    pub(crate) fn take_exchanged(&self) -> Duration {
        self.exchanged.take()
    }

    /// This rank's pieces of all values.
    fn own(&self, all: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let own = |piece: &Piece| all[piece.tensor][piece.range.clone()].to_vec();
        self.pieces.iter().map(own).collect()
    }

    /// The model of rank 0, on all ranks.
    pub(crate) fn same_model(&self, model: LanguageModel) -> LanguageModel {
        let device = model.head().device().inner();
        let mut all = on_host(values(&model));
        for values in &mut all {
            self.ranks.broadcast_floats(values);
        }
        replace_values(model, on_device(all, &device))
    }

    /// Whether all ranks hold the same parameters, to the bit.
    pub(crate) fn holds_the_same(&self, model: &LanguageModel) -> bool {
        let hashes = self.ranks.gather(hash(model).as_bytes());
        hashes.iter().all(|hash| *hash == hashes[0])
    }

    /// The parameters that a run starts from, as something to agree on.
    pub(crate) fn term_of(model: &LanguageModel) -> Term {
        ("parameters of the first step".to_owned(), hash(model).to_hex().to_string())
    }

    /// Gives the moments that rank 0 reads from a checkpoint to the optimizers that keep them.
    pub(crate) fn read_moments(
        &self,
        optimizer: &mut AdamW,
        stored: Option<&StoredMoments>,
        device: &Device,
    ) -> Result<(), TrainError> {
        for (kind, name) in MOMENT_KINDS.iter().enumerate() {
            let mut kept = Vec::new();
            for (index, entry) in self.table.iter().enumerate() {
                let stored = || stored.expect("the first rank has opened it");
                let read = || Ok(stored().read(name, entry)?);
                let found = first_only(&self.ranks, read)?;
                let mut values = found.unwrap_or_else(|| vec![0.0; entry.elements()]);
                self.ranks.broadcast_floats(&mut values);
                if self.sharded {
                    let own = self.pieces.iter().filter(|piece| piece.tensor == index);
                    kept.extend(own.map(|piece| values[piece.range.clone()].to_vec()));
                } else {
                    kept.push(values);
                }
            }
            *[&mut optimizer.first, &mut optimizer.second][kind] = on_device(kept, device);
        }
        Ok(())
    }
}

/// The moments of a run of several ranks, as a checkpoint reads them.
pub(crate) struct GatheredMoments<'a> {
    together: &'a Together,
    optimizer: &'a AdamW,
    heard: Cell<bool>,
}

impl<'a> GatheredMoments<'a> {
    pub(crate) fn new(together: &'a Together, optimizer: &'a AdamW) -> Self {
        Self { together, optimizer, heard: Cell::new(false) }
    }

    /// What a rank does that writes nothing, or failed before it came to the moments: it takes its
    /// part in gathering them.
    pub(crate) fn hear_out(&self) {
        if !self.heard.get() {
            let nothing = self.each(&mut |_, _, _| Ok(()));
            nothing.expect("nothing is written");
        }
    }
}

impl Moments for GatheredMoments<'_> {
    /// All ranks call this; `write` is called where something is written.
    fn each(&self, write: &mut WriteMoment) -> Result<(), CheckpointError> {
        let together = self.together;
        self.heard.set(true);
        if !together.sharded {
            return if together.ranks.is_first() { self.optimizer.each(write) } else { Ok(()) };
        }
        let mut result = Ok(());
        for (kind, moments) in
            MOMENT_KINDS.iter().zip([&self.optimizer.first, &self.optimizer.second])
        {
            let mut put = |tensor: usize, values: &[f32]| {
                // A disk that is full fills no further; the other ranks still have to be heard out.
                if result.is_ok() && together.ranks.is_first() {
                    result = write(kind, tensor, values);
                }
            };
            let own = on_host(moments.clone());
            together.cut.collect(&own, |tensor, values| put(tensor, &values));
            for (tensor, entry) in together.table.iter().enumerate() {
                if together.frozen[tensor] {
                    put(tensor, &vec![0.0; entry.elements()]);
                }
            }
        }
        result
    }
}

fn hash(model: &LanguageModel) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for value in values(model) {
        hasher.update(bytemuck::cast_slice(&on_host(vec![value])[0]));
    }
    hasher.finalize()
}

fn on_host(tensors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    let host = |tensor: Tensor<1>| tensor.into_data().try_into_vec().expect("parameters are f32");
    tensors.into_iter().map(host).collect()
}

fn on_device(values: Vec<Vec<f32>>, device: &Device) -> Vec<Tensor<1>> {
    let tensor = |values: Vec<f32>| {
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), device)
    };
    values.into_iter().map(tensor).collect()
}
