//! Estimates what a run will need: memory by part, time from a short probe (`time`), joules
//! (`energy`). Nothing here reads data or writes anything.
//!
//! The factors of the memory estimate were fitted to measured peaks (docs/src/log.md, "What a run
//! needs, a fifth time"); they change with the operations in `ops` and `model`.

mod energy;
mod teacher;
mod time;

use bitnet_format::adapter::AdapterKind;
use bitnet_format::figures::size;
use bitnet_format::group::{ActivationForm, EmbeddingForm};
use bitnet_format::{ModelSpec, TensorEntry, TensorRole, tensor_table};
use bitnet_kernels::Operands;
use burn::tensor::Device;
use serde::Serialize;

use crate::distributed::{CommDType, bucket_of};
use crate::latents::{LatentFormat, LeanSettings, UpdateTime};
use crate::model::ActivationMemory;
use crate::ops::{OpBackend, logits_at_once};
use crate::train::step::accumulate::BatchCut;

pub use energy::{energy, energy_in_words};
pub use teacher::TeacherLoad;
pub use time::{Pace, Speeds, StepEstimate, probe, reduction_rate};

/// Bytes of an f32.
const F32: u64 = 4;
/// The program and what the allocator keeps for the next step.
const PROGRAM_BYTES: u64 = 64_000_000;
/// The same of each thread.
const THREAD_BYTES: u64 = 25_000_000;
/// Share of the gradients of all parts that is there at the same time, and of a tied embedding's
/// second one: parts are not at their ends together.
const GRADIENTS_AT_ONCE: f64 = 0.85;
const SECOND_AT_ONCE: f64 = 0.5;
/// Their sum over micro-batches.
const SUMMED_GRADIENTS: f64 = 1.2;
/// Share of the activations that is there at the peak, beside the gradients that take their place.
const KEPT_AT_ONCE: f64 = 0.85;

/// What MPI holds of its own, fitted to the peaks of docs/src/scaling.md.
const MPI_BYTES: u64 = 25_000_000;

/// Ranks that train together: what memory and time depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankLayout {
    /// How many.
    pub ranks: u64,
    /// Whether each holds only its part of the moments.
    pub sharded: bool,
    /// How gradients travel.
    pub comm_dtype: CommDType,
}

impl RankLayout {
    /// An ordinary process.
    pub const SINGLE: Self = Self { ranks: 1, sharded: false, comm_dtype: CommDType::F32 };

    /// Bytes that each rank sends in a step, and receives: every parameter but its own part goes
    /// once as a gradient to its owner and once, as a sum or a new value, from there to all.
    ///
    /// `(N - 1) / N * parameters * (bytes of a gradient on the way there + 4)`
    pub fn bytes_a_step(self, parameters: u64) -> u64 {
        let share = (self.ranks - 1) as f64 / self.ranks as f64;
        (share * (parameters * (self.comm_dtype.bytes() + F32)) as f64) as u64
    }

    /// Memory that is there only because there are several: that of MPI itself, buckets, and the
    /// pieces a rank owns (sums of gradients; with a sharded optimizer new values too), as far as
    /// they exceed the memory that activations free when the backward pass is over (`freed`).
    fn memory(self, parameters: u64, freed: u64) -> u64 {
        if self.ranks == 1 {
            return 0;
        }
        let pieces = if self.sharded { 2 } else { 1 };
        let buckets = 3 * bucket_of(self.ranks as usize) as u64;
        let exchanged = F32 * (pieces * parameters / self.ranks + buckets);
        MPI_BYTES + exchanged.saturating_sub(freed)
    }

    /// Values a rank holds of something that is cut over ranks.
    fn part(self, values: u64) -> u64 {
        if self.sharded { values.div_ceil(self.ranks) } else { values }
    }
}

/// The work of one rank in a step; by default nothing, with everything kept in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankWorkload {
    /// What a micro-batch is of: rows, or pairs.
    pub items: u64,
    /// Parts of it that are computed side by side, at most.
    pub copies: u64,
    /// Rows of each: 2 of a pair.
    pub rows_an_item: u64,
    /// Tokens a row.
    pub seq_len: u64,
    /// Micro-batches a step.
    pub micro_batches: u64,
    /// What a forward pass leaves in memory.
    pub activations: ActivationMemory,
    /// Where fewer bits than f32 are kept.
    pub lean: LeanSettings,
    /// When parameters are updated.
    pub update: UpdateTime,
    /// The kind and the rank of the adapter that is trained in the model's place.
    pub adapter: Option<(AdapterKind, u64)>,
    /// Whether Muon trains the matrices of blocks.
    pub muon: bool,
    /// What runs beside the student.
    pub teacher: Option<TeacherLoad>,
}

