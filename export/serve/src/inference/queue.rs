//! What the inference thread takes its work from, and how much of it at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use bitnet_engine::CachePrecision;

use super::job::GenerationJob;

/// How much is computed at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InferenceLimits {
    /// Sequences in one pass.
    pub(crate) slots: usize,
    /// Bytes of keys and values, in work and kept.
    pub(crate) cache_bytes: usize,
    pub(crate) precision: CachePrecision,
    pub(crate) threads: usize,
}

/// The thread's end of the queue.
pub(super) struct JobQueue {
    pub(super) jobs: Receiver<GenerationJob>,
    pub(super) waiting: Arc<AtomicUsize>,
}

impl JobQueue {
    /// The next job; waits for one if `idle`. `None` when there is none now, or will be none.
    pub(super) fn next(&self, idle: bool) -> Option<GenerationJob> {
        // An idle thread sleeps here and takes no time of the machine.
        if idle { self.jobs.recv().ok() } else { self.jobs.try_recv().ok() }
    }

    /// States that a job no longer waits.
    pub(super) fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
