//! Direct preference optimization (arXiv 2305.18290): the policy is taught to prefer the chosen
//! answer, by as much as the frozen reference allows.
//!
//! `loss = −log σ(β · [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])`, where a
//! sequence's log-probability is the sum over the tokens of its answer. `reference` computes
//! `log π_ref`.

use burn::tensor::{Device, Tensor, TensorData};

use super::evaluate::batch_of;
use super::objective::{LossSum, Objective, TokenBatch, batch_log_probs};
use crate::data::PreferencePair;
use crate::host::to_host;
use crate::model::{ForwardOutputs, LanguageModel};

/// Pairs whose rows have one length, with their reference log-probabilities.
#[derive(Clone, Debug)]
pub struct PairBatch {
    /// The chosen rows, then the rejected ones, `[2P, T]`; the mask marks the answers.
    pub rows: TokenBatch,
    /// The reference's log-probability of each answer, `[2P]`.
    pub reference: Vec<f32>,
}

impl PairBatch {
    /// Pairs of rows of one length; `reference[i]` are the log-probabilities of pair `i`, chosen
    /// and rejected.
    pub fn new(pairs: &[PreferencePair], reference: &[[f32; 2]]) -> Self {
        let chosen = pairs.iter().map(|pair| pair.chosen.clone());
        let rejected = pairs.iter().map(|pair| pair.rejected.clone());
        let rows = batch_of(&chosen.chain(rejected).collect::<Vec<_>>());
        let of = |side: usize| reference.iter().map(move |pair| pair[side]);
        Self { rows, reference: of(0).chain(of(1)).collect() }
    }
}

/// The DPO objective.
#[derive(Clone, Copy, Debug)]
pub struct DpoObjective {
    /// How closely the policy is held to the reference.
    pub beta: f64,
}

impl Objective for DpoObjective {
    type Batch = PairBatch;

    fn rows<'b>(&self, batch: &'b PairBatch) -> &'b TokenBatch {
        &batch.rows
    }

    /// The gradient of a pair's loss is known once both log-probabilities are:
    ///
    /// ```text
    /// d loss / d log π(chosen) = −β · σ(−margin) = − d loss / d log π(rejected)
    /// ```
    ///
    /// so the backward pass is that of a weighted cross-entropy, which keeps no logits.
    fn loss(&self, model: &LanguageModel, outputs: ForwardOutputs, batch: &PairBatch) -> LossSum {
        let (rows, hidden) = (&batch.rows, outputs.hidden);
        let policy = answers(rows, rows.log_probs(model, hidden.clone())); // [2P]
        let ratio: Vec<f32> = policy.iter().zip(&batch.reference).map(|(p, r)| p - r).collect();
        let metrics = self.metrics(&policy, &ratio);
        // Margins and weights are computed on the host: P numbers, while logits stay in blocks.
        let margins = self.margins(&ratio);
        let sum: f64 = margins.iter().map(|margin| softplus(-margin)).sum();
        let sum = Tensor::from_data(TensorData::new(vec![sum as f32], [1]), &hidden.device());
        let root = hidden.is_autodiff().then(|| {
            let weights = self.weights(rows, &margins);
            rows.weighted_loss(model, hidden, weights)
        });
        let (count, tokens) = (margins.len() as f64, rows.trained_tokens());
        LossSum { sum, root, count, tokens, metrics }
    }
}

impl DpoObjective {
    /// `β · (ratio of the chosen answer − ratio of the rejected one)` of each pair, from `[2P]`.
    fn margins(self, ratio: &[f32]) -> Vec<f64> {
        let (chosen, rejected) = ratio.split_at(ratio.len() / 2);
        let pairs = chosen.iter().zip(rejected);
        pairs.map(|(chosen, rejected)| self.beta * f64::from(chosen - rejected)).collect()
    }

    /// The weight of each target's cross-entropy, `[2P, T]`.
    fn weights(self, rows: &TokenBatch, margins: &[f64]) -> Vec<f32> {
        // The loss is `softplus(-margin)`, and cross-entropy is -log p: so DPO's gradient is that
        // of a cross-entropy whose targets weigh β·σ(-margin) in the chosen answer and as much
        // below 0 in the rejected one.
        let gradients = margins.iter().map(|margin| (self.beta / (1.0 + margin.exp())) as f32);
        let gradients: Vec<f32> =
            gradients.clone().chain(gradients.map(|gradient| -gradient)).collect();
        let time = rows.documents.dims()[1];
        let weight = |(at, trained): (usize, &f32)| trained * gradients[at / time];
        rows.loss_mask.iter().enumerate().map(weight).collect()
    }

    /// The logged figures, summed over the pairs; `[2P]` each, chosen before rejected.
    fn metrics(self, policy: &[f32], ratio: &[f32]) -> Vec<(&'static str, f64)> {
        let pairs = policy.len() / 2;
        let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
        let (chosen, rejected) = ratio.split_at(pairs);
        let won = chosen.iter().zip(rejected).filter(|(chosen, rejected)| chosen > rejected);
        vec![
            ("reward_chosen", self.beta * sum(chosen)),
            ("reward_rejected", self.beta * sum(rejected)),
            ("margin", self.beta * (sum(chosen) - sum(rejected))),
            ("accuracy", won.count() as f64),
            ("logp_chosen", sum(&policy[..pairs])),
            ("logp_rejected", sum(&policy[pairs..])),
            // Mean log-ratio over both answers: the simplest estimate of the divergence from the
            // reference, on the answers of the data rather than on sampled ones.
            ("kl", sum(ratio) / 2.0),
        ]
    }
}

/// `ln(1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Log-probability of the masked targets of each row, summed: `[B]`.
pub fn sequence_log_probs(model: &LanguageModel, rows: &TokenBatch, device: &Device) -> Vec<f32> {
    answers(rows, batch_log_probs(model, rows, device))
}

/// The same from a pass recorded as training records it.
pub(crate) fn recorded_log_probs(
    model: &LanguageModel,
    rows: &TokenBatch,
    device: &Device,
) -> Vec<f32> {
    let (outputs, _) = rows.record(model, None, device);
    answers(rows, rows.log_probs(model, outputs.hidden))
}

/// `[B, T]`, the log-probability of every masked target and 0 elsewhere → `[B]`, summed.
fn answers(rows: &TokenBatch, log_probs: Tensor<2>) -> Vec<f32> {
    let log_probs = to_host(log_probs);
    let rows = log_probs.chunks_exact(rows.documents.dims()[1].max(1));
    rows.map(|row| row.iter().map(|&value| f64::from(value)).sum::<f64>() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_sums_over_pairs() {
        let metrics =
            DpoObjective { beta: 0.5 }.metrics(&[-1.0, -2.0, -3.0, -4.0], &[1., 0., 0., 2.]);
        let expected = [
            ("reward_chosen", 0.5),
            ("reward_rejected", 1.0),
            ("margin", -0.5),
            ("accuracy", 1.0),
            ("logp_chosen", -3.0),
            ("logp_rejected", -7.0),
            ("kl", 1.5),
        ];
        assert_eq!(metrics, expected);
    }
}