/// Memory by part, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Latent weights.
    pub weights: u64,
    /// Their gradients; summed over micro-batches where there are several. Of a run that updates during
    /// its backward passes those of a block and of the embedding.
    pub gradients: u64,
    /// First and second moments.
    pub moments: u64,
    /// What a forward pass keeps for the backward pass.
    pub activations: u64,
    /// Logits computed at the same time, and what the ternary weights of a head are as floats.
    pub logits: u64,
    /// Program, thread stacks, allocator.
    pub program: u64,
    /// What ranks hold to exchange gradients, beyond what fits in place of activations.
    pub exchange: u64,
    /// Weights, activations and logits of a teacher.
    pub teacher: u64,
}

impl MemoryEstimate {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// The parts that lie on a device with memory of its own: all but those of the program and of the
    /// ranks' exchange.
    #[must_use]
    pub fn on_a_card(self) -> Self {
        Self { program: 0, exchange: 0, ..self }
    }

    /// A line for each part that there is, and one for the total.
    pub fn lines(&self) -> Vec<String> {
        let parts = self.parts().into_iter().filter(|(_, bytes)| *bytes > 0);
        let all = parts.chain([("total", self.total())]);
        all.map(|(part, bytes)| format!("  {part:<12} {:>9}", size(bytes))).collect()
    }

    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("logits", self.logits),
            ("program", self.program),
            ("exchange", self.exchange),
            ("teacher", self.teacher),
        ]
    }
}

/// The peak of a training run on one rank; `load` is its own. Token caches are mapped files and not
/// counted.
///
/// Each part of a micro-batch has gradients of its own. Of tensor `i` there is neither a gradient nor a
/// moment where `frozen[i]`; where the list is short, the others are trained.
pub fn memory(
    spec: &ModelSpec,
    frozen: &[bool],
    load: RankWorkload,
    ranks: RankLayout,
    device: &Device,
) -> MemoryEstimate {
    let of = |factor: f64, values: u64| (factor * F32.saturating_mul(values) as f64) as u64;
    let adapter = load.adapter.map(|(_, rank)| adapter_parameters(spec, rank));
    let trained = adapter.unwrap_or_else(|| trained_parameters(spec, frozen));
    let parts = load.parts(OpBackend::of(device, Operands::F32));
    let threads = rayon::current_num_threads() as u64;
    let at_once = parts.min(threads);
    let tokens = load.rows().saturating_mul(load.seq_len);
    // As the head takes them: some tokens at a time and, of a large vocabulary, some words.
    let logits = logits_at_once(spec.vocab_size, tokens.div_ceil(parts) as usize) as u64;
    let logits = of(1.0, at_once.saturating_mul(logits + dequantised_head(spec)));
    let activations = tokens.saturating_mul(bytes_of_a_token(spec, load.activations));
    let share = at_once as f64 / parts as f64;
    let activations = (KEPT_AT_ONCE * share * activations as f64) as u64;
    let adapted = load.adapter.map(|(kind, rank)| {
        of(1.0, adapter_parameters(spec, rank)) + bytes_under_an_adapter(spec, kind, parts)
    });
    MemoryEstimate {
        weights: adapted.unwrap_or_else(|| stored_weights(spec, frozen, load.lean)),
        gradients: match adapter {
            Some(factors) => of(1.0, (parts + 1).saturating_mul(factors)),
            None => load.gradients(spec, frozen, (parts, at_once)),
        },
        moments: load.moments(spec, trained, ranks),
        activations,
        logits,
        program: PROGRAM_BYTES + threads * THREAD_BYTES,
        exchange: ranks.memory(trained, activations.saturating_add(logits)),
        teacher: load.teacher.map_or(0, |teacher| {
            teacher.memory(at_once, tokens.div_ceil(parts)).saturating_add(logits)
        }),
    }
}

impl RankWorkload {
    /// Bytes of the moments of a rank's part: two, or the one of a matrix that Muon trains.
    fn moments(self, spec: &ModelSpec, trained: u64, ranks: RankLayout) -> u64 {
        let bytes = |values: u64| self.lean.moments.bytes(ranks.part(values));
        let once = if self.muon { matrices(spec).min(trained) } else { 0 };
        bytes(once).saturating_add(bytes(trained - once).saturating_mul(2))
    }

