//! Which implementation of the operations runs, and with what. A model holds this choice from the
//! moment it is built, and other code asks the model.

use std::sync::OnceLock;

use bitnet_kernels::{Kernel, Operands};
use burn::tensor::{Device, FloatDType, Tensor};

use crate::device;

/// How the operations of a model are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpBackend {
    native: bool,
    /// The instruction set of the native operations; it changes no bit.
    pub kernel: Kernel,
    /// What the operands of float products are rounded to. Sums, weights and moments stay f32.
    pub operands: Operands,
}

impl OpBackend {
    /// The choice for a device: native operations on the CPU backend that has them, tensor
    /// operations on all others.
    pub fn of(device: &Device, operands: Operands) -> Self {
        Self::native(operands).on(device)
    }

    /// The same kernel and precision on a device.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        Self { native: device::runs_native_ops(device), ..self }
    }

    /// Native operations on this machine's fastest kernel.
    pub fn native(operands: Operands) -> Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        Self { native: true, kernel: *KERNEL.get_or_init(Kernel::detect), operands }
    }

    /// Plain tensor operations, which run on any device.
    pub fn reference(operands: Operands) -> Self {
        Self { native: false, ..Self::native(operands) }
    }

    /// Whether native operations run. They leave every number within reach of the host and give the
    /// same bits however a batch is cut; tensor operations on other devices do neither.
    pub fn is_native(self) -> bool {
        self.native
    }

    /// A float product of the references, its operands rounded first where that is asked for.
    pub(crate) fn matmul<const D: usize>(self, left: Tensor<D>, right: Tensor<D>) -> Tensor<D> {
        match self.operands {
            Operands::F32 => left.matmul(right),
            Operands::Bf16 => {
                let [left, right] = [left, right].map(|tensor| tensor.cast(FloatDType::BF16));
                left.matmul(right).cast(FloatDType::F32)
            }
        }
    }
}
