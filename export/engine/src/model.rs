//! The forward pass over packed weights: token ids in, logits out.
//!
//! Reading a folder is `load`'s business, choosing a token `sampler`'s.

use bitnet_format::ModelSpec;
use bitnet_kernels::Kernel;

use crate::block::Block;
use crate::compute::Compute;
use crate::linear::Table;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::{EngineError, KvCache, Threads};

/// Tokens that go through the blocks together; bounds the memory of a long prompt.
const PREFILL: usize = 512;

/// A packed model in memory.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) kernel: Kernel,
    pub(crate) rope: Rope,
    pub(crate) embedding: Table,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: RmsNorm,
    /// `None`: the embedding is the head.
    pub(crate) head: Option<Table>,
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
    pub fn forward(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        threads: &Threads,
    ) -> Result<Vec<f32>, EngineError> {
        self.check(cache, tokens)?;
        let compute = Compute { kernel: self.kernel, threads };
        let mut last = Vec::new();
        for tokens in tokens.chunks(PREFILL) {
            last = self.hidden(compute, cache, tokens);
        }
        Ok(self.logits(compute, &last[last.len() - self.spec.hidden_size..]))
    }

    /// Logits `[T, V]` after each of `tokens`, which follow what `cache` holds.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_all(
        &self,
        cache: &mut KvCache,
        tokens: &[u32],
        threads: &Threads,
    ) -> Result<Vec<f32>, EngineError> {
        self.check(cache, tokens)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.spec.vocab_size);
        let compute = Compute { kernel: self.kernel, threads };
        for tokens in tokens.chunks(PREFILL) {
            logits.extend(self.logits(compute, &self.hidden(compute, cache, tokens)));
        }
        Ok(logits)
    }

    /// Whether `tokens` may follow what `cache` holds; [`Model::forward`] asks this first.
    ///
    /// # Errors
    /// No token, an unknown one, or more than the context holds.
    pub fn check(&self, cache: &KvCache, tokens: &[u32]) -> Result<(), EngineError> {
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

    /// Checked tokens → the residual stream after the last block `[T, C]`.
    fn hidden(&self, compute: Compute, cache: &mut KvCache, tokens: &[u32]) -> Vec<f32> {
        let width = self.spec.hidden_size;
        let mut x = vec![0.0; tokens.len() * width];
        for (x, &token) in x.chunks_exact_mut(width).zip(tokens) {
            self.embedding.copy_row(token as usize, x);
        }
        let turns = self.rope.turns(cache.len()..cache.len() + tokens.len());
        for (block, cache) in self.blocks.iter().zip(cache.layers_of(&self.spec)) {
            block.forward(compute, &mut x, &turns, cache);
        }
        cache.advance(tokens.len());
        x
    }

    /// Residual stream `[T, C]` → logits `[T, V]`.
    fn logits(&self, compute: Compute, hidden: &[f32]) -> Vec<f32> {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        head.logits(compute, &self.norm.of(compute.threads, hidden))
    }
}
