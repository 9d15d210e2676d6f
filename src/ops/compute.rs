//! What an operation needs to know beside its tensors.

use std::sync::{Arc, OnceLock};

use bitnet_kernels::{Kernel, Operands};

use crate::ops::reference::LazySight;

/// Which instructions compute, and what floats are rounded to before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The instruction set; it changes no bit.
    pub kernel: Kernel,
    /// Operands of the float products; sums, weights and moments are f32 whatever this says.
    pub operands: Operands,
}

impl Compute {
    /// The fastest kernel of this machine.
    pub fn of(operands: Operands) -> Self {
        Self { operands, ..Self::default() }
    }
}

impl Default for Compute {
    /// The fastest kernel of this machine, in f32.
    fn default() -> Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        Self { kernel: *KERNEL.get_or_init(Kernel::detect), operands: Operands::F32 }
    }
}

/// How heads lie in the rows of queries, keys and values, and what each token may see.
///
/// A row holds `heads` queries, then `key_heads` keys, then as many values, each `width` wide.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Rows of tokens, `B`.
    pub batch: usize,
    /// Tokens of a row, `T`.
    pub time: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key heads; each serves `heads / key_heads` neighbouring query heads.
    pub key_heads: usize,
    /// Head width, `D`.
    pub width: usize,
    /// For each token `[B, T]` the first of its row that it sees: where its document begins.
    pub starts: Arc<Vec<i32>>,
    /// Cosine of each token's position and each frequency, `[B, T, D/2]`.
    pub cosines: Arc<Vec<f32>>,
    /// Sine likewise.
    pub sines: Arc<Vec<f32>>,
    /// The last three as tensors, for devices that compute with them.
    pub sight: LazySight,
}

impl AttentionShape {
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.key_heads
    }

    /// Values of one token in a row of queries, keys and values.
    pub fn stride(&self) -> usize {
        (self.heads + 2 * self.key_heads) * self.width
    }
}

/// The numbers of one `AdamW` update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// What the gradient is multiplied by first: mean and clipping.
    pub gradient: f32,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What the value is multiplied by: weight decay.
    pub keep: f64,
    /// What the first moment is multiplied by: the learning rate and the bias correction.
    pub step: f64,
    /// What the root of the second moment is divided by: its bias correction.
    pub root: f64,
}

/// What the loss counts: for each token `[B·T]` its target and its weight.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The id to predict.
    pub ids: Arc<Vec<i32>>,
    /// What its loss is multiplied by; 0 where nothing is trained.
    pub weights: Arc<Vec<f32>>,
}
