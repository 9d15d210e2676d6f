//! The forward pass over packed weights: token ids in, logits out.
//!
//! Reading a folder is `load`'s business, choosing a token `sampler`'s.

use std::fmt;
use std::ops::Range;

use bitnet_format::ModelSpec;
use bitnet_kernels::Kernel;

use crate::block::Block;
use crate::cache::LayerCache;
use crate::compute::Compute;
use crate::linear::Table;
use crate::norm::RmsNorm;
use crate::workspace::{Buffers, Products, room};
use crate::{EngineError, KvCache, Workspace};
use bitnet_format::rope::RopeFrequencies;

/// Tokens that go through the blocks together; bounds the memory of a long prompt.
const TOGETHER: usize = 128;

/// A packed model in memory.
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) kernel: Kernel,
    pub(crate) rope: RopeFrequencies,
    pub(crate) embedding: Table,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    /// `None`: the embedding is the head.
    pub(crate) head: Option<Table>,
}

/// The next tokens of one of several sequences.
#[derive(Debug)]
pub struct Continuation<'a> {
    /// What the sequence has seen; the tokens follow it.
    pub cache: &'a mut KvCache,
    /// At least one.
    pub tokens: &'a [u32],
}

/// Tokens of one sequence that go through the blocks together with those of others.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Which of the sequences.
    sequence: usize,
    /// Which of its tokens.
    tokens: Range<usize>,
}

/// What goes through the blocks together: at most [`TOGETHER`] tokens.
pub(crate) struct Batch<'s, 'a> {
    sequences: &'s mut [Continuation<'a>],
    parts: &'s [Part],
}

impl Batch<'_, '_> {
    /// Calls `work(rows of this batch, cache of their sequence)` for each part.
    pub(crate) fn each(
        &mut self,
        layer: usize,
        mut work: impl FnMut(Range<usize>, &mut LayerCache),
    ) {
        let mut first = 0;
        for part in self.parts {
            let rows = first..first + part.tokens.len();
            first = rows.end;
            work(rows, self.sequences[part.sequence].cache.layer(layer));
        }
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        let ids = |part: &Part| &self.sequences[part.sequence].tokens[part.tokens.clone()];
        self.parts.iter().flat_map(ids).copied()
    }

    /// Where each token stands in its sequence. A sequence's tokens enter its cache in order.
    fn positions(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().flat_map(|part| {
            let start = self.sequences[part.sequence].cache.len();
            start..start + part.tokens.len()
        })
    }
}

impl Model {
    /// The same model, computed by another kernel; not a bit of the logits changes.
    #[must_use]
    pub fn with_kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// An empty context for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.spec)
    }

    /// Logits `[V]` after the last of `tokens`, which follow what `cache` holds.
    ///
    /// # Errors
    /// No token, an unknown one, or more than the context holds; the cache is then unchanged.
    pub fn forward<'w>(
        &self,
        workspace: &'w mut Workspace,
        cache: &mut KvCache,
        tokens: &[u32],
    ) -> Result<&'w [f32], EngineError> {
        self.forward_batch(workspace, &mut [Continuation { cache, tokens }])
    }

    /// Logits `[S, V]` after the last token of each sequence. Each weight is read once for all of
    /// them, and a sequence's logits are those it would have alone.
    ///
    /// # Errors
    /// As [`Model::forward`], for any of the sequences; all caches are then unchanged.
    pub fn forward_batch<'w>(
        &self,
        workspace: &'w mut Workspace,
        sequences: &mut [Continuation],
    ) -> Result<&'w [f32], EngineError> {
        for sequence in &*sequences {
            self.check(sequence.cache, sequence.tokens)?;
        }
        let (width, count) = (self.spec.hidden_size, sequences.len());
        let compute = Compute { kernel: self.kernel, threads: workspace.threads };
        let Workspace { buffers, last, logits, parts, .. } = workspace;
        room(last, count * width);
        parts.clear();
        let mut free = TOGETHER;
        for sequence in 0..count {
            let tokens = sequences[sequence].tokens.len();
            let mut next = 0;
            while next < tokens {
                let taken = next..tokens.min(next + free);
                (next, free) = (taken.end, free - taken.len());
                parts.push(Part { sequence, tokens: taken });
                if free == 0 || (next == tokens && sequence + 1 == count) {
                    self.hidden(compute, buffers, Batch { sequences, parts });
                    keep_last(sequences, parts, &buffers.x, last, width);
                    parts.clear();
                    free = TOGETHER;
                }
            }
        }
        let logits = room(logits, count * self.spec.vocab_size);
        self.logits(compute, last, &mut buffers.normalised, &mut buffers.products, logits);
        Ok(logits)
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
        let compute = Compute { kernel: self.kernel, threads: workspace.threads };
        let Workspace { buffers, logits, .. } = workspace;
        let vocab_size = self.spec.vocab_size;
        let logits = room(logits, tokens.len() * vocab_size);
        for (tokens, logits) in
            tokens.chunks(TOGETHER).zip(logits.chunks_mut(TOGETHER * vocab_size))
        {
            let parts = [Part { sequence: 0, tokens: 0..tokens.len() }];
            let sequences = &mut [Continuation { cache, tokens }];
            self.hidden(compute, buffers, Batch { sequences, parts: &parts });
            let Buffers { x, normalised, products, .. } = buffers;
            self.logits(compute, x, normalised, products, logits);
        }
        Ok(logits)
    }

    /// Whether `tokens` may follow what `cache` holds; [`Model::forward`] asks this first.
    ///
    /// # Errors
    /// No token, an unknown one, or more than the context holds.
    pub fn check(&self, cache: &KvCache, tokens: &[u32]) -> Result<(), EngineError> {
        assert!(cache.fits(&self.spec), "a cache made for this model");
        let (vocab_size, limit) = (self.spec.vocab_size, self.spec.max_position_embeddings);
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
    fn hidden(&self, compute: Compute, buffers: &mut Buffers, mut batch: Batch) {
        let (width, tokens) = (self.spec.hidden_size, batch.parts.iter().map(|p| p.tokens.len()));
        let x = room(&mut buffers.x, tokens.sum::<usize>() * width);
        for (x, token) in x.chunks_exact_mut(width).zip(batch.ids()) {
            self.embedding.copy_row(token as usize, x);
        }
        buffers.rotary.set(&self.rope, batch.positions());
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(compute, buffers, layer, &mut batch);
        }
        for part in batch.parts {
            batch.sequences[part.sequence].cache.advance(part.tokens.len());
        }
    }

    /// Residual stream `[T, C]` → logits `[T, V]`.
    fn logits(
        &self,
        compute: Compute,
        hidden: &[f32],
        normalised: &mut Vec<f32>,
        products: &mut Products,
        out: &mut [f32],
    ) {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.logits(compute, self.norm.of(compute.threads, hidden, normalised), products, out);
    }
}

/// Keeps the row of each sequence's last token, if it is among `parts`.
fn keep_last(
    sequences: &[Continuation],
    parts: &[Part],
    x: &[f32],
    last: &mut [f32],
    width: usize,
) {
    let mut end = 0;
    for part in parts {
        end += part.tokens.len();
        if part.tokens.end == sequences[part.sequence].tokens.len() {
            let row = &x[(end - 1) * width..end * width];
            last[part.sequence * width..][..width].copy_from_slice(row);
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, kernel, .. } = self;
        f.debug_struct("Model").field("spec", spec).field("kernel", kernel).finish_non_exhaustive()
    }
}
