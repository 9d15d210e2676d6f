//! How fast training goes here: optimizer steps of a fresh model on random tokens, nothing read or
//! written.

use std::time::{Duration, Instant};

use bitnet_format::{ModelSpec, tensor_table};
use burn::tensor::Device;
use rand::Rng;

use crate::distributed::{Comm, CommDType, DataParallel, DataParallelSettings};
use crate::latents::LeanSettings;
use crate::model::{ActivationMemory, LanguageModel, SegmentStarts};
use crate::ops::OpBackend;
use crate::random;
use crate::recipe::StepRates;
use crate::train::stage::objective::{CrossEntropy, TokenBatch};
use crate::train::step::accumulate::{BatchCut, GradAccumulator};
use crate::train::step::adamw::AdamWSettings;
use crate::train::step::report::StepSettings;
use crate::train::step::update::{OptimizerStep, single_process};

/// What is measured.
#[derive(Clone, Debug)]
pub struct TrainWorkload {
    /// The model.
    pub spec: ModelSpec,
    /// Rows of a step over all ranks; one micro-batch on each.
    pub rows: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Parts of a micro-batch.
    pub copies: usize,
    /// How it is computed.
    pub backend: OpBackend,
    /// What its forward passes leave in memory.
    pub activations: ActivationMemory,
    /// The ranks that make a step together.
    pub comm: Comm,
    /// Whether each of them keeps only the moments of its shards.
    pub sharded: bool,
    /// The number format of gradients in transit.
    pub comm_dtype: CommDType,
}

/// What a step took, and its loss.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// Wall clock.
    pub time: Duration,
    /// The part of it spent communicating with other ranks, or waiting for them.
    pub exchange: Duration,
    /// Mean loss a token.
    pub loss: f32,
}

/// Calls `each` on every rank after every one of `steps` steps on one batch that stays the same.
pub fn measure(
    work: &TrainWorkload,
    steps: usize,
    device: &Device,
    mut each: impl FnMut(StepTime),
) {
    let model = LanguageModel::initial(&work.spec, 0, device);
    let mut model = model.with_backend(work.backend).with_activations(work.activations);
    let table = tensor_table(&work.spec);
    let frozen = vec![false; table.len()];
    let stepper: Box<dyn OptimizerStep> = if work.comm.world_size() == 1 {
        single_process(work.backend, frozen, true)
    } else {
        let TrainWorkload { sharded, comm_dtype, .. } = *work;
        let settings = DataParallelSettings {
            sharded,
            comm_dtype,
            lean: LeanSettings::default(),
            muon: false,
        };
        Box::new(DataParallel::new(&work.comm, table.clone(), frozen, settings))
    };
    let mut optimizer = stepper.new_optimizer(&table, AdamWSettings::default(), device);
    let rows = work.comm.share(work.rows).len();
    let cut = BatchCut { micro_batch: rows, copies: work.copies };
    let part = cut.part_size(rows, work.backend);
    let batch = [random_parts(&work.spec, rows, work.seq_len, part)];
    let (settings, rates) =
        (StepSettings::default(), StepRates { learning_rate: 1e-3, weight_decay: 0.1 });
    for _ in 0..steps {
        let began = Instant::now();
        let sum = GradAccumulator::over(&model, &CrossEntropy, &batch, device, &|| false);
        let sum = sum.expect("nothing interrupts it").all_reduce(&work.comm);
        let (next, pending) = stepper.step(sum, model, &mut optimizer, settings, rates);
        model = next;
        let loss = stepper.sync(pending, &mut optimizer).loss;
        let (time, exchange) = (began.elapsed(), stepper.take_communicated());
        each(StepTime { time, exchange, loss });
    }
}

/// Rows of random tokens, cut into parts of at most `rows` rows.
pub(crate) fn random_parts(
    spec: &ModelSpec,
    rows: usize,
    time: usize,
    part: usize,
) -> Vec<TokenBatch> {
    let parts = (0..rows).step_by(part).enumerate();
    parts.map(|(index, from)| random_batch(spec, index, part.min(rows - from), time)).collect()
}

fn random_batch(spec: &ModelSpec, index: usize, rows: usize, time: usize) -> TokenBatch {
    let mut draw = random::keyed(0, "probe", 0, index as u64);
    let mut ids = || -> Vec<i32> {
        (0..rows * time).map(|_| (draw.next_u32() % spec.vocab_size as u32) as i32).collect()
    };
    TokenBatch {
        tokens: ids(),
        targets: ids(),
        loss_mask: vec![1.0; rows * time],
        documents: SegmentStarts::whole_rows(rows, time),
    }
}
