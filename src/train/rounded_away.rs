//! What 8-bit gradients lose: the share of their entries that are not zero and round to it, by kind of
//! layer, in the step that was made last. Reads counts and changes nothing.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::distributed::Comm;
use crate::model::LanguageModel;

/// Shares of the entries of a layer's output gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RoundedShares {
    /// With a scale a token, in the product that gives the gradient of the input.
    pub(crate) input: f64,
    /// With a scale an output and block of tokens, in the one that gives that of the weights; `null`
    /// where weights are not trained.
    pub(crate) weights: Option<f64>,
}

/// The shares by kind (`q_proj`, …) over all layers and ranks; empty where gradients are not in
/// eight bits.
pub(crate) fn rounded_shares(
    model: &LanguageModel,
    comm: &Comm,
) -> BTreeMap<&'static str, RoundedShares> {
    let mut kinds: BTreeMap<&str, [f64; 4]> = BTreeMap::new();
    for (kind, counts) in model.rounding_counts() {
        let [input, weights] = counts.read();
        let own = [input.entries, input.lost, weights.entries, weights.lost];
        let sums = kinds.entry(kind).or_default();
        sums.iter_mut().zip(own).for_each(|(sum, count)| *sum += count as f64);
    }
    let all = comm.all_reduce_sum(kinds.values().flatten().copied().collect::<Vec<_>>().as_slice());
    let share = |entries: f64, lost: f64| (entries > 0.0).then(|| lost / entries);
    let shares = |&[inputs, lost, weights, lost_weights]: &[f64; 4]| {
        let input = share(inputs, lost)?;
        Some(RoundedShares { input, weights: share(weights, lost_weights) })
    };
    kinds
        .into_keys()
        .zip(all.as_chunks().0.iter().map(shares))
        .filter_map(|(kind, shares)| Some((kind, shares?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use bitnet_format::ModelSpec;
    use bitnet_kernels::Operands;
    use burn::tensor::Device;

    use super::*;
    use crate::model::SegmentStarts;
    use crate::ops::{DrawPlace, GradientFormat, GradientRounding, OpBackend};
    use crate::train::{CrossEntropy, GradAccumulator, TokenBatch};

    fn model(gradients: GradientFormat) -> LanguageModel {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 16\nintermediate_size = 24\nnum_hidden_layers = 2\nvocab_size = 10\n\
             num_attention_heads = 2\nnum_key_value_heads = 1",
        )
        .unwrap();
        let model = LanguageModel::initial(&spec, 1, &Device::flex().autodiff());
        model.with_backend(OpBackend::native(Operands::Bf16).with_gradients(gradients))
    }

    fn shares(model: &LanguageModel, trained: f32) -> BTreeMap<&'static str, RoundedShares> {
        let batch = TokenBatch {
            tokens: (0..24).map(|i| i * 7 % 10).collect(),
            targets: (0..24).map(|i| i * 3 % 10).collect(),
            loss_mask: (0..24).map(|i| if i < 12 { 1.0 } else { trained }).collect(),
            documents: SegmentStarts::whole_rows(2, 12),
        };
        let device = Device::flex().autodiff();
        GradAccumulator::of(model, &CrossEntropy, &[batch], &device);
        rounded_shares(model, &Comm::single())
    }

    #[test]
    fn every_kind_is_reported_for_the_last_step_alone() {
        let stochastic = GradientRounding::Stochastic(DrawPlace::ORIGIN);
        for rounding in [stochastic, GradientRounding::Nearest] {
            let model = model(GradientFormat::Int8(rounding));
            let first = shares(&model, 1.0);
            let kinds: Vec<_> = first.keys().copied().collect();
            assert_eq!(
                kinds,
                ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
            );
            for shares in first.values() {
                let weights = shares.weights.unwrap();
                assert!(shares.input > 0.0 && shares.input < 0.9, "{shares:?}");
                assert!(weights > 0.0 && weights < 0.5, "{shares:?}");
            }
            assert_eq!(shares(&model, 1.0), first, "counts begin again with every step");
            // Tokens without a gradient are zeros, not entries that were lost.
            assert!(shares(&model, 0.0)["down_proj"].input < first["down_proj"].input);
        }
    }

    #[test]
    fn nothing_is_reported_of_other_formats() {
        assert!(shares(&model(GradientFormat::Operands), 1.0).is_empty());
    }
}
