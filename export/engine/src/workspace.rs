//! What a forward pass runs on and works in: a team of threads, and memory that is kept from call
//! to call, so that decoding a token allocates nothing.

use std::cell::RefCell;

use bitnet_kernels::Activations;

use crate::Threads;
use crate::model::Part;
use crate::rope::RotaryCache;

/// A team of threads and the memory that forward passes work in.
///
/// It holds nothing of a model or a sequence: any call may follow any other.
#[derive(Debug)]
pub struct Workspace<'a> {
    pub(crate) threads: &'a Threads,
    pub(crate) buffers: Buffers,
    /// Final residual streams `[S, C]`, one for each sequence.
    pub(crate) last: Vec<f32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) parts: Vec<Part>,
}

impl<'a> Workspace<'a> {
    /// An empty workspace; it grows with what is asked of it.
    pub fn new(threads: &'a Threads) -> Self {
        let (last, logits, parts) = (Vec::new(), Vec::new(), Vec::new());
        Self { threads, buffers: Buffers::default(), last, logits, parts }
    }

    /// The team.
    pub fn threads(&self) -> &'a Threads {
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

/// What products with a matrix work in.
#[derive(Debug, Default)]
pub(crate) struct Products {
    pub(crate) activations: Activations,
    /// Outputs by groups of rows, before they are put in the order of tokens.
    pub(crate) tiles: Vec<f32>,
}

/// What one thread works in.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) activations: Activations,
    pub(crate) queries: Vec<f32>,
    pub(crate) scores: Vec<f32>,
    pub(crate) found: Vec<f32>,
}

thread_local! {
    static OWN: RefCell<Own> = RefCell::default();
}

/// Lends the calling thread's own memory. `work` must not ask for it again.
pub(crate) fn with_own<R>(work: impl FnOnce(&mut Own) -> R) -> R {
    OWN.with_borrow_mut(work)
}

/// The first `len` places; what they hold is to be overwritten.
pub(crate) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
