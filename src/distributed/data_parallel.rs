//! One optimizer step of several ranks, and the state they share.
//!
//! Gradients are exchanged when a rank's backward passes are over, because Burn's autodiff returns
//! all of them at its end. A step is
//!
//! 1. reduce-scatter: each rank gets the sums of the shards it owns, added in the order of the ranks;
//! 2. global norm: the sum over the ranks of the squares of their shards;
//! 3. update. With a sharded optimizer (`ZeRO` stage 1, arXiv 1910.02054) the owner updates its
//!    shards, whose moments no other rank holds, and an all-gather sends the new parameters.
//!    Otherwise the all-gather sends the summed gradients, and every rank makes the same update.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bitnet_format::TensorEntry;
use burn::tensor::{Device, Tensor, TensorData};

use super::comm::Comm;
use super::consensus::{all_ok, first_only};
use super::shard_plan::{CommDType, Shard, ShardPlan};
use crate::checkpoint::{
    CheckpointError, MomentData, Moments, StoredMoments, WriteMoment, set_moment,
};
use crate::error::TrainError;
use crate::host::to_host;
use crate::latents::{Latents, LeanSettings, MomentFormat};
use crate::model::{LanguageModel, replace_values, take_values, values};
use crate::recipe::StepRates;
use crate::train::step::accumulate::{GradAccumulator, in_pool};
use crate::train::step::adamw::{AdamW, AdamWSettings, MOMENTS, trained_by_muon};
use crate::train::step::clip::global_norm;
use crate::train::step::moments::MomentKind;
use crate::train::step::report::{PendingStep, StepSettings};
use crate::train::step::update::OptimizerStep;

/// The update of several ranks; an [`OptimizerStep`] like that of one process.
#[derive(Debug)]
pub(crate) struct DataParallel {
    comm: Comm,
    plan: ShardPlan,
    table: Vec<TensorEntry>,
    frozen: Vec<bool>,
    settings: DataParallelSettings,
    /// Time spent communicating, including waiting for other ranks.
    communicated: Cell<Duration>,
}

/// How the ranks share work and memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataParallelSettings {
    /// Each rank keeps the moments of its own shards only.
    pub(crate) sharded: bool,
    /// The number format of gradients in transit.
    pub(crate) comm_dtype: CommDType,
    /// Where fewer bits than f32 are kept; nowhere with a sharded optimizer.
    pub(crate) lean: LeanSettings,
    /// Whether Muon trains the matrices of blocks. Sharded, each of them belongs to one rank.
    pub(crate) muon: bool,
}

impl DataParallel {
    /// For a model of these parameters; `frozen[i]` says whether tensor `i` is not trained.
    pub(crate) fn new(
        comm: &Comm,
        table: Vec<TensorEntry>,
        frozen: Vec<bool>,
        settings: DataParallelSettings,
    ) -> Self {
        // A frozen tensor takes no place on the line: nothing of it is sent or owned.
        let trained = |(entry, frozen): (&TensorEntry, &bool)| {
            if *frozen { 0 } else { entry.elements() }
        };
        // Sharded or not, so that the norm is summed alike and the bits are the same.
        let is_whole = |tensor: usize| settings.muon && trained_by_muon(&table[tensor]);
        let plan = ShardPlan::with_whole(comm, table.iter().zip(&frozen).map(trained), is_whole);
        Self { comm: comm.clone(), plan, table, frozen, settings, communicated: Cell::default() }
    }

    fn timed<R>(&self, communicate: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = communicate();
        self.communicated.set(self.communicated.get() + began.elapsed());
        result
    }

    /// The values of this rank's shards.
    fn own_shards(&self, all: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let own = |shard: &Shard| all[shard.tensor][shard.range.clone()].to_vec();
        self.plan.shards().iter().map(own).collect()
    }

    /// The model of rank 0, on all ranks.
    fn broadcast(&self, model: LanguageModel) -> LanguageModel {
        let device = model.device().inner();
        let mut all = on_host(values(&model));
        for values in &mut all {
            self.comm.broadcast_floats(values);
        }
        for latents in trained_outside(&model) {
            let all = latents.read().bytes();
            latents.set_bytes(&self.comm.broadcast(all));
        }
        replace_values(model, on_device(all, &device))
    }

    /// Whether all ranks hold the same parameters, to the bit.
    fn in_sync(&self, model: &LanguageModel) -> bool {
        // Ranks compute alike and so stay alike. One that did not would go unnoticed for a whole
        // run; comparing 32 bytes a rank at each checkpoint shows it.
        let hashes = self.comm.gather(parameter_hash(model).as_bytes());
        hashes.iter().all(|hash| *hash == hashes[0])
    }

