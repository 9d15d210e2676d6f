//! What a run will need before it is run: memory by part, and time from a short probe. Nothing here
//! reads data or writes anything.
//!
//! The factors of the memory estimate were fitted to measured peaks (docs/LOG.md, "What a run
//! needs"); they change with the operations in `ops` and `model`.

use std::time::{Duration, Instant};

use bitnet_format::ModelSpec;
use burn::tensor::Device;
use serde::Serialize;

use crate::model::LanguageModel;
use crate::speed::random_parts;
use crate::train::{Accumulated, AdamW, AdamWSettings, CrossEntropy, Rates, StepSettings};

/// Bytes of an f32.
const F32: u64 = 4;
/// Program, thread stacks, and what the allocator keeps for the next step.
const PROGRAM_BYTES: u64 = 118_000_000;
/// Tokens whose logits a thread holds at the same time.
const LOGIT_TOKENS: u64 = 256;

/// What runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Rows of a forward pass: the micro-batch, twice that for pairs.
    pub rows: u64,
    /// Tokens a row.
    pub seq_len: u64,
    /// Micro-batches a step.
    pub micro_batches: u64,
}

/// Memory by part, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Latent weights in f32.
    pub weights: u64,
    /// Their gradients; summed over micro-batches where there are several.
    pub gradients: u64,
    /// First and second moments.
    pub moments: u64,
    /// What a forward pass keeps for the backward pass.
    pub activations: u64,
    /// Logits of the tokens that are looked at.
    pub logits: u64,
    /// Program, thread stacks, allocator.
    pub program: u64,
}

impl Memory {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("logits", self.logits),
            ("program", self.program),
        ]
    }
}

/// The peak of a training run. Token caches are mapped files and not counted.
///
/// A token keeps in each layer two residual streams, queries, keys and values, what attention
/// gives, gate, up and their product in f32, and the inputs of the products in 8 bits; one layer's
/// gradients come on top.
pub fn memory(spec: &ModelSpec, load: Load) -> Memory {
    let of = |factor: f64, values: u64| (factor * (F32 * values) as f64) as u64;
    let parameters = spec.parameters() as u64;
    let (width, ffn) = (spec.hidden_size as u64, spec.intermediate_size as u64);
    let heads = (spec.num_attention_heads * spec.head_dim) as u64;
    let keys = (spec.num_key_value_heads * spec.head_dim) as u64;
    let floats = 2 * width + (heads + 2 * keys) + heads + 3 * ffn;
    let bytes = 2 * width + heads + ffn;
    let a_token = spec.num_hidden_layers as u64 * (F32 * floats + bytes) + 6 * F32 * ffn;
    let tokens = load.rows * load.seq_len;
    let looked_at = (rayon::current_num_threads() as u64 * LOGIT_TOKENS).min(tokens);
    Memory {
        weights: of(1.0, parameters),
        gradients: of(if load.micro_batches > 1 { 3.0 } else { 1.7 }, parameters),
        moments: of(2.0, parameters),
        activations: tokens * a_token,
        logits: of(1.0, looked_at * spec.vocab_size as u64),
        program: PROGRAM_BYTES,
    }
}

/// How long a forward and backward pass and an update take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Forward and backward of one micro-batch.
    pub micro_batch: Duration,
    /// One optimizer update.
    pub update: Duration,
}

impl Pace {
    /// Time of a run, evaluation and saving left aside.
    pub fn of_run(self, steps: u64, micro_batches: u64) -> Duration {
        let step = self.micro_batch * micro_batches as u32 + self.update;
        Duration::from_secs_f64(step.as_secs_f64() * steps as f64)
    }
}

/// Trains a fresh model of this shape on random tokens for a moment and takes the faster of two
/// rounds (cut into parts as a run is); it needs the memory that [`memory`] says.
pub fn probe(spec: &ModelSpec, load: Load, device: &Device) -> Pace {
    let mut model = LanguageModel::initial(spec, 0, device);
    let mut optimizer = AdamW::for_model(spec, AdamWSettings::default(), device);
    let parts = random_parts(spec, load.rows as usize, load.seq_len as usize, device);
    let mut pace = Pace { micro_batch: Duration::MAX, update: Duration::MAX };
    for _ in 0..2 {
        let began = Instant::now();
        let batch = std::slice::from_ref(&parts);
        let sum = Accumulated::over(&model, &CrossEntropy, batch, device, &|| false);
        let sum = sum.expect("nothing interrupts it");
        pace.micro_batch = pace.micro_batch.min(began.elapsed());
        let began = Instant::now();
        let rates = Rates { learning_rate: 1e-6, weight_decay: 0.0 };
        (model, _) = sum.apply(model, &mut optimizer, StepSettings::default(), rates);
        pace.update = pace.update.min(began.elapsed());
    }
    pace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        toml::from_str(
            "hidden_size = 256\nintermediate_size = 688\nnum_hidden_layers = 6\n\
             num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 4096",
        )
        .unwrap()
    }

    #[test]
    fn the_estimate_is_within_a_tenth_of_what_was_measured() {
        // docs/LOG.md: peak RSS of a few steps of config s on two threads.
        for (rows, seq_len, micro_batches, measured) in [
            (8, 256, 1, 452_000_000),
            (4, 256, 1, 335_000_000),
            (16, 256, 1, 692_000_000),
            (4, 512, 1, 455_000_000),
        ] {
            let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let load = Load { rows, seq_len, micro_batches };
            let found = two.install(|| memory(&spec(), load)).total() as f64;
            let error = found / f64::from(measured) - 1.0;
            assert!(error.abs() < 0.1, "{rows} x {seq_len}: {error:.3}");
        }
    }

    #[test]
    fn a_run_takes_its_micro_batches_and_updates() {
        let pace = Pace { micro_batch: Duration::from_secs(2), update: Duration::from_secs(1) };
        assert_eq!(pace.of_run(10, 3), Duration::from_secs(70));
    }
}
