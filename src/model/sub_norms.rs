//! Sub-norms for a model that was trained without them: gains that leave its function as nearly what it
//! was as a norm can.
//!
//! With gain `g` a norm makes of the values `x[t]` of a token `g ∘ x[t] / r[t]`, `r[t]` their root mean
//! square. What that changes over some tokens, `Σ_t (x[t,c] − g[c]·x[t,c]/r[t])²`, is least with
//!
//! ```text
//! g[c] = Σ_t x[t,c]²/r[t]  /  Σ_t x[t,c]²/r[t]²
//! ```
//!
//! So the model runs over the tokens once, with dense matrices and without sub-norms, and every gain is
//! taken from the values that its norm will see.

use burn::module::Param;
use burn::tensor::{Int, Tensor, TensorData};

use super::attention::AttentionContext;
use super::{Block, LanguageModel, RmsNorm, SegmentStarts};
use crate::host::to_host;
use crate::ops::OpBackend;

impl LanguageModel {
    /// The model, its sub-norms fitted to what `tokens [B, T]` give where `counted [B·T]`.
    ///
    /// # Panics
    /// When it has no sub-norms.
    pub(crate) fn with_fitted_sub_norms(
        mut self,
        tokens: Tensor<2, Int>,
        segments: &SegmentStarts,
        counted: &[bool],
    ) -> Self {
        let context = self.model.attention_context(segments);
        let mut x = self.model.embed(tokens, self.backend);
        for block in &mut self.model.layers {
            x = block.fit_sub_norms(x, &context, (self.backend, counted));
        }
        self
    }
}

impl Block {
    /// The output of the block as it was without sub-norms; theirs get their gains on the way.
    fn fit_sub_norms(
        &mut self,
        x: Tensor<3>,
        context: &AttentionContext,
        (backend, counted): (OpBackend, &[bool]),
    ) -> Tensor<3> {
        // Weights as stored, not as quantised: the function that a dense model had.
        let (attention, mlp) = (self.self_attn.dense(), self.mlp.dense());
        let normed = self.input_layernorm.forward(x.clone(), backend);
        let mixed = attention.attend(attention.project(normed, backend), context, backend);
        // The stream goes on without the new norm: later gains are fitted to what the model was.
        fit(self.self_attn.attn_sub_norm.as_mut(), mixed.clone(), counted);
        let x = x + attention.o_proj.forward(mixed, backend);
        let normed = self.post_attention_layernorm.forward(x.clone(), backend);
        let gated = mlp.gate(normed, backend);
        fit(self.mlp.ffn_sub_norm.as_mut(), gated.clone(), counted);
        x + mlp.down_proj.forward(gated, backend)
    }
}

fn fit(norm: Option<&mut RmsNorm>, x: Tensor<3>, counted: &[bool]) {
    let norm = norm.expect("sub-norms are fitted in a model that has them");
    let (width, device) = (x.dims()[2], norm.weight.val().device());
    let gains = fitted_gains(&to_host(x), width, f64::from(norm.eps()), counted);
    norm.weight = Param::from_data(TensorData::new(gains, [width]), &device);
}

/// Gains `[width]` for values `[tokens, width]`; 1 where no token says anything.
fn fitted_gains(values: &[f32], width: usize, eps: f64, counted: &[bool]) -> Vec<f32> {
    let (mut weighted, mut normalised) = (vec![0.0; width], vec![0.0; width]);
    for (row, _) in values.chunks_exact(width).zip(counted).filter(|(_, counts)| **counts) {
        let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
        // `r[t]²`, with the norm's own eps, so that the fit sees what the norm will divide by.
        let mean_square = squares.clone().sum::<f64>() / width as f64 + eps;
        for ((weighted, normalised), square) in
            weighted.iter_mut().zip(&mut normalised).zip(squares)
        {
            *weighted += square / mean_square.sqrt();
            *normalised += square / mean_square;
        }
    }
    let gain = |(weighted, normalised): (f64, f64)| {
        // A channel that is 0 in every token would give 0 / 0.
        if normalised > 0.0 { (weighted / normalised) as f32 } else { 1.0 }
    };
    weighted.into_iter().zip(normalised).map(gain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_one_size_get_the_gain_that_changes_nothing() {
        let values = [3.0, -4.0, -4.0, 3.0, 100.0, 0.0];
        let gains = fitted_gains(&values, 2, 0.0, &[true, true, false]);
        let size = 12.5f32.sqrt();
        assert!(gains.iter().all(|gain| (gain - size).abs() < 1e-6), "{gains:?}");
    }

    #[test]
    fn no_other_gain_changes_the_values_less() {
        let values: Vec<f32> = (0..60u16).map(|i| f32::from(i * 37 % 23) - 9.0).collect();
        let counted = [true; 20];
        let gains = fitted_gains(&values, 3, 1e-5, &counted);
        let change = |gains: &[f32]| -> f64 {
            let of_row = |row: &[f32]| {
                let size = (row.iter().map(|x| x * x).sum::<f32>() / 3.0 + 1e-5).sqrt();
                let changes = row.iter().zip(gains).map(|(x, gain)| x - gain * x / size);
                changes.map(|change| f64::from(change * change)).sum::<f64>()
            };
            values.chunks_exact(3).map(of_row).sum()
        };
        let least = change(&gains);
        for channel in 0..3 {
            for factor in [0.99, 1.01] {
                let mut other = gains.clone();
                other[channel] *= factor;
                assert!(change(&other) > least, "channel {channel} times {factor}");
            }
        }
        assert_eq!(fitted_gains(&[0.0, 0.0], 2, 0.0, &[true]), [1.0, 1.0], "nothing to fit to");
    }
}
