//! Initial values and learning rates that fit every width: the maximal update parametrisation, muP
//! (Yang et al. 2022, arXiv 2203.03466, table 8), in what a checkpoint can hold.
//!
//! With `ρ` = base width / width:
//!
//! | parameter | initial value | AdamW's rate | Muon's rate |
//! |---|---|---|---|
//! | matrices of blocks | deviation · √ρ | · ρ | · √ρ |
//! | gain of the last norm | ρ | · ρ | |
//! | embedding, head, other gains | as ever | as ever | |
//!
//! A factor of the logits would be unknown to other programs, so it is the gain of the last norm. Muon's step has
//! the Frobenius norm `0.2·√max(out, in)·√min(out, in)` (`step::muon`), all singular values alike, so its spectral
//! norm grows with √width and not with the width. Decay does not change with the width.

use bitnet_format::{TensorEntry, TensorRole};

use super::{LanguageModel, replace_values, values};

/// Base width over width, `ρ`; 1 changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WidthRatio(f64);

impl Default for WidthRatio {
    fn default() -> Self {
        Self(1.0)
    }
}

impl WidthRatio {
    /// The ratio of a model of this width.
    pub fn new(base_width: usize, width: usize) -> Self {
        Self(base_width as f64 / width as f64)
    }

    /// What the deviation of initial matrices is multiplied by.
    pub fn deviation(self) -> f64 {
        self.0.sqrt()
    }

    /// What AdamW's rate of a parameter is multiplied by.
    pub fn adamw_rate(self, entry: &TensorEntry) -> f64 {
        // The last gain starts at ρ; with a rate times ρ it moves as far in proportion to itself.
        let scales = matches!(entry.role, TensorRole::Linear(_)) || is_last_norm(entry);
        if scales { self.0 } else { 1.0 }
    }

    /// What Muon's rate of a matrix is multiplied by.
    pub fn muon_rate(self) -> f64 {
        self.0.sqrt()
    }

    /// A new model with the gain of its last norm.
    pub(crate) fn with_output_gain(self, model: LanguageModel) -> LanguageModel {
        if self == Self::default() {
            return model;
        }
        let all = model.table().iter().zip(values(&model));
        let scaled =
            all.map(|(entry, value)| if is_last_norm(entry) { value * self.0 } else { value });
        let scaled = scaled.collect();
        replace_values(model, scaled)
    }
}

fn is_last_norm(entry: &TensorEntry) -> bool {
    entry.name == "model.norm.weight"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::to_host;
    use bitnet_format::{ModelSpec, tensor_table};

    fn spec() -> ModelSpec {
        let text = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\nvocab_size = 40\n\
                    num_attention_heads = 2\nnum_key_value_heads = 1\nmax_position_embeddings = 16";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn matrices_and_the_last_gain_go_with_the_width_and_nothing_else() {
        let ratio = WidthRatio::new(8, 32);
        for entry in tensor_table(&spec()) {
            let scales = entry.name.contains("proj") || entry.name == "model.norm.weight";
            let expected = if scales { ratio.0 } else { 1.0 };
            for (ratio, expected) in [(ratio, expected), (WidthRatio::default(), 1.0)] {
                let found = ratio.adamw_rate(&entry);
                assert_eq!(found.to_bits(), expected.to_bits(), "{}", entry.name);
            }
        }
        assert_eq!(
            [ratio.0, ratio.deviation(), ratio.muon_rate()].map(f64::to_bits),
            [0.25, 0.5, 0.5].map(f64::to_bits)
        );
        assert_eq!(WidthRatio::new(32, 32), WidthRatio::default());
    }

    #[test]
    fn logits_of_a_wider_model_start_smaller_by_the_ratio() {
        let model = LanguageModel::initial(&spec(), 1, &burn::tensor::Device::flex());
        let scaled = WidthRatio::new(8, 32).with_output_gain(model.clone());
        for ((entry, old), new) in model.table().iter().zip(values(&model)).zip(values(&scaled)) {
            let factor = if entry.name == "model.norm.weight" { 0.25 } else { 1.0 };
            let expected: Vec<f32> = to_host(old).into_iter().map(|value| value * factor).collect();
            assert_eq!(to_host(new), expected, "{}", entry.name);
        }
    }
}