    /// Bytes of the gradients that are there at the same time.
    fn gradients(self, spec: &ModelSpec, frozen: &[bool], (parts, at_once): (u64, u64)) -> u64 {
        let table = tensor_table(spec);
        let is_frozen = |index: usize| frozen.get(index).is_some_and(|&frozen| frozen);
        let embedding = if is_frozen(0) { 0 } else { table[0].elements() as u64 };
        let of = |factor: f64, values: u64| (factor * F32.saturating_mul(values) as f64) as u64;
        if self.update == UpdateTime::During {
            let prefix = "model.layers.0.";
            let block = table.iter().filter(|entry| entry.name.starts_with(prefix));
            let block = block.map(TensorEntry::elements).sum::<usize>() as u64;
            // An untied head's gradient is gone before the embedding's is made.
            let head = if spec.tie_word_embeddings { embedding } else { 0 };
            return of(1.0, (head + block).max(table[0].elements() as u64));
        }
        let trained = trained_parameters(spec, frozen);
        // A tied embedding has two gradients until they are added: as embedding and as head.
        let added_in_place = self.activations == ActivationMemory::Recomputed;
        let twice = if spec.tie_word_embeddings && !added_in_place { embedding } else { 0 };
        let summed = if self.micro_batches > 1 { SUMMED_GRADIENTS } else { 0.0 };
        // Parts that wait for one another are each at their end when the last begins.
        let share = if at_once == parts && parts > 1 { GRADIENTS_AT_ONCE } else { 1.0 };
        of(share, parts.saturating_mul(trained))
            + of(SECOND_AT_ONCE, at_once.saturating_mul(twice))
            + of(summed, trained)
    }
}

/// Floats that a part of a micro-batch makes of a ternary head.
fn dequantised_head(spec: &ModelSpec) -> u64 {
    let is_ternary = spec.quantise && spec.embedding == EmbeddingForm::Ternary;
    if is_ternary { (spec.vocab_size * spec.hidden_size) as u64 } else { 0 }
}

/// Parameters of the matrices of all blocks.
fn matrices(spec: &ModelSpec) -> u64 {
    let table = tensor_table(spec);
    let of_blocks = table.iter().filter(|entry| matches!(entry.role, TensorRole::Linear(_)));
    of_blocks.map(TensorEntry::elements).sum::<usize>() as u64
}

/// Parameters of an adapter of this rank on all matrices of all blocks.
fn adapter_parameters(spec: &ModelSpec, rank: u64) -> u64 {
    let table = tensor_table(spec);
    let adapted = table.iter().filter(|entry| entry.is_ternary(spec));
    adapted.map(|entry| rank * (entry.shape[0] + entry.shape[1]) as u64).sum()
}

/// Bytes of a model that an adapter of this kind leaves as it is. Under a latent one it is a master in
/// BF16, and each part of a micro-batch has the two merged matrices that share an input; under a side one
/// its matrices are codes.
fn bytes_under_an_adapter(spec: &ModelSpec, kind: AdapterKind, parts: u64) -> u64 {
    let all = spec.parameters() as u64;
    match kind {
        AdapterKind::Latent => {
            let pair = 2 * (spec.hidden_size * spec.intermediate_size) as u64;
            LatentFormat::Bf16.bytes(all) + F32 * parts.saturating_mul(pair)
        }
        AdapterKind::Side => {
            let table = tensor_table(spec);
            let ternary = table.iter().filter(|entry| entry.is_ternary(spec));
            let codes = ternary.map(TensorEntry::elements).sum::<usize>() as u64;
            // Two bits a code.
            LatentFormat::Bf16.bytes(all - codes) + codes / 4
        }
    }
}

/// Bytes of all parameters of a model without an adapter.
fn stored_weights(spec: &ModelSpec, frozen: &[bool], lean: LeanSettings) -> u64 {
    let storage = lean.storage(frozen);
    let bytes = |(index, entry): (usize, TensorEntry)| {
        let format = storage.format(index).unwrap_or_default();
        format.bytes(entry.elements() as u64)
    };
    tensor_table(spec).into_iter().enumerate().map(bytes).sum()
}

/// Parameters that are not frozen.
fn trained_parameters(spec: &ModelSpec, frozen: &[bool]) -> u64 {
    let table = tensor_table(spec);
    let frozen = table.iter().zip(frozen).filter(|(_, frozen)| **frozen);
    (spec.parameters() - frozen.map(|(entry, _)| entry.elements()).sum::<usize>()) as u64
}

