//! How fast training goes here: optimizer steps of a fresh model on random tokens, nothing read or
//! written.

use std::time::{Duration, Instant};

use bitnet_format::ModelSpec;
use burn::tensor::Device;
use rand::Rng;

use crate::model::{Activations, Documents, LanguageModel};
use crate::ops::Compute;
use crate::random;
use crate::train::{
    Accumulated, AdamW, AdamWSettings, Batch, CrossEntropy, Rates, StepSettings, part_size,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The model.
    pub spec: ModelSpec,
    /// Rows of a step; one micro-batch.
    pub rows: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// How it is computed.
    pub compute: Compute,
    /// What its forward passes leave in memory.
    pub activations: Activations,
}

/// What a step took, and its loss.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// Wall clock.
    pub time: Duration,
    /// Mean loss a token.
    pub loss: f32,
}

/// Calls `each` after every one of `steps` steps on one batch that stays the same.
pub fn measure(work: &Workload, steps: usize, device: &Device, mut each: impl FnMut(StepTime)) {
    let model = LanguageModel::initial(&work.spec, 0, device);
    let mut model = model.computed_by(work.compute).with_activations(work.activations);
    let mut optimizer = AdamW::for_model(&work.spec, AdamWSettings::default(), device);
    let batch = [random_parts(&work.spec, work.rows, work.seq_len, device)];
    let rates = Rates { learning_rate: 1e-3, weight_decay: 0.1 };
    for _ in 0..steps {
        let began = Instant::now();
        let sum = Accumulated::over(&model, &CrossEntropy, &batch, device, &|| false);
        let sum = sum.expect("nothing interrupts it");
        let (next, report) = sum.apply(model, &mut optimizer, StepSettings::default(), rates);
        model = next;
        each(StepTime { time: began.elapsed(), loss: report.loss });
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
