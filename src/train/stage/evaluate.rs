//! Held-out loss: the negative log-likelihood of text the model was not trained on.

use burn::tensor::Device;

use super::objective::{TokenBatch, batch_log_probs};
use crate::data::PackedSequence;
use crate::distributed::Comm;
use crate::host::to_host;
use crate::model::{LanguageModel, SegmentStarts};
use crate::monitor::Evaluation;

/// Rows of one forward pass.
const ROWS_AT_ONCE: usize = 8;

/// The sum over held-out targets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likelihood {
    /// Sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// Targets.
    pub tokens: u64,
}

impl Likelihood {
    /// The sum over all ranks.
    #[must_use]
    pub(crate) fn all_reduce(self, comm: &Comm) -> Self {
        let sums = comm.all_reduce_sum(&[self.nll, self.tokens as f64]);
        Self { nll: sums[0], tokens: sums[1] as u64 }
    }

    /// The means.
    pub fn evaluation(self) -> Evaluation {
        let nll_per_token = self.nll / self.tokens.max(1) as f64;
        Evaluation { nll_per_token, perplexity: nll_per_token.exp(), preference: None }
    }
}

/// The rows that this rank evaluates, in the batches that a single process would make.
pub(crate) fn own_share(
    rows: impl Iterator<Item = PackedSequence>,
    comm: &Comm,
) -> impl Iterator<Item = PackedSequence> {
    let batches = rows.enumerate().map(|(number, row)| (number / ROWS_AT_ONCE, row));
    batches.filter(|(batch, _)| comm.owns(*batch)).map(|(_, row)| row)
}

/// Evaluates `rows`; `None` when `interrupted` returns true in between. `model` is without autodiff.
pub fn likelihood(
    model: &LanguageModel,
    rows: impl Iterator<Item = PackedSequence>,
    device: &Device,
    interrupted: &dyn Fn() -> bool,
) -> Option<Likelihood> {
    let mut total = Likelihood::default();
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        if interrupted() {
            return None;
        }
        let batch = batch_of(&rows.by_ref().take(ROWS_AT_ONCE).collect::<Vec<_>>());
        let log_probs = to_host(batch_log_probs(model, &batch, device));
        for (log_prob, trained) in log_probs.iter().zip(&batch.loss_mask) {
            if *trained != 0.0 {
                total.nll -= f64::from(*log_prob);
                total.tokens += 1;
            }
        }
    }
    Some(total)
}

/// Rows of one length as a batch.
pub fn batch_of(rows: &[PackedSequence]) -> TokenBatch {
    let time = rows.first().map_or(0, |row| row.tokens.len());
    let join =
        |part: fn(&PackedSequence) -> &Vec<i32>| rows.iter().flat_map(part).copied().collect();
    TokenBatch {
        tokens: join(|row| &row.tokens),
        targets: join(|row| &row.targets),
        loss_mask: rows.iter().flat_map(|row| &row.loss_mask).copied().collect(),
        documents: SegmentStarts::new(rows.len(), time, join(|row| &row.segment_starts)),
    }
}
