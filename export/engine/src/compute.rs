//! An instruction set and a thread pool, passed along together.

use bitnet_kernels::Kernel;

use crate::ThreadPool;

/// An instruction set and the threads that use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelChoice<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) threads: &'a ThreadPool,
}

#[cfg(test)]
impl<'a> KernelChoice<'a> {
    /// The plainest kernel.
    pub(crate) fn alone(threads: &'a ThreadPool) -> Self {
        Self { kernel: Kernel::Scalar, threads }
    }
}
