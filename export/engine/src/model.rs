//! The forward pass over packed weights: token ids in, logits out.
//!
//! `load` reads a model, `sampler` chooses a token.

use std::fmt;

use bitnet_format::ModelSpec;
use bitnet_kernels::Kernel;

use crate::batch::{Chunk, ForwardBatch, Sequence};
use crate::block::PackedBlock;
use crate::compute::KernelChoice;
use crate::linear::EmbeddingOrHead;
use crate::norm::NormWeights;
use crate::workspace::{Buffers, Products, scratch_slice};
use crate::{EngineError, KvCache, Workspace};
use bitnet_format::rope::RopeFrequencies;

/// Tokens that go through the blocks together; bounds the memory of a long prompt.
const MAX_BATCH_TOKENS: usize = 128;

/// Places whose logits exist at one time: `[SCORED, V]` f32.
const SCORED: usize = 32;

/// A sequence, by its index, and one of its tokens.
pub(crate) type Place = (usize, usize);

/// A model in memory: ternary matrices as packed codes, those of a dense model as floats.
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) kernel: Kernel,
    pub(crate) rope: RopeFrequencies,
    pub(crate) embedding: EmbeddingOrHead,
    pub(crate) blocks: Vec<PackedBlock>,
    pub(crate) norm: NormWeights,
    /// `None`: the embedding is the head.
    pub(crate) head: Option<EmbeddingOrHead>,
    pub(crate) all_zero: Vec<String>,
}

impl Model {
    /// The same model, computed by another kernel; not a bit of the logits changes.
    #[must_use]
    pub fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// The tensors that are all zeros, which hints at a file that was not written completely.
    pub fn all_zero(&self) -> &[String] {
        &self.all_zero
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Number of values of a side adapter's factors; 0 without one.
    pub fn adapter_parameters(&self) -> usize {
        self.blocks.iter().map(PackedBlock::adapter_parameters).sum()
    }

    /// An empty context for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.spec)
    }