/// Bytes of a checkpoint's two large files: the model, or its adapter, and the optimizer's state.
pub fn checkpoint_files(spec: &ModelSpec, frozen: &[bool], load: RankWorkload) -> [u64; 2] {
    let (parameters, lean) = (spec.parameters() as u64, load.lean);
    if let Some((_, rank)) = load.adapter {
        let trained = adapter_parameters(spec, rank);
        // Factors are stored in f32 (`checkpoint::write_factors`).
        return [4 * trained, 2 * lean.moments.bytes(trained)];
    }
    let trained = trained_parameters(spec, frozen);
    let (model, extra) = match lean.latents {
        None | Some(LatentFormat::F32) => (4, 0),
        Some(LatentFormat::Bf16) => (2, 0),
        Some(LatentFormat::Bf16Plus8) => (2, trained),
        // A file of bf16 does not hold the codes.
        Some(LatentFormat::Block16) => (2, LatentFormat::Block16.bytes(trained)),
    };
    let moments = load.moments(spec, trained, RankLayout::SINGLE);
    [parameters.saturating_mul(model), moments.saturating_add(extra)]
}

/// What a token keeps: in each block two residual streams, queries, keys and values, what attention
/// gives, gate, up and their product in f32, and the inputs of the products in 8 bits, or in f32 where a
/// ternary model does not quantise them; the gradients of the block that is on its way back come on
/// top. Where blocks are computed again, one block's of these, and what enters each.
fn bytes_of_a_token(spec: &ModelSpec, activations: ActivationMemory) -> u64 {
    let (width, ffn) = (spec.hidden_size as u64, spec.intermediate_size as u64);
    let heads = (spec.num_attention_heads * spec.head_dim) as u64;
    let keys = (spec.num_key_value_heads * spec.head_dim) as u64;
    // Norms of heads keep what they read, and put the projections together again.
    let normalised = if spec.qk_norm { 2 * heads + 3 * keys } else { 0 };
    let floats = 2 * width + (heads + 2 * keys) + normalised + heads + 3 * ffn;
    let is_float = spec.quantise && spec.activations == ActivationForm::None;
    let of_an_input = if is_float { F32 } else { 1 };
    let a_block = F32 * floats + of_an_input * (2 * width + heads + ffn);
    let (blocks, gradients) = (spec.num_hidden_layers as u64, 6 * F32 * ffn);
    match activations {
        ActivationMemory::Kept => blocks * a_block + gradients,
        ActivationMemory::Recomputed => (blocks + 1) * F32 * width + a_block + gradients,
    }
}

impl RankWorkload {
    /// Rows of a micro-batch.
    fn rows(self) -> u64 {
        self.items * self.rows_an_item
    }

    /// Into how many parts a micro-batch is cut.
    fn parts(self, backend: OpBackend) -> u64 {
        self.items.div_ceil(self.part_size(backend) as u64)
    }

