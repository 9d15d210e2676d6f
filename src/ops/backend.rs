//! Which implementation of the operations runs, and with what. A model holds this choice from the
//! moment it is built, and other code asks the model.

use std::sync::OnceLock;

use bitnet_kernels::{Kernel, Operands, RandomBits};
use burn::tensor::{Device, FloatDType, Tensor};

use crate::device;

/// The number format of the output's gradient in the backward products of a ternary layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientFormat {
    /// The format of the operands of all other float products.
    Operands,
    /// Eight bits: both products are of integers, with exact sums.
    Int8(GradientRounding),
}

/// How a gradient is rounded to eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientRounding {
    /// Half to even.
    Nearest,
    /// Right on average, with random bits that are a pure function of a place.
    Stochastic(DrawPlace),
}

/// Where random bits are drawn: the same place has the same bits in every process, on any number of
/// threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrawPlace {
    /// The seed of the run.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// The process among those that make the step together.
    pub rank: u64,
    /// The first row among those of the rank's share of the step.
    pub row: u64,
    /// The matrix among those of the model; where several are multiplied together, the first.
    pub matrix: u64,
}

impl DrawPlace {
    /// The place in a run with seed 0 before its first step.
    pub const ORIGIN: Self = Self { seed: 0, step: 0, rank: 0, row: 0, matrix: 0 };

    /// The bits of a part of a row, in its gradient along one of two axes.
    pub(crate) fn bits(self, (row, part): (usize, usize), axis: GradientAxis) -> RandomBits {
        let Self { seed, step, rank, row: first, matrix } = self;
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train gradient rounding v1");
        for number in
            [seed, step, rank, first + row as u64, matrix, part as u64, u64::from(axis as u8)]
        {
            hasher.update(&number.to_le_bytes());
        }
        let hash = hasher.finalize();
        let word = |at: usize| {
            u32::from_le_bytes(hash.as_bytes()[at..at + 4].try_into().expect("four bytes"))
        };
        RandomBits::new(word(0), word(4))
    }
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GradientAxis {
    /// A token: the gradient of the input is computed.
    Token,
    /// An output: that of the weights is.
    Output,
}

/// The share λ of what is quantised where ternary layers are blends, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lambda(f32);

// It is never NaN.
impl Eq for Lambda {}

impl Lambda {
    /// Ternary throughout.
    pub const ONE: Self = Self(1.0);

    /// This share.
    ///
    /// # Panics
    /// Outside of 0 to 1.
    pub fn new(share: f32) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share, got {share}");
        Self(share)
    }

    /// As a number.
    pub fn share(self) -> f32 {
        self.0
    }
}

/// How the operations of a model are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpBackend {
    native: bool,
    /// The instruction set of the native operations; it changes no bit.
    pub kernel: Kernel,
    /// What the operands of float products are rounded to. Sums, weights and moments stay f32.
    pub operands: Operands,
    /// The format of output gradients in the backward products of ternary layers.
    pub gradients: GradientFormat,
    /// How far ternary layers that are warmed up are from floats.
    pub lambda: Lambda,
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
        let kernel = *KERNEL.get_or_init(Kernel::detect);
        Self {
            native: true,
            kernel,
            operands,
            gradients: GradientFormat::Operands,
            lambda: Lambda::ONE,
        }
    }

    /// Plain tensor operations, which run on any device.
    pub fn reference(operands: Operands) -> Self {
        Self { native: false, ..Self::native(operands) }
    }

    /// The same with operands of float products in this format.
    #[must_use]
    pub fn with_operands(self, operands: Operands) -> Self {
        Self { operands, ..self }
    }

    /// The same with gradients of ternary layers in this format, which native operations alone know.
    #[must_use]
    pub fn with_gradients(self, gradients: GradientFormat) -> Self {
        Self { gradients, ..self }
    }

    /// The same, where ternary layers are blends with this share.
    #[must_use]
    pub fn blending(self, lambda: Lambda) -> Self {
        Self { lambda, ..self }
    }

    /// The same, where gradients are rounded with the random bits that `place` changes its own place to.
    #[must_use]
    pub fn drawing(self, place: impl FnOnce(DrawPlace) -> DrawPlace) -> Self {
        match self.gradients {
            GradientFormat::Int8(GradientRounding::Stochastic(old)) => {
                let rounding = GradientRounding::Stochastic(place(old));
                self.with_gradients(GradientFormat::Int8(rounding))
            }
            _ => self,
        }
    }

    /// Whether native operations run. They leave every number within reach of the host and give the
    /// same bits however a batch is cut; tensor operations on other devices do neither.
    pub fn is_native(self) -> bool {
        self.native
    }

    /// A float product of the references, its operands rounded first where that is asked for.
    pub(crate) fn matmul<const D: usize>(self, a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
        match self.operands {
            Operands::F32 => a.matmul(b),
            Operands::Bf16 | Operands::Bf16Tiles => {
                let [a, b] = [a, b].map(|tensor| tensor.cast(FloatDType::BF16));
                a.matmul(b).cast(FloatDType::F32)
            }
        }
    }
}