    /// One moment of a tensor, which rank 0 reads, on all ranks.
    fn load_moment(
        &self,
        kind: MomentKind,
        entry: &TensorEntry,
        stored: Option<&StoredMoments>,
    ) -> Result<Vec<f32>, TrainError> {
        let stored = || stored.expect("rank 0 has opened it");
        let found = first_only(&self.comm, || Ok(stored().read(kind, entry)?))?;
        let mut values = found.unwrap_or_else(|| vec![0.0; entry.elements()]);
        self.comm.broadcast_floats(&mut values);
        Ok(values)
    }

    /// Whether a trained tensor has this moment, on whatever rank.
    fn has_moment(&self, tensor: usize, kind: MomentKind) -> bool {
        kind == MomentKind::First || !(self.settings.muon && trained_by_muon(&self.table[tensor]))
    }

    /// Keeps what is this rank's of a tensor's moment.
    fn keep_moment(
        &self,
        optimizer: &mut AdamW,
        (index, kind): (usize, MomentKind),
        values: Vec<f32>,
        device: &Device,
    ) {
        if !self.settings.sharded {
            return set_moment(optimizer, (index, kind), values, device);
        }
        for (place, shard) in self.plan.shards().iter().enumerate() {
            if shard.tensor == index {
                let own = values[shard.range.clone()].to_vec();
                set_moment(optimizer, (place, kind), own, device);
            }
        }
    }
}

impl OptimizerStep for DataParallel {
    /// The host decides whether the update is made: it has the gradients anyway. Loss and count are
    /// those of all ranks already ([`GradAccumulator::all_reduce`]).
    fn step(
        &self,
        mut sum: GradAccumulator,
        model: LanguageModel,
        optimizer: &mut AdamW,
        settings: StepSettings,
        rates: StepRates,
    ) -> (LanguageModel, PendingStep) {
        let backend = model.backend();
        let device = model.device().inner();
        // The plan cuts nothing out of what is frozen.
        let nothing = || Tensor::zeros([0], &device);
        let gradients = sum.take_gradients().into_iter();
        let gradients = gradients.map(|gradient| gradient.unwrap_or_else(nothing));
        // From here on the host: a transport moves bytes of host memory.
        let mut gradients = on_host(gradients.collect());
        let dtype = self.settings.comm_dtype;
        let shards = self.timed(|| self.plan.reduce_scatter(&gradients, dtype));
        let owned = on_device(shards, &device);
        // Each number of the line is owned by one rank, so the squares of all ranks add up to the
        // whole norm without counting any twice. All ranks get the same sum and so decide alike.
        let squares = in_pool(|| global_norm(&owned, backend)).powi(2);
        let norm = self.comm.all_reduce_sum(&[squares])[0].sqrt();
        let (pending, factor) = sum.judge(norm, settings);
        let Some(factor) = factor else { return (model, pending) };
        let (model, old) = take_values(model);
        let update = |optimizer: &mut AdamW, outside, old, gradients| {
            in_pool(|| optimizer.update_all(old, outside, gradients, (factor, rates), backend))
        };
        let new = if self.settings.sharded {
            drop(gradients);
            let mut all = on_host(old);
            // `all` still has the old values of the other ranks' shards; the gather below replaces
            // them.
            let own = on_device(self.own_shards(&all), &device);
            let owned = owned.into_iter().map(Some).collect();
            // Shards are of tensors alone.
            let own = on_host(update(optimizer, &[], own, owned));
            self.timed(|| self.plan.all_gather(&own, &mut all));
            on_device(all, &device)
        } else {
            let owned = on_host(owned);
            self.timed(|| self.plan.all_gather(&owned, &mut gradients));
            let trained = |(gradient, frozen): (_, &bool)| (!frozen).then_some(gradient);
            let gradients = on_device(gradients, &device).into_iter().zip(&self.frozen);
            update(optimizer, model.outside(), old, gradients.map(trained).collect())
        };
        (replace_values(model, new), pending)
    }

    fn frozen(&self) -> &[bool] {
        &self.frozen
    }

    /// A sharded optimizer has the moments of this rank's shards only.
    fn new_optimizer(
        &self,
        table: &[TensorEntry],
        settings: AdamWSettings,
        device: &Device,
    ) -> AdamW {
        if !self.settings.sharded {
            return AdamW::with_lean(table, settings, self.settings.lean, &self.frozen, device);
        }
        let part = |shard: &Shard| (&self.table[shard.tensor], shard.range.len());
        AdamW::of_parts(settings, self.plan.shards().iter().map(part), &device.clone().inner())
    }

