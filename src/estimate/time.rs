//! How long steps take: a probe on this machine, and what several ranks exchange.

use std::time::{Duration, Instant};

use bitnet_format::{ModelSpec, tensor_table};
use burn::tensor::Device;
use serde::Serialize;

use super::{RankLayout, RankWorkload};
use crate::distributed::{CommDType, ShardPlan, in_threads};
use crate::latents::{LatentFormat, UpdateTime};
use crate::model::{LanguageModel, NewAdapter, freeze, is_factor};
use crate::ops::{DistillationTerms, OpBackend};
use crate::recipe::StepRates;
use crate::speed::random_parts;
use crate::train::stage::distill::{Distillation, DistillationBatch};
use crate::train::stage::objective::{CrossEntropy, Objective};
use crate::train::step::accumulate::GradAccumulator;
use crate::train::step::adamw::AdamWSettings;
use crate::train::step::during::UpdateDuring;
use crate::train::step::muon::MuonSettings;
use crate::train::step::report::StepSettings;
use crate::train::step::update::lean_process;

/// How long a forward and backward pass and an update take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Forward and backward of one micro-batch.
    pub micro_batch: Duration,
    /// One optimizer update.
    pub update: Duration,
}

/// What a step of several ranks takes, by part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepEstimate {
    /// Forward and backward of a rank's micro-batches, in seconds.
    pub compute: f64,
    /// The update, of everything or of a rank's part.
    pub update: f64,
    /// Gradients there, sums or new values back: bytes over the speed of the link.
    pub exchange: f64,
    /// What a rank does with these bytes: packing, adding up, unpacking.
    pub reduce: f64,
}

/// How fast ranks exchange, in bytes a second that each sends and receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// The link between them.
    pub link: f64,
    /// A rank's own part of the work ([`reduction_rate`]).
    pub reduction: f64,
}

impl StepEstimate {
    /// The step of a rank that makes `micro_batches` at this pace.
    pub fn new(
        pace: Pace,
        micro_batches: u64,
        ranks: RankLayout,
        parameters: u64,
        speeds: Speeds,
    ) -> Self {
        // Without sharding every rank makes the whole update.
        let part = if ranks.sharded { ranks.ranks as f64 } else { 1.0 };
        let bytes = ranks.bytes_a_step(parameters) as f64;
        Self {
            compute: pace.micro_batch.as_secs_f64() * micro_batches as f64,
            update: pace.update.as_secs_f64() / part,
            exchange: bytes / speeds.link,
            reduce: bytes / speeds.reduction,
        }
    }

    /// All parts, one after the other.
    pub fn seconds(self) -> f64 {
        self.compute + self.update + self.exchange + self.reduce
    }

    /// The share of a step that ranks compute and do not wait for each other.
    pub fn efficiency(self) -> f64 {
        (self.compute + self.update) / self.seconds()
    }
}

/// How fast this machine packs, adds up and unpacks gradients: two ranks in memory exchange 16 million
/// numbers, with copies in the place of a network. The faster of two rounds.
pub fn reduction_rate() -> f64 {
    const NUMBERS: usize = 1 << 24;
    let ranks = RankLayout { ranks: 2, ..RankLayout::SINGLE };
    let took = in_threads(2, |comm| {
        let plan = ShardPlan::new(&comm, [NUMBERS]);
        let mut numbers = [vec![1.0; NUMBERS]];
        let mut round = || {
            let began = Instant::now();
            let sums = plan.reduce_scatter(&numbers, CommDType::F32);
            plan.all_gather(&sums, &mut numbers);
            began.elapsed()
        };
        round().min(round())
    });
    ranks.bytes_a_step(NUMBERS as u64) as f64 / took[0].as_secs_f64()
}

