//! The loss of a student beside its teacher, fused with the student's head:
//!
//! ```text
//! L = Σ_t weight[t] · (a · CE[t] + b · KL[t])
//! CE[t] = ln Σ_v exp(z[t,v]) − z[t,target]             z = hidden · headᵀ
//! KL[t] = Σ_v q[t,v] · (ln q[t,v] − ln p[t,v])         q = softmax(teacher's z / τ), p = softmax(z / τ)
//! ```
//!
//! The KL is not multiplied by τ² (as in arXiv 2510.13998). Its gradient is known as soon as the logits of
//! both are:
//!
//! ```text
//! dz[t,v] = weight[t] · (a · (softmax(z)[t,v] − 1 where v is the target) + b/τ · (p[t,v] − q[t,v]))
//! ```
//!
//! so, as in `cross_entropy`, both implementations compute the gradients of hidden states and head in the
//! forward pass and keep no `[tokens, vocabulary]` logits, neither the student's nor the teacher's: these
//! are made from its final hidden states and its head, whose width may be another.
//!
//! Of a teacher that is not there ([`TopOutcomes`]) the k most likely words are known with their
//! log-probabilities, and that of all others together. Both distributions then have k + 1 outcomes, the
//! last of them all other words, joined before anything is divided by τ:
//!
//! ```text
//! y = (z at the k words, R)         R = ln Σ exp(z) over all other words
//! q = softmax(teacher's y / τ), p = softmax(y / τ), KL over the k + 1 outcomes
//! dz[v] = b/τ · (p[v] − q[v])       at one of the k words
//!       = b/τ · (p[k] − q[k]) · exp(z[v] − R)       at any other
//! ```
//!
//! A student that equals its teacher has a KL of zero in both forms, and the second is never above the
//! first at τ = 1.

mod cpu;
mod outcomes;
mod reference;
mod top;
mod whole;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use crate::host::to_host;
use crate::latents::{LatentFormat, Latents};
use crate::ops::OpBackend;
use crate::ops::head::{OutsideHead, Targets};
use crate::ops::native::{NativeDispatch, untracked};

/// What a token's two losses are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillationTerms {
    /// `a`
    pub cross_entropy: f64,
    /// `b`
    pub logits: f64,
    /// `τ`
    pub temperature: f64,
}

/// A head `[V, C]`: a tensor, or latents outside of tensors with an empty leaf that gets their gradient.
#[derive(Clone, Debug)]
pub struct HeadOperand<'a> {
    /// The matrix, or the leaf.
    pub tensor: Tensor<2>,
    /// The matrix, where it is not a tensor.
    pub outside: Option<&'a Latents>,
}

/// What a teacher says of every token.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a micro-batch has one")]
pub enum TeacherLogits<'a> {
    /// The final hidden states that its logits are made of, `[B, T, C']`, and its head `[V, C']`.
    Whole {
        /// Outside of any graph.
        hidden: Tensor<3>,
        /// The teacher's head, with as many words as the student's.
        head: HeadOperand<'a>,
    },
    /// Its most likely words.
    Top(TopOutcomes),
}

/// The most likely words of every token, at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct TopOutcomes {
    /// How many of each token, `k`.
    pub count: usize,
    /// Ids, `[B·T, k]`; those of a token differ. Not read where nothing is trained.
    pub ids: Arc<Vec<u32>>,
    /// Log-probabilities of these words and, last, of all others together, `[B·T, k + 1]`; minus
    /// infinity where there are no others.
    pub log_probs: Arc<Vec<f32>>,
}

impl TopOutcomes {
    /// The words of a token.
    pub(crate) fn ids(&self, token: usize) -> &[u32] {
        &self.ids[token * self.count..][..self.count]
    }

    /// The log-probabilities of a token.
    pub(crate) fn log_probs(&self, token: usize) -> &[f32] {
        &self.log_probs[token * (self.count + 1)..][..=self.count]
    }
}

/// Both losses of each token of a chunk.
struct TokenLosses {
    cross_entropy: Vec<f64>,
    divergence: Vec<f64>,
}

/// `[L, Σ weight · CE, Σ weight · KL]` of hidden states `[B, T, C]`; only the first has a gradient.
pub fn distillation(
    hidden: Tensor<3>,
    head: HeadOperand,
    teacher: TeacherLogits,
    targets: Targets,
    terms: DistillationTerms,
    backend: OpBackend,
) -> Tensor<1> {
    if !backend.is_native() {
        return reference::distillation(hidden, head.tensor, teacher, &targets, terms, backend);
    }
    let is_trained = head.tensor.is_require_grad();
    let outside = head.outside.map(|latents| OutsideHead { latents: latents.clone(), is_trained });
    let teacher = match teacher {
        TeacherLogits::Whole { hidden, head } => {
            let hidden = Arc::new(to_host(untracked(hidden)));
            cpu::NativeTeacher::Whole { hidden, head: as_latents(head) }
        }
        TeacherLogits::Top(outcomes) => cpu::NativeTeacher::Top(outcomes),
    };
    let op = cpu::NativeDistillation { targets, outside, teacher, terms, backend };
    Tensor::from_dispatch(Dispatch::run2(hidden.into_dispatch(), head.tensor.into_dispatch(), op))
}

/// The `k` most likely words of each token with a weight, from hidden states `[B, T, C]`; of equal ones
/// those with the smaller ids. Logits are computed in f32.
pub fn top_outcomes(
    hidden: Tensor<3>,
    head: HeadOperand,
    targets: &Targets,
    count: usize,
    backend: OpBackend,
) -> TopOutcomes {
    let hidden = untracked(hidden);
    if !backend.is_native() {
        return reference::top_outcomes(hidden, untracked(head.tensor), targets, count);
    }
    outcomes::top_outcomes(&to_host(hidden), &as_latents(head), targets, count, backend)
}

fn as_latents(head: HeadOperand) -> Latents {
    head.outside.cloned().unwrap_or_else(|| {
        let head = untracked(head.tensor);
        // f32 latents hold the tensor's values to the bit.
        Latents::new(LatentFormat::F32, head.dims(), &to_host(head))
    })
}

#[cfg(test)]
mod tests;
