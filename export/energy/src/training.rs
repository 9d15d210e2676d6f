//! Energy of training a model, estimated from what a step needs.

use bitnet_format::ModelSpec;

use crate::estimate::{EnergyEstimate, attention_products, matrix_weights};
use crate::prices::{
    BF16_MULTIPLY, DRAM_BYTE, FP32_ADD, FP32_MULTIPLY, INT8_ADD, INT8_MULTIPLY, INT32_ADD, JOULE,
};

/// The numbers in which a linear layer's backward products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingProducts {
    /// Single precision.
    F32,
    /// bfloat16, summed in single precision.
    Bf16,
    /// 8-bit integers.
    Int8,
}

impl TrainingProducts {
    /// Picojoules of a multiply-add of the head and of attention.
    fn multiply_add(self) -> f64 {
        match self {
            Self::F32 => FP32_MULTIPLY + FP32_ADD,
            Self::Bf16 | Self::Int8 => BF16_MULTIPLY + FP32_ADD,
        }
    }

    /// Picojoules of both backward products for a weight and a token.
    fn backward(self) -> f64 {
        match self {
            Self::F32 | Self::Bf16 => 2.0 * self.multiply_add(),
            // The gradient of the input meets ternary weights, that of the weights 8-bit activations.
            Self::Int8 => INT8_ADD + INT8_MULTIPLY + INT32_ADD,
        }
    }
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingWork<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// How gradients are made.
    pub products: TrainingProducts,
    /// Tokens of a step.
    pub tokens: f64,
    /// Tokens of a row; attention sees half of them on the mean.
    pub seq_len: f64,
    /// Passes over the weights in a step.
    pub micro_batches: f64,
    /// Whether blocks run a second time on the way back.
    pub recompute: bool,
    /// Bytes of a parameter: latent, gradient and moments.
    pub state_bytes: f64,
}

impl TrainingWork<'_> {
    /// Joules of a token of such a step. Memory counts what a step cannot avoid: the weights once for
    /// each pass, and latents, gradients and moments read and written by the optimizer. Activations
    /// are left out, so it is a lower bound.
    pub fn estimate(&self) -> EnergyEstimate {
        let forward_passes = if self.recompute { 2.0 } else { 1.0 };
        let forward = if self.spec.quantise { INT8_ADD } else { self.products.multiply_add() };
        let weights = matrix_weights(self.spec);
        let head = (self.spec.hidden_size * self.spec.vocab_size) as f64;
        let attention = attention_products(self.spec, self.seq_len / 2.0);
        let picojoules = weights * (forward_passes * forward + self.products.backward())
            + (3.0 * head + (forward_passes + 2.0) * attention) * self.products.multiply_add();
        let weight_bytes = if self.spec.quantise { 1.0 } else { 4.0 };
        let passes = self.micro_batches * (forward_passes + 1.0);
        let bytes = weights * weight_bytes * passes
            + self.spec.parameters() as f64 * 2.0 * self.state_bytes;
        EnergyEstimate {
            arithmetic: picojoules * JOULE,
            memory: bytes / self.tokens * DRAM_BYTE * JOULE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_cost_less_than_floats_and_recomputation_costs_more() {
        let spec: ModelSpec = toml::from_str(include_str!("../../../configs/s.toml")).unwrap();
        let work = |products, recompute| {
            TrainingWork {
                spec: &spec,
                products,
                tokens: 2048.0,
                seq_len: 256.0,
                micro_batches: 1.0,
                recompute,
                state_bytes: 16.0,
            }
            .estimate()
        };
        let [f32, bf16, int8] =
            [TrainingProducts::F32, TrainingProducts::Bf16, TrainingProducts::Int8]
                .map(|products| work(products, false));
        assert!(f32.arithmetic > 2.0 * bf16.arithmetic, "{f32:?} {bf16:?}");
        assert!(bf16.arithmetic > int8.arithmetic, "{bf16:?} {int8:?}");
        let again = work(TrainingProducts::Bf16, true);
        assert!(again.arithmetic > bf16.arithmetic && again.memory > bf16.memory);
        // Twice 16 bytes of every parameter, and both passes over the weights, for 2,048 tokens.
        let bytes = 32.0 * spec.parameters() as f64 + 2.0 * matrix_weights(&spec);
        let expected = bytes / 2048.0 * 162.5e-12;
        assert!((bf16.memory / expected - 1.0).abs() < 1e-9, "{bf16:?}");
    }
}