    /// Items of each part.
    fn part_size(self, backend: OpBackend) -> usize {
        match self.update {
            UpdateTime::During => self.items.max(1) as usize,
            UpdateTime::After => {
                let (items, copies) = (self.items as usize, self.copies.max(1) as usize);
                BatchCut { micro_batch: items, copies }.part_size(items, backend)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    const S: &str = include_str!("../../configs/s.toml");
    const M: &str = include_str!("../../configs/m.toml");

    /// docs/src/scaling.md: the larger peak of two ranks with a thread each, in MB.
    #[test]
    fn the_estimate_of_a_rank_is_within_a_tenth_of_what_was_measured() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (config, items, seq_len, sharded, measured) in [
            (S, 4, 256, false, 325),
            (S, 4, 256, true, 302),
            (M, 2, 512, false, 837),
            (M, 2, 512, true, 705),
        ] {
            let spec: ModelSpec = toml::from_str(config).unwrap();
            let activations = ActivationMemory::Kept;
            let load = RankWorkload {
                items,
                copies: 1,
                rows_an_item: 1,
                seq_len,
                micro_batches: 1,
                activations,
                ..RankWorkload::default()
            };
            let ranks = RankLayout { ranks: 2, sharded, comm_dtype: CommDType::F32 };
            let found = pool.install(|| memory(&spec, &[], load, ranks, &device::cpu())).total();
            let error = found as f64 / (f64::from(measured) * 1e6) - 1.0;
            assert!(error.abs() < 0.1, "{load:?}, {ranks:?}: {error:.3}");
        }
    }

    #[test]
    fn frozen_tensors_need_their_weights_only() {
        let spec: ModelSpec = toml::from_str(M).unwrap();
        let load = RankWorkload {
            items: 2,
            rows_an_item: 1,
            seq_len: 64,
            micro_batches: 2,
            ..RankWorkload::default()
        };
        let all = tensor_table(&spec).len();
        let of = |frozen: &[bool]| memory(&spec, frozen, load, RankLayout::SINGLE, &device::cpu());
        let (free, frozen) = (of(&[]), of(&vec![true; all]));
        assert_eq!((frozen.gradients, frozen.moments), (0, 0));
        assert_eq!((frozen.weights, frozen.activations), (free.weights, free.activations));
        assert_eq!(of(&vec![false; all]), free);
    }

    /// What a model of this shape is estimated to need, over what it was measured to need, less 1.
    fn error(config: &str, threads: usize, load: RankWorkload, measured: u64) -> f64 {
        let spec: ModelSpec = toml::from_str(config).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found =
            pool.install(|| memory(&spec, &[], load, RankLayout::SINGLE, &device::cpu())).total();
        found as f64 / (measured * 1_000_000) as f64 - 1.0
    }

    /// docs/src/log.md, "What a run needs, a fifth time": peak RSS in MB of two steps of a run.
    #[test]
    fn the_estimate_is_within_a_tenth_of_what_was_measured() {
        let (kept, again) = (ActivationMemory::Kept, ActivationMemory::Recomputed);
        for (config, threads, items, seq_len, micro_batches, activations, measured) in [
            (S, 2, 8, 256, 1, kept, 435),
            (S, 2, 8, 256, 1, again, 294),
            (S, 2, 8, 256, 2, kept, 464),
            (S, 2, 8, 256, 2, again, 322),
            (S, 2, 4, 256, 4, kept, 370),
            (S, 2, 4, 256, 4, again, 309),
            (S, 2, 2, 256, 8, kept, 319),
            (S, 2, 2, 256, 8, again, 292),
            (S, 2, 1, 256, 8, kept, 250),
            (S, 2, 1, 256, 8, again, 247),
            (M, 2, 2, 512, 1, kept, 910),
            (M, 2, 2, 512, 1, again, 782),
            (M, 2, 2, 512, 4, kept, 1050),
            (M, 2, 2, 512, 4, again, 910),
            (M, 2, 4, 512, 1, kept, 1189),
            (M, 2, 4, 512, 1, again, 805),
            (M, 2, 4, 512, 2, kept, 1315),
            (M, 2, 4, 512, 2, again, 949),
            (M, 2, 1, 512, 4, kept, 853),
            (M, 2, 1, 512, 4, again, 786),
            (S, 1, 8, 256, 1, kept, 315),
            (S, 1, 8, 256, 1, again, 244),
            (S, 1, 8, 256, 3, kept, 344),
            (S, 1, 8, 256, 3, again, 265),
            (S, 4, 8, 256, 1, kept, 487),
            (S, 4, 8, 256, 1, again, 347),
            (S, 4, 8, 256, 3, kept, 533),
            (S, 4, 8, 256, 3, again, 389),
            (S, 8, 8, 256, 1, kept, 552),
            (S, 8, 8, 256, 1, again, 426),
            (S, 8, 8, 256, 3, kept, 615),
            (S, 8, 8, 256, 3, again, 523),
            (M, 4, 4, 512, 1, kept, 1260),
            (M, 4, 4, 512, 1, again, 868),
            (M, 4, 4, 512, 2, kept, 1379),
            (M, 4, 4, 512, 2, again, 1019),
            (M, 1, 4, 512, 1, kept, 969),
            (M, 1, 4, 512, 1, again, 753),
            (S, 2, 16, 256, 1, kept, 659),
            (S, 2, 16, 256, 1, again, 353),
            (S, 2, 16, 256, 2, kept, 665),
            (S, 2, 16, 256, 2, again, 359),
            (S, 2, 4, 512, 3, kept, 477),
            (S, 2, 4, 512, 3, again, 330),
            (M, 2, 1, 512, 1, kept, 711),
            (M, 2, 1, 512, 1, again, 638),
        ] {
            let load = RankWorkload {
                items,
                copies: 2,
                rows_an_item: 1,
                seq_len,
                micro_batches,
                activations,
                ..RankWorkload::default()
            };
            let error = error(config, threads, load, measured);
            assert!(error.abs() < 0.1, "{threads} threads, {load:?}: {error:.3}");
        }
    }
}