    fn load(
        &self,
        model: LanguageModel,
        optimizer: &mut AdamW,
        stored: Option<&StoredMoments>,
    ) -> Result<LanguageModel, TrainError> {
        let device = model.device().inner();
        // Only rank 0 has opened the file; the others have `None` and wait for what it sends.
        let completed = match stored {
            Some(stored) => stored.complete(&model).map_err(TrainError::from),
            None => Ok(()),
        };
        all_ok(&self.comm, completed)?;
        let model = self.broadcast(model);
        for (index, entry) in self.table.iter().enumerate() {
            if self.frozen[index] {
                continue;
            }
            for kind in MOMENTS {
                if !self.has_moment(index, kind) {
                    continue;
                }
                let values = self.load_moment(kind, entry, stored)?;
                self.keep_moment(optimizer, (index, kind), values, &device);
            }
        }
        Ok(model)
    }

    /// Rank 0 writes. With a sharded optimizer the other ranks send it their moments meanwhile.
    fn save(
        &self,
        model: &LanguageModel,
        optimizer: &AdamW,
        step: u64,
        write: &mut dyn FnMut(&dyn Moments) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        if !self.in_sync(model) {
            return Err(TrainError::RanksDiffer { step });
        }
        let moments = GatheredMoments { parallel: self, optimizer, gathered: Cell::new(false) };
        let written = if self.comm.is_first() { write(&moments) } else { Ok(()) };
        // A writer that failed early has not asked for all moments, and the other ranks would wait
        // for it to.
        moments.drain();
        all_ok(&self.comm, written)
    }

    fn take_communicated(&self) -> Duration {
        self.communicated.take()
    }
}

/// The moments of all ranks, gathered shard by shard while a checkpoint is written.
struct GatheredMoments<'a> {
    parallel: &'a DataParallel,
    optimizer: &'a AdamW,
    /// Whether this rank took its part in the gathering.
    gathered: Cell<bool>,
}

impl GatheredMoments<'_> {
    /// Takes part in the gathering without writing: for the ranks that write nothing, and for a
    /// rank 0 that failed before it came to the moments. The others would wait for it otherwise.
    fn drain(&self) {
        if !self.gathered.get() {
            self.each(&mut |_, _, _| Ok(())).expect("nothing is written");
        }
    }
}

impl Moments for GatheredMoments<'_> {
    fn formats(&self, kind: MomentKind) -> Vec<Option<MomentFormat>> {
        if !self.parallel.settings.sharded {
            return self.optimizer.formats(kind);
        }
        let has = |(tensor, frozen): (usize, &bool)| {
            (!frozen && self.parallel.has_moment(tensor, kind)).then_some(MomentFormat::F32)
        };
        self.parallel.frozen.iter().enumerate().map(has).collect()
    }

    /// All ranks call this; `write` is called on rank 0 only.
    fn each(&self, write: &mut WriteMoment) -> Result<(), CheckpointError> {
        let DataParallel { comm, plan, settings, .. } = self.parallel;
        self.gathered.set(true);
        if !settings.sharded {
            return if comm.is_first() { self.optimizer.each(write) } else { Ok(()) };
        }
        let mut result = Ok(());
        for kind in MOMENTS {
            // After a write error nothing more is written, but the gathering has to go on.
            let mut put = |tensor: usize, values: &[f32]| {
                if result.is_ok() && comm.is_first() {
                    result = write(kind, tensor, MomentData::floats(values));
                }
            };
            let own: Vec<_> =
                (0..plan.shards().len()).map(|place| self.optimizer.floats(place, kind)).collect();
            let wanted = |tensor| self.parallel.has_moment(tensor, kind);
            plan.gather(&own, wanted, |tensor, values| put(tensor, &values));
        }
        result
    }
}

/// Identifies the parameters of a model, to the bit.
pub(crate) fn parameter_hash(model: &LanguageModel) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for value in values(model) {
        hasher.update(bytemuck::cast_slice(&on_host(vec![value])[0]));
    }
    for latents in trained_outside(model) {
        hasher.update(&latents.read().bytes());
    }
    hasher.finalize()
}

/// The latents outside of tensors that steps change. Each rank reads those under an adapter from its own
/// copy of the model, whose hash the ranks have compared.
fn trained_outside(model: &LanguageModel) -> impl Iterator<Item = &Latents> {
    model.outside().iter().flatten().filter(|latents| !latents.read().is_frozen())
}

fn on_host(tensors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    tensors.into_iter().map(to_host).collect()
}

fn on_device(values: Vec<Vec<f32>>, device: &Device) -> Vec<Tensor<1>> {
    let tensor = |values: Vec<f32>| {
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), device)
    };
    values.into_iter().map(tensor).collect()
}
