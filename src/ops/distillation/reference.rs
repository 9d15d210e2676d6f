//! Distillation in plain tensor operations, some tokens at a time.

use std::ops::Range;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData, activation};

use super::{DistillationTerms, TeacherLogits, TopOutcomes};
use crate::host::to_host;
use crate::ops::OpBackend;
use crate::ops::head::Targets;

/// Tokens whose logits exist at the same time.
const LOGIT_TOKENS: usize = 512;

/// The gradients that the forward pass computes join the graph as factors of differences that are
/// exactly zero: `(x − detach(x)) · gradient`.
pub(super) fn distillation(
    hidden: Tensor<3>,
    head: Tensor<2>,
    teacher: TeacherLogits,
    targets: &Targets,
    terms: DistillationTerms,
    backend: OpBackend,
) -> Tensor<1> {
    let [batch, time, width] = hidden.dims();
    let hidden = hidden.reshape([batch * time, width]);
    let device = hidden.device();
    let (tokens, frozen) = (hidden.clone().detach(), head.clone().detach());
    let mut sums = [(); 2].map(|()| Tensor::<1>::zeros([1], &device));
    let mut head_gradient = frozen.zeros_like();
    let mut hidden_gradients = Vec::new();
    for first in (0..batch * time).step_by(LOGIT_TOKENS) {
        let count = LOGIT_TOKENS.min(batch * time - first);
        let chunk = tokens.clone().narrow(0, first, count);
        // In f32 always, as those of cross-entropy.
        let logits = chunk.clone().matmul(frozen.clone().transpose());
        let weights = column(&targets.weights[first..first + count], &device);
        let (cross_entropy, plain) = cross_entropy(&logits, &targets.ids[first..first + count]);
        let (divergence, tempered) = match &teacher {
            TeacherLogits::Whole { hidden, head } => {
                let [_, _, width] = hidden.dims();
                let theirs = like(hidden.clone(), &tokens).reshape([batch * time, width]);
                let theirs = theirs.narrow(0, first, count);
                let theirs = theirs.matmul(like(head.tensor.clone(), &tokens).transpose());
                whole(&logits, theirs, terms.temperature)
            }
            TeacherLogits::Top(outcomes) => {
                top(&logits, outcomes, first..first + count, terms.temperature)
            }
        };
        let add = |sum: Tensor<1>, losses: Tensor<2>| sum + (losses * weights.clone()).sum();
        let [of_targets, of_teacher] = sums;
        sums = [add(of_targets, cross_entropy), add(of_teacher, divergence)];
        // `b/τ · (p − q)` is the gradient of `b · KL` by the logits before they are divided by τ.
        let error = plain * terms.cross_entropy + tempered * (terms.logits / terms.temperature);
        let error = error * weights; // [count, V]
        hidden_gradients.push(backend.matmul(error.clone(), frozen.clone()));
        head_gradient = head_gradient + backend.matmul(error.transpose(), chunk);
    }
    let along = |x: Tensor<2>, gradient: Tensor<2>| ((x.clone() - x.detach()) * gradient).sum();
    let [cross_entropy, divergence] = sums;
    let loss = cross_entropy.clone() * terms.cross_entropy + divergence.clone() * terms.logits;
    let loss = loss + along(hidden, Tensor::cat(hidden_gradients, 0)) + along(head, head_gradient);
    Tensor::cat(vec![loss, cross_entropy, divergence], 0)
}

/// The same values beside a graph, where `beside` is part of one.
fn like<const D: usize>(values: Tensor<D>, beside: &Tensor<2>) -> Tensor<D> {
    if beside.is_autodiff() && !values.is_autodiff() { values.autodiff() } else { values }
}

fn column(values: &[f32], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len(), 1]), device)
}

/// The loss of each token `[N, 1]`, and `softmax(z) − 1 at the target`.
fn cross_entropy(logits: &Tensor<2>, ids: &[i32]) -> (Tensor<2>, Tensor<2>) {
    let [count, vocab] = logits.dims();
    let device = logits.device();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [count, 1]), &device);
    let log_probs = activation::log_softmax(logits.clone(), 1);
    let losses = log_probs.clone().gather(1, ids.clone()).neg();
    let words = Tensor::<1, Int>::arange(0..vocab as i64, &device);
    (losses, log_probs.exp() - ids.equal(words.unsqueeze()).float())
}