/// Trains a fresh model of this shape on random tokens for a moment, beside a fresh teacher of another, and
/// takes the faster of two rounds (cut into parts as a run is); it needs the memory that [`super::memory`]
/// says. `frozen[i]`: entry `i` of the tensor table is not trained. Where a run updates during its backward
/// passes, the time of an update is part of a micro-batch's.
pub fn probe(
    (spec, frozen): (&ModelSpec, &[bool]),
    teacher: Option<&ModelSpec>,
    load: RankWorkload,
    backend: OpBackend,
    device: &Device,
) -> Pace {
    let (rows, time) = (load.rows() as usize, load.seq_len as usize);
    let parts = random_parts(spec, rows, time, load.part_size(backend));
    let Some(teacher) = teacher.filter(|_| load.teacher.is_some()) else {
        return pace((spec, frozen), &CrossEntropy, &[parts], load, (backend, device));
    };
    // As a stored teacher is kept: outside of Burn's tensors, in two bytes a weight.
    let latents = backend.is_native().then_some(LatentFormat::Bf16);
    let teacher = LanguageModel::initial_with(teacher, 1, &device.clone().inner(), latents.into());
    // What the terms weigh takes no time.
    let terms = DistillationTerms { cross_entropy: 1.0, logits: 1.0, temperature: 1.0 };
    let teacher = Some(teacher.with_backend(backend));
    let objective = Distillation { terms, relations: None, teacher };
    let batch = |rows| DistillationBatch { rows, known: None };
    let parts = parts.into_iter().map(batch).collect();
    pace((spec, frozen), &objective, &[parts], load, (backend, device))
}

/// The faster of two rounds on one micro-batch.
fn pace<O: Objective>(
    (spec, frozen): (&ModelSpec, &[bool]),
    objective: &O,
    batch: &[Vec<O::Batch>; 1],
    load: RankWorkload,
    (backend, device): (OpBackend, &Device),
) -> Pace {
    let table = tensor_table(spec);
    let adapted: Vec<_> = table.into_iter().filter(|entry| entry.is_ternary(spec)).collect();
    let model = match load.adapter {
        None => LanguageModel::initial_with(spec, 0, device, load.lean.storage(frozen)),
        Some((kind, rank)) => {
            let (adapted, rank) = (&*adapted, rank as usize);
            let new = NewAdapter { adapted, kind, rank, scale: 2.0, seed: 0 };
            LanguageModel::initial_adapted(spec, device, new)
        }
    };
    let table = model.table().to_vec();
    let frozen: Vec<bool> = if load.adapter.is_some() {
        table.iter().map(|entry| !is_factor(entry)).collect()
    } else {
        frozen.to_vec()
    };
    let model = freeze(model, &frozen);
    let mut model = model.with_backend(backend).with_activations(load.activations);
    let stepper = lean_process(backend, frozen, (load.lean, load.update), true);
    let muon = load.muon.then(MuonSettings::default);
    let settings = AdamWSettings { muon, ..AdamWSettings::default() };
    let mut optimizer = stepper.new_optimizer(&table, settings, device);
    let (settings, rates) =
        (StepSettings::default(), StepRates { learning_rate: 1e-6, weight_decay: 0.0 });
    let mut pace = Pace { micro_batch: Duration::MAX, update: Duration::MAX };
    // The first round also pays for memory that the second finds there.
    for _ in 0..2 {
        let began = Instant::now();
        let sum = if load.update == UpdateTime::During {
            let updates = UpdateDuring::new(&mut optimizer, settings, rates);
            GradAccumulator::updating(&model, objective, &batch[0][0], device, &updates)
        } else {
            let sum = GradAccumulator::over(&model, objective, batch, device, &|| false);
            sum.expect("nothing interrupts it")
        };
        pace.micro_batch = pace.micro_batch.min(began.elapsed());
        let began = Instant::now();
        let (next, pending) = stepper.step(sum, model, &mut optimizer, settings, rates);
        stepper.sync(pending, &mut optimizer);
        model = next;
        pace.update = pace.update.min(began.elapsed());
    }
    pace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_send_all_but_their_own_part_twice() {
        let ranks = RankLayout { ranks: 4, sharded: true, comm_dtype: CommDType::F32 };
        assert_eq!(ranks.bytes_a_step(1000), 6000);
        assert_eq!(RankLayout { comm_dtype: CommDType::Bf16, ..ranks }.bytes_a_step(1000), 4500);
        assert_eq!(RankLayout::SINGLE.bytes_a_step(1000), 0);
        let pace = Pace { micro_batch: Duration::from_secs(2), update: Duration::from_secs(1) };
        let speeds = Speeds { link: 6000.0, reduction: 12000.0 };
        let step = StepEstimate::new(pace, 3, ranks, 1000, speeds);
        let expected = StepEstimate { compute: 6.0, update: 0.25, exchange: 1.0, reduce: 0.5 };
        assert_eq!(step, expected);
        assert!((step.efficiency() - 6.25 / 7.75).abs() < 1e-12);
    }
}
