//! What computes: an instruction set and a team of threads, passed along together.

use bitnet_kernels::Kernel;

use crate::Threads;

/// An instruction set and the threads that use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compute<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) threads: &'a Threads,
}

#[cfg(test)]
impl<'a> Compute<'a> {
    /// The plainest kernel.
    pub(crate) fn alone(threads: &'a Threads) -> Self {
        Self { kernel: Kernel::Scalar, threads }
    }
}
