//! Direct preference optimization (arXiv 2305.18290): the policy is taught to prefer the chosen
//! answer, by as much as the frozen reference allows.
//!
//! `loss = −log σ(β · [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])`, where a
//! sequence's log-probability is the sum over the tokens of its answer. `reference` computes
//! `log π_ref`.

use burn::tensor::{Device, Tensor, TensorData, activation};

use super::evaluate::batch_of;
use super::objective::{LossSum, Objective, TokenBatch, batch_log_probs};
use crate::data::PreferencePair;
use crate::host::to_host;
use crate::model::LanguageModel;

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

    fn loss(&self, model: &LanguageModel, hidden: Tensor<3>, batch: &PairBatch) -> LossSum {
        let device = &hidden.device();
        let policy = answers(&batch.rows, batch.rows.log_probs(model, hidden)); // [2P]
        let pairs = batch.reference.len() / 2;
        let data = TensorData::new(batch.reference.clone(), [2 * pairs]);
        let ratio = policy.clone() - Tensor::from_data(data, device);
        let margin = ratio.clone().narrow(0, 0, pairs) - ratio.clone().narrow(0, pairs, pairs);
        let sum = activation::log_sigmoid(margin.mul_scalar(self.beta)).sum().neg();
        let metrics = self.metrics(&to_host(policy), &to_host(ratio));
        LossSum { sum, count: pairs as f64, tokens: batch.rows.trained_tokens(), metrics }
    }
}

impl DpoObjective {
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

/// Log-probability of the masked targets of each row, summed: `[B]`.
pub fn sequence_log_probs(model: &LanguageModel, rows: &TokenBatch, device: &Device) -> Tensor<1> {
    answers(rows, batch_log_probs(model, rows, device))
}

/// The same from a pass recorded as training records it.
pub(crate) fn recorded_log_probs(
    model: &LanguageModel,
    rows: &TokenBatch,
    device: &Device,
) -> Tensor<1> {
    let (hidden, _) = rows.record(model, device);
    answers(rows, rows.log_probs(model, hidden))
}

/// `[B, T]`, the log-probability of every target → `[B]`, summed over the masked ones.
fn answers(rows: &TokenBatch, log_probs: Tensor<2>) -> Tensor<1> {
    let mask = TensorData::new(rows.loss_mask.clone(), rows.documents.dims());
    let mask = Tensor::<2>::from_data(mask, &log_probs.device());
    (log_probs * mask).sum_dim(1).flatten(0, 1)
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
