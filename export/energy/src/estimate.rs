//! Energy of running a model, estimated from what a token needs.

use bitnet_format::{ModelSpec, tensor_table};

use crate::prices::{
    DRAM_BYTE, FP16_ADD, FP16_MULTIPLY, INT8_ADD, INT8_MULTIPLY, INT32_ADD, JOULE,
};

/// Estimated joules of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EnergyEstimate {
    /// Joules of the arithmetic alone.
    pub arithmetic: f64,
    /// Joules of the bytes that come from memory.
    pub memory: f64,
}

impl EnergyEstimate {
    /// Both together.
    pub fn total(self) -> f64 {
        self.arithmetic + self.memory
    }
}

/// What one token of one sequence needs in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InferenceWork {
    /// Matrix weights, each an addition of 8-bit integers where they are ternary.
    pub weights: f64,
    /// Whether the matrices are ternary; a dense one multiplies in half precision.
    pub ternary: bool,
    /// Weights of the head, in 8-bit products.
    pub head: f64,
    /// Multiply-adds of attention, in half precision.
    pub attention: f64,
    /// Bytes read from memory.
    pub bytes: f64,
}

/// Matrix weights in the blocks.
pub(crate) fn matrix_weights(spec: &ModelSpec) -> f64 {
    let blocks = spec.num_hidden_layers as f64;
    let entries = tensor_table(spec);
    let matrices = entries.iter().filter(|entry| entry.name.contains(".layers."));
    debug_assert!(blocks > 0.0);
    matrices.filter(|entry| entry.shape.len() == 2).map(|entry| entry.elements() as f64).sum()
}

/// Multiply-adds of attention for a token that sees `context` tokens: scores, and the sum of values.
pub(crate) fn attention_products(spec: &ModelSpec, context: f64) -> f64 {
    2.0 * spec.num_hidden_layers as f64 * spec.query_width() as f64 * context
}

impl InferenceWork {
    /// A token that sees `context` tokens, in a pass over the weights that it shares with `together`
    /// tokens; `head_bytes` a weight of the head, and `cache_bytes` a token of the context.
    pub fn of(
        spec: &ModelSpec,
        context: f64,
        together: f64,
        head_bytes: f64,
        cache_bytes: f64,
    ) -> Self {
        let weights = matrix_weights(spec);
        let head = (spec.hidden_size * spec.vocab_size) as f64;
        let matrix_bytes = if spec.quantise { 0.25 } else { 2.0 };
        Self {
            weights,
            ternary: spec.quantise,
            head,
            attention: attention_products(spec, context),
            bytes: (weights * matrix_bytes + head * head_bytes) / together + context * cache_bytes,
        }
    }

    /// Its energy.
    pub fn estimate(&self) -> EnergyEstimate {
        let a_weight = if self.ternary { INT8_ADD } else { FP16_MULTIPLY + FP16_ADD };
        let picojoules = self.weights * a_weight
            + self.head * (INT8_MULTIPLY + INT32_ADD)
            + self.attention * (FP16_MULTIPLY + FP16_ADD);
        EnergyEstimate { arithmetic: picojoules * JOULE, memory: self.bytes * DRAM_BYTE * JOULE }
    }
}

/// The figure as the report of 2B4T computes it: joules of `tokens` tokens read at once, arithmetic
/// alone, without head and embedding, every token seeing all of them.
pub fn report_joules(spec: &ModelSpec, tokens: f64) -> f64 {
    let a_weight = if spec.quantise { INT8_ADD } else { FP16_MULTIPLY + FP16_ADD };
    let attention = attention_products(spec, tokens) * (FP16_MULTIPLY + FP16_ADD);
    (matrix_weights(spec) * a_weight + attention) * tokens * JOULE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> ModelSpec {
        toml::from_str(text).unwrap()
    }

    fn two_billion() -> ModelSpec {
        spec(include_str!("../../../configs/2b4t.toml"))
    }

    /// Table 1 of arXiv 2504.12285, "Energy (Estimated)", in joules.
    #[test]
    fn the_figures_of_the_report_come_out() {
        let shape = |[width, inner, layers, heads, groups, head]: [usize; 6]| {
            spec(&format!(
                "hidden_size = {width}\nintermediate_size = {inner}\nnum_hidden_layers = {layers}\n\
                 num_attention_heads = {heads}\nnum_key_value_heads = {groups}\nhead_dim = {head}\n\
                 vocab_size = 128256\nquantise = false\nsub_norms = false"
            ))
        };
        let published = [
            (two_billion(), 0.028),
            // LLaMA 3.2 1B, Gemma 3 1B, Qwen2.5 1.5B, SmolLM2 1.7B, MiniCPM 2B
            (shape([2048, 8192, 16, 32, 8, 64]), 0.258),
            (shape([1152, 6912, 26, 4, 1, 256]), 0.186),
            (shape([1536, 8960, 28, 12, 2, 128]), 0.347),
            (shape([2048, 8192, 24, 32, 32, 64]), 0.425),
            (shape([2304, 5760, 40, 36, 36, 64]), 0.649),
        ];
        for (spec, joules) in published {
            let ours = report_joules(&spec, 512.0);
            assert!((ours / joules - 1.0).abs() < 0.02, "{ours} for {joules}: {spec:?}");
        }
    }

    #[test]
    fn memory_costs_far_more_than_ternary_arithmetic_and_less_when_tokens_share_it() {
        let spec = two_billion();
        let alone = InferenceWork::of(&spec, 0.0, 1.0, 1.0, 0.0).estimate();
        // 2,084,044,800 weights in 2 bits and 328,335,360 in 8, at 162.5 pJ a byte.
        assert!((alone.memory - 0.13802).abs() < 1e-4, "{alone:?}");
        assert!(alone.memory > 100.0 * alone.arithmetic, "{alone:?}");
        let together = InferenceWork::of(&spec, 0.0, 8.0, 1.0, 0.0).estimate();
        assert!((together.memory * 8.0 - alone.memory).abs() < 1e-9);
        let equal = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
        assert!(equal(together.arithmetic, alone.arithmetic));
        assert!(equal(alone.total(), alone.arithmetic + alone.memory));
    }
}
