//! The memory of forward passes: kept from call to call, so that decoding a token allocates nothing.

use std::cell::RefCell;

use bitnet_kernels::Activations;

use crate::ThreadPool;
use crate::batch::Chunk;
use crate::rope::RotaryCache;

/// A thread pool and the memory that forward passes work in.
///
/// It holds no state of a model or a sequence: any call may follow any other.
#[derive(Debug)]
pub struct Workspace<'a> {
    pub(crate) threads: &'a ThreadPool,
    pub(crate) buffers: Buffers,
    /// Final residual streams `[S, C]`, one for each sequence.
    pub(crate) last: Vec<f32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) chunks: Vec<Chunk>,
}

impl<'a> Workspace<'a> {
    /// An empty workspace; it grows on demand.
    pub fn new(threads: &'a ThreadPool) -> Self {
        let (last, logits, chunks) = (Vec::new(), Vec::new(), Vec::new());
        Self { threads, buffers: Buffers::default(), last, logits, chunks }
    }

    /// The thread pool.
    pub fn threads(&self) -> &'a ThreadPool {
        self.threads
    }
}

/// The vectors of one pass, named by what they hold.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The residual stream `[T, C]`.
    pub(crate) x: Vec<f32>,
    /// `[T, C]`
    pub(crate) normalised: Vec<f32>,
    /// `[T, (H + 2 · kv heads) · D]`
    pub(crate) qkv: Vec<f32>,
    /// `[T, H·D]`
    pub(crate) queries: Vec<f32>,
    /// `[T, H·D]`
    pub(crate) attended: Vec<f32>,
    /// `[T, 2F]`
    pub(crate) gate_up: Vec<f32>,
    /// `[T, F]`
    pub(crate) inner: Vec<f32>,
    /// What is added to the residual stream, `[T, C]`.
    pub(crate) change: Vec<f32>,
    pub(crate) rotary: RotaryCache,
    pub(crate) products: Products,
}

/// Memory of products with a matrix.
#[derive(Debug, Default)]
pub(crate) struct Products {
    pub(crate) activations: Activations,
    /// Outputs by groups of rows, before they are put in the order of tokens.
    pub(crate) tiles: Vec<f32>,
    /// `A·x` of an adapter, `[T, n·r]`.
    pub(crate) low_rank: Vec<f32>,
}

/// The memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadScratch {
    pub(crate) activations: Activations,
    pub(crate) queries: Vec<f32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) found: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<ThreadScratch> = RefCell::default();
}

/// Lends the calling thread's scratch memory. `work` must not ask for it again.
pub(crate) fn with_thread_scratch<R>(work: impl FnOnce(&mut ThreadScratch) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}

/// The first `len` values of a buffer, with unspecified contents. A buffer never shrinks: one that serves
/// matrices of several sizes would be cleared again for each larger one.
pub(crate) fn scratch_slice(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