    /// Logits `[V]` after the last of `tokens`, which follow what `cache` holds.
    ///
    /// # Errors
    /// No token, an unknown one, or more than the context holds; the cache is then unchanged. Logits
    /// that are no numbers.
    pub fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        tokens: &[u32],
    ) -> Result<&'w [f32], EngineError> {
        self.forward_batch(workspace, &mut [Sequence { cache, tokens }])
    }

    /// Logits `[S, V]` after the last token of each sequence. Each weight is read once for all of
    /// them, and a sequence's logits are those it would have alone.
    ///
    /// # Errors
    /// As [`Model::forward`], for any of the sequences; all caches are then unchanged.
    pub fn forward_batch<'w>(
        &self,
        workspace: &'w mut Workspace,
        sequences: &mut [Sequence],
    ) -> Result<&'w [f32], EngineError> {
        for sequence in &*sequences {
            self.check(sequence.cache, sequence.tokens)?;
        }
        let (width, count) = (self.spec.hidden_size, sequences.len());
        let compute = KernelChoice { kernel: self.kernel, threads: workspace.threads };
        let Workspace { buffers, last, logits, chunks, .. } = workspace;
        // Only the last token of each sequence meets the head: it is the largest matrix, and
        // decoding needs no other logits.
        let last = scratch_slice(last, count * width);
        self.passes(compute, buffers, chunks, sequences, |sequences, chunks, buffers| {
            keep_last(sequences, chunks, &buffers.x, last, width);
        });
        let logits = scratch_slice(logits, count * self.spec.vocab_size);
        self.logits(compute, last, &mut buffers.normalised, &mut buffers.products, logits)?;
        Ok(logits)
    }

    /// Calls `each(places, logits [places, V])` with the logits after some tokens, a few at a time;
    /// a place is (sequence, index of its token). `wanted` holds ascending indices for each sequence.
    /// Only these tokens meet the head.
    ///
    /// # Errors
    /// As [`Model::forward_batch`].
    pub(crate) fn forward_places(
        &self,
        workspace: &mut Workspace,
        sequences: &mut [Sequence],
        wanted: &[Vec<usize>],
        mut each: impl FnMut(&[Place], &[f32]),
    ) -> Result<(), EngineError> {
        for sequence in &*sequences {
            self.check(sequence.cache, sequence.tokens)?;
        }
        let compute = KernelChoice { kernel: self.kernel, threads: workspace.threads };
        let (width, vocab_size) = (self.spec.hidden_size, self.spec.vocab_size);
        let Workspace { buffers, last, logits, chunks, .. } = workspace;
        let mut outcome = Ok(());
        self.passes(compute, buffers, chunks, sequences, |_, chunks, buffers| {
            for found in places(chunks, wanted).chunks(SCORED) {
                let rows = scratch_slice(last, found.len() * width);
                for ((row, _), kept) in found.iter().zip(rows.chunks_exact_mut(width)) {
                    kept.copy_from_slice(&buffers.x[row * width..][..width]);
                }
                let logits = scratch_slice(logits, found.len() * vocab_size);
                let Buffers { normalised, products, .. } = buffers;
                let computed = self.logits(compute, rows, normalised, products, logits);
                let found: Vec<Place> = found.iter().map(|(_, place)| *place).collect();
                match computed {
                    Ok(()) => each(&found, logits),
                    broken => outcome = broken,
                }
            }
        });
        outcome
    }

    /// Takes all tokens of checked sequences through the blocks, at most [`MAX_BATCH_TOKENS`] at a
    /// time; `after` sees the residual streams of each pass, `buffers.x [T, C]`.
    fn passes(
        &self,
        compute: KernelChoice,
        buffers: &mut Buffers,
        chunks: &mut Vec<Chunk>,
        sequences: &mut [Sequence],
        mut after: impl FnMut(&[Sequence], &[Chunk], &mut Buffers),
    ) {
        chunks.clear();
        // Sequences are cut where a pass is full, so one pass may hold the end of one and the
        // beginning of the next. A token's result does not depend on its neighbours in a pass.
        let mut free = MAX_BATCH_TOKENS;
        let count = sequences.len();
        for sequence in 0..count {
            let tokens = sequences[sequence].tokens.len();
            let mut next = 0;
            while next < tokens {
                let taken = next..tokens.min(next + free);
                (next, free) = (taken.end, free - taken.len());
                chunks.push(Chunk { sequence, tokens: taken });
                if free == 0 || (next == tokens && sequence + 1 == count) {
                    self.hidden(compute, buffers, ForwardBatch { sequences, chunks });
                    after(sequences, chunks, buffers);
                    chunks.clear();
                    free = MAX_BATCH_TOKENS;
                }
            }
        }
    }

    /// Logits `[T, V]` after each of `tokens`, which follow what `cache` holds.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_all<'w>(
        &self,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        tokens: &[u32],
    ) -> Result<&'w [f32], EngineError> {
        self.check(cache, tokens)?;
        let compute = KernelChoice { kernel: self.kernel, threads: workspace.threads };
        let Workspace { buffers, logits, .. } = workspace;
        let vocab_size = self.spec.vocab_size;
        let logits = scratch_slice(logits, tokens.len() * vocab_size);
        let sequences = &mut [Sequence { cache, tokens }];
        for (pass, logits) in logits.chunks_mut(MAX_BATCH_TOKENS * vocab_size).enumerate() {
            let first = pass * MAX_BATCH_TOKENS;
            let tokens = first..first + logits.len() / vocab_size;
            let chunks = [Chunk { sequence: 0, tokens }];
            self.hidden(
                compute,
                buffers,
                ForwardBatch { sequences: &mut *sequences, chunks: &chunks },
            );
            let Buffers { x, normalised, products, .. } = buffers;
            self.logits(compute, x, normalised, products, logits)?;
        }
        Ok(logits)
    }

    /// Whether `tokens` may follow what `cache` holds; [`Model::forward`] asks this first.
    ///
    /// # Errors
    /// No token, an unknown one, or more than the context holds.
    pub fn check(&self, cache: &KvCache, tokens: &[u32]) -> Result<(), EngineError> {
        assert!(cache.fits(&self.spec), "a cache made for this model");
        let (vocab_size, limit) = (self.spec.vocab_size, self.spec.context_length());
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(EngineError::UnknownToken { id, vocab_size });
        }
        match cache.len() + tokens.len() {
            tokens if tokens > limit => Err(EngineError::ContextFull { tokens, limit }),
            _ => Ok(()),
        }
    }

    /// Checked tokens → the residual stream after the last block, `buffers.x [T, C]`.
    fn hidden(&self, compute: KernelChoice, buffers: &mut Buffers, mut batch: ForwardBatch) {
        let (width, tokens) = (self.spec.hidden_size, batch.chunks.iter().map(|p| p.tokens.len()));
        buffers.x.resize(tokens.sum::<usize>() * width, 0.0);
        for (x, token) in buffers.x.chunks_exact_mut(width).zip(batch.ids()) {
            self.embedding.copy_row(token as usize, x);
        }
        // Once for all layers: positions are the same in each.
        buffers.rotary.set(&self.rope, batch.positions());
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(compute, buffers, layer, &mut batch);
        }
        for chunk in batch.chunks {
            batch.sequences[chunk.sequence].cache.advance(chunk.tokens.len());
        }
    }

    /// Residual stream `[T, C]` → logits `[T, V]`.
    ///
    /// # Errors
    /// A NaN among them.
    fn logits(
        &self,
        compute: KernelChoice,
        hidden: &[f32],
        normalised: &mut Vec<f32>,
        products: &mut Products,
        out: &mut [f32],
    ) -> Result<(), EngineError> {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.logits(compute, self.norm.of(compute.threads, hidden, normalised), products, out);
        // Without a branch inside of a part, so that vectors compare.
        let has_nan = |part: &[f32]| part.iter().fold(false, |found, x| found | x.is_nan());
        if out.chunks(PART).any(has_nan) { Err(EngineError::NotANumber) } else { Ok(()) }
    }
}

/// Logits that are looked through together.
const PART: usize = 1024;

/// The wanted places of a pass, each with its row in it.
fn places(chunks: &[Chunk], wanted: &[Vec<usize>]) -> Vec<(usize, Place)> {
    let (mut found, mut start) = (Vec::new(), 0);
    for Chunk { sequence, tokens } in chunks {
        let here = wanted[*sequence].iter().filter(|token| tokens.contains(token));
        found.extend(here.map(|token| (start + token - tokens.start, (*sequence, *token))));
        start += tokens.len();
    }
    found
}

/// Keeps the row of each sequence's last token, if it is among `chunks`.
fn keep_last(sequences: &[Sequence], chunks: &[Chunk], x: &[f32], last: &mut [f32], width: usize) {
    let mut end = 0;
    for chunk in chunks {
        end += chunk.tokens.len();
        if chunk.tokens.end == sequences[chunk.sequence].tokens.len() {
            let row = &x[(end - 1) * width..end * width];
            last[chunk.sequence * width..][..width].copy_from_slice(row);
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, kernel, .. } = self;
        f.debug_struct("Model").field("spec", spec).field("kernel", kernel).finish_non_exhaustive()
    }
}
