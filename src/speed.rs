//! How fast training goes here: optimizer steps of a fresh model on random tokens, nothing read or
//! written.

use std::time::{Duration, Instant};

use bitnet_format::{ModelSpec, tensor_table};
use burn::tensor::Device;
use rand::Rng;

use crate::model::{Activations, Documents, LanguageModel};
use crate::ops::Compute;
use crate::random;
use crate::ranks::{Ranks, Wire};
use crate::train::{
    Accumulated, AdamW, AdamWSettings, Batch, CrossEntropy, Rates, StepSettings, Together,
    TogetherSettings, part_size,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The model.
    pub spec: ModelSpec,
    /// Rows of a step over all ranks; one micro-batch on each.
    pub rows: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// How it is computed.
    pub compute: Compute,
    /// What its forward passes leave in memory.
    pub activations: Activations,
    /// Who makes a step together.
    pub ranks: Ranks,
    /// Whether each of them keeps only its part of the moments.
    pub sharded: bool,
    /// How their gradients travel.
    pub wire: Wire,
}

/// What a step took, and its loss.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// Wall clock.
    pub time: Duration,
    /// What of it this rank was exchanging gradients with others, or waiting for them.
    pub exchange: Duration,
    /// Mean loss a token.
    pub loss: f32,
}

/// Calls `each` on every rank after every one of `steps` steps on one batch that stays the same.
pub fn measure(work: &Workload, steps: usize, device: &Device, mut each: impl FnMut(StepTime)) {
    let model = LanguageModel::initial(&work.spec, 0, device);
    let mut model = model.computed_by(work.compute).with_activations(work.activations);
    let how = TogetherSettings { sharded: work.sharded, wire: work.wire };
    let frozen = vec![false; tensor_table(&work.spec).len()];
    let together = Together::new(&work.ranks, &work.spec, frozen, how);
    let settings = AdamWSettings::default();
    let own = together.as_ref().and_then(|together| together.own_optimizer(settings, device));
    let whole = || AdamW::for_model(&work.spec, settings, device);
    let mut optimizer = own.unwrap_or_else(whole);
    let rows = work.ranks.share(work.rows).len();
    let batch = [random_parts(&work.spec, rows, work.seq_len, device)];
    let rates = Rates { learning_rate: 1e-3, weight_decay: 0.1 };
    for _ in 0..steps {
        let began = Instant::now();
        let sum = Accumulated::over(&model, &CrossEntropy, &batch, device, &|| false);
        let sum = sum.expect("nothing interrupts it").with_others(&work.ranks);
        let settings = StepSettings::default();
        let (next, made) = match &together {
            Some(together) => together.make(sum, model, &mut optimizer, settings, rates),
            None => sum.make(model, &mut optimizer, settings, rates),
        };
        model = next;
        let loss = made.report(&mut optimizer).loss;
        let exchange = together.as_ref().map(Together::take_exchanged).unwrap_or_default();
        each(StepTime { time: began.elapsed(), exchange, loss });
    }
}

/// Rows of random tokens, cut into parts as a run cuts a micro-batch.
pub(crate) fn random_parts(
    spec: &ModelSpec,
    rows: usize,
    time: usize,
    device: &Device,
) -> Vec<Batch> {
    let part = part_size(rows, device);
    let parts = (0..rows).step_by(part).enumerate();
    parts.map(|(index, from)| random_batch(spec, index, part.min(rows - from), time)).collect()
}

fn random_batch(spec: &ModelSpec, index: usize, rows: usize, time: usize) -> Batch {
    let mut draw = random::keyed(0, "probe", 0, index as u64);
    let mut ids = || -> Vec<i32> {
        (0..rows * time).map(|_| (draw.next_u32() % spec.vocab_size as u32) as i32).collect()
    };
    Batch {
        tokens: ids(),
        targets: ids(),
        loss_mask: vec![1.0; rows * time],
        documents: Documents::whole_rows(rows, time),
    }
}
