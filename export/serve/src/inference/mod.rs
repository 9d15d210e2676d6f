//! The inference thread, which alone owns the engine, and the handle that others ask it through.

mod fault;
mod job;
mod pacing;
mod page_tree;
mod queue;
mod scheduler;
mod scores;
mod sequence;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_text::Tokenizer;

use crate::metrics::Metrics;

#[cfg(test)]
pub(crate) use fault::FAULT_TOKEN;
pub(crate) use job::{EndReason, GenerationJob, JobEnd, JobEvent, RequestId, ScoredToken};
pub(crate) use queue::InferenceLimits;
use queue::JobQueue;
use scheduler::Scheduler;

/// Jobs that may wait for a slot.
const LONGEST_QUEUE: usize = 512;

/// Asks the inference thread.
#[derive(Debug)]
pub(crate) struct Inference {
    inbox: Sender<GenerationJob>,
    waiting: Arc<AtomicUsize>,
}

/// There are too many jobs already, or the thread is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As many jobs wait as may.
    QueueFull,
    /// The inference thread ended.
    Gone,
}

impl Inference {
    /// Starts the thread. It ends when the handle is dropped and all work is done.
    pub(crate) fn start(
        model: Model,
        tokenizer: Arc<Tokenizer>,
        limits: InferenceLimits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (inbox, jobs) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let pool = ThreadPool::new(limits.threads)?;
        let queue = JobQueue { jobs, waiting: Arc::clone(&waiting) };
        let thread = std::thread::Builder::new().name("inference".to_owned());
        let thread = thread.spawn(move || {
            // Made on the thread itself, whose stack then owns the model and what borrows from it.
            let workspace = Workspace::new(&pool);
            Scheduler::new(&model, &tokenizer, workspace, limits, &metrics).run(&queue);
        })?;
        Ok((Self { inbox, waiting }, thread))
    }

    /// Puts all jobs of a request in the queue, or none.
    pub(crate) fn submit(&self, jobs: Vec<GenerationJob>) -> Result<(), Refused> {
        let count = jobs.len();
        let admit = |waiting: usize| (waiting + count <= LONGEST_QUEUE).then_some(waiting + count);
        // All or none at once: two requests that see the same room must not both take it.
        let admitted = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit);
        admitted.map_err(|_| Refused::QueueFull)?;
        for job in jobs {
            self.inbox.send(job).map_err(|_| Refused::Gone)?;
        }
        Ok(())
    }

    /// Jobs that wait for a slot.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
