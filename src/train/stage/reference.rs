//! The frozen reference model of DPO: its log-probability of every answer, computed once before the
//! first step and kept on disk (`kept_file`).
//!
//! They come from the forward pass that trains (recorded for a backward pass, because an unrecorded
//! one can differ in the last bit), at the same precision and over the same rows. So a policy equal
//! to its reference has a loss of exactly ln 2.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::evaluate::batch_of;
use super::kept_file::{ItemComputation, KeptFile, KeptKey, KeptWork};
use super::preference::recorded_log_probs;
use crate::data::{EpochPlan, PairPlan, PreferencePair};
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::train::step::accumulate::detached_copy;

/// Bytes of a pair: two little-endian f32.
const PAIR_BYTES: u64 = 8;

/// The log-probabilities of a set: for each pair, in file order, of the chosen and of the rejected
/// answer. Rank 0 keeps the file in `dir`; all ranks compute.
///
/// `model` is called only when something is left to compute.
pub(super) fn open_or_compute(
    (dir, key): (&Path, &KeptKey),
    work: KeptWork,
    plan: &PairPlan,
    model: &mut dyn FnMut() -> Result<LanguageModel, TrainError>,
) -> Result<Vec<[f32; 2]>, TrainError> {
    let device = work.context.device;
    let hash = key.hash("bitnet-train reference log-probabilities 2", &[]);
    let starts: Vec<u64> = (0..=plan.items()).map(|pair| pair * PAIR_BYTES).collect();
    let end = plan.items() * PAIR_BYTES;
    let file = KeptFile { path: dir.join(format!("reference-{hash}.logp")), starts };
    let progress = |done, total| {
        release_graphs(device);
        (work.progress)(done, total);
    };
    let whole = file.complete(KeptWork { progress: &progress, ..work }, || {
        let model = model()?;
        Ok(ItemComputation {
            in_parallel: model.backend().is_native(),
            of: move |pair: u64| {
                encode(log_probs(&detached_copy(&model), &plan.item(pair), device))
            },
            // No more pairs than threads: a thread that waits within one pair would begin another.
            at_once: 1,
        })
    })?;
    let values = whole.map(|bytes| bytes[..end as usize].to_vec());
    Ok(decode(&work.context.comm.broadcast(values.unwrap_or_default())))
}

/// Burn frees recorded graphs only in a backward pass; any graph will do.
fn release_graphs(device: &Device) {
    let nothing: Tensor<1> = Tensor::zeros([1], device).require_grad();
    let _ = nothing.sum().backward();
}

fn log_probs(model: &LanguageModel, pair: &PreferencePair, device: &Device) -> [f32; 2] {
    let rows = batch_of(&[pair.chosen.clone(), pair.rejected.clone()]);
    let both = recorded_log_probs(model, &rows, device);
    [both[0], both[1]]
}

fn encode(pair: [f32; 2]) -> Vec<u8> {
    pair.map(f32::to_le_bytes).concat()
}

fn decode(bytes: &[u8]) -> Vec<[f32; 2]> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let (pairs, _) = numbers.as_chunks::<2>();
    pairs.iter().map(|pair| pair.map(f32::from_le_bytes)).collect()
}