/// The divergence of each token `[N, 1]`, and `p − q`.
fn whole(logits: &Tensor<2>, theirs: Tensor<2>, temperature: f64) -> (Tensor<2>, Tensor<2>) {
    let student = activation::log_softmax(logits.clone() / temperature, 1);
    let teacher = activation::log_softmax(theirs / temperature, 1);
    let divergence = (teacher.clone().exp() * (teacher.clone() - student.clone())).sum_dim(1);
    (divergence, student.exp() - teacher.exp())
}

/// The divergence of each token over its `k + 1` outcomes, and its gradient times the temperature.
fn top(
    logits: &Tensor<2>,
    outcomes: &TopOutcomes,
    tokens: Range<usize>,
    temperature: f64,
) -> (Tensor<2>, Tensor<2>) {
    let (device, k, count) = (logits.device(), outcomes.count, tokens.len());
    let ids = outcomes.ids[tokens.start * k..tokens.end * k].iter().map(|&id| id as i32);
    let ids = TensorData::new(ids.collect::<Vec<_>>(), [count, k]);
    let ids = Tensor::<2, Int>::from_data(ids, &device);
    let stored = outcomes.log_probs[tokens.start * (k + 1)..tokens.end * (k + 1)].iter();
    // Without other words, an outcome that has no probability on either side.
    let stored: Vec<f32> = stored.map(|&value| value.max(NOWHERE)).collect();
    let theirs = Tensor::<2>::from_data(TensorData::new(stored, [count, k + 1]), &device);
    let nowhere = Tensor::full([count, k], NOWHERE, &device);
    let found = logits.clone().gather(1, ids.clone());
    // Known words are moved to `NOWHERE`, so that the sum below is that of all others.
    let delta = nowhere.clone() - found.clone();
    let others = logits.clone().scatter(1, ids.clone(), delta, IndexingUpdateOp::Add);
    let largest = others.clone().max_dim(1);
    let shares = (others - largest.clone()).exp();
    let sum = shares.clone().sum_dim(1);
    let rest = sum.clone().log() + largest;
    // Anything above half of `NOWHERE` is a log-probability that the teacher gave.
    let has_rest = theirs.clone().narrow(1, k, 1).greater_elem(0.5 * NOWHERE);
    let rest = rest.mask_fill(has_rest.bool_not(), NOWHERE);
    let all = Tensor::cat(vec![found, rest], 1);
    let student = activation::log_softmax(all / temperature, 1);
    let teacher = activation::log_softmax(theirs / temperature, 1);
    let (p, q) = (student.clone().exp(), teacher.clone().exp());
    let divergence = (q.clone() * (teacher - student)).sum_dim(1);
    let error = p - q;
    // Each other word has its share, `exp(z − R)`, of the gradient of the rest.
    let spread = shares / sum * error.clone().narrow(1, k, 1);
    // `scatter` adds, so what `spread` has at the known words is taken off first.
    let own = error.narrow(1, 0, k) - spread.clone().gather(1, ids.clone());
    (divergence, spread.scatter(1, ids, own, IndexingUpdateOp::Add))
}

/// A logit that no softmax sees.
const NOWHERE: f32 = -1e30;

/// The most likely words of each token, see [`super::top_outcomes`].
pub(super) fn top_outcomes(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: &Targets,
    count: usize,
) -> TopOutcomes {
    let [batch, time, width] = hidden.dims();
    let hidden = hidden.reshape([batch * time, width]);
    let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
    for first in (0..batch * time).step_by(LOGIT_TOKENS) {
        let tokens = LOGIT_TOKENS.min(batch * time - first);
        let logits = hidden.clone().narrow(0, first, tokens).matmul(head.clone().transpose());
        let vocab = logits.dims()[1];
        for row in to_host(activation::log_softmax(logits, 1)).chunks_exact(vocab) {
            let mut order: Vec<u32> = (0..vocab as u32).collect();
            let value = |id: u32| row[id as usize];
            order.sort_unstable_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
            let rest = order[count..].iter().map(|&id| f64::from(value(id)).exp()).sum::<f64>();
            log_probs.extend(order[..count].iter().map(|&id| value(id)));
            log_probs.push(rest.ln() as f32);
            ids.extend_from_slice(&order[..count]);
        }
    }
    debug_assert_eq!(targets.ids.len() * count, ids.len());
    TopOutcomes { count, ids: ids.into(), log_probs: log_probs.into() }
}
