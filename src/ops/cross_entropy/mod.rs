//! Next-token cross-entropy, fused with the head: `L = Σ_t weight[t] · (ln Σ_v exp(z[t,v]) − z[t,target])`
//! with logits `z = hidden · headᵀ`.
//!
//! The gradient of the logits is known as soon as the logits are,
//!
//! ```text
//! dz[t,v] = weight[t] · (p[t,v] − 1 where v is the target)        p = softmax(z)
//! ```
//!
//! so both implementations compute the gradients of hidden states and head in the forward pass, some
//! tokens at a time, and never keep `[tokens, vocabulary]` logits (as arXiv 2410.10989 does). The
//! backward pass multiplies what was kept by the gradient of the loss.

mod cpu;
mod reference;

use bitnet_kernels::Operands;
use burn::backend::Dispatch;
use burn::tensor::Tensor;

use crate::latents::Latents;
use crate::ops::OpBackend;
use crate::ops::head::{OutsideHead, Targets};
use crate::ops::native::{NativeDispatch, untracked};

/// Next-token loss: `hidden [B, T, C]`, `head [V, C]` → `Σ weight · -log p(target)`, `[1]`
pub fn cross_entropy(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: Targets,
    backend: OpBackend,
) -> Tensor<1> {
    if !backend.is_native() {
        return reference::cross_entropy(hidden, head, &targets, backend);
    }
    let op = cpu::NativeCrossEntropy { targets, outside: None, backend };
    Tensor::from_dispatch(Dispatch::run2(hidden.into_dispatch(), head.into_dispatch(), op))
}

/// [`cross_entropy`] over a head that lies outside of tensors; `leaf`, an empty matrix, gets its gradient.
///
/// # Panics
/// On a device that has no native operations.
pub fn cross_entropy_outside(
    hidden: Tensor<3>,
    leaf: Tensor<2>,
    head: &Latents,
    targets: Targets,
    backend: OpBackend,
) -> Tensor<1> {
    assert!(backend.is_native(), "such latents lie in the host's memory");
    // Under an adapter the head is frozen and is spared a gradient of `[V, C]`.
    let is_trained = leaf.is_require_grad();
    let outside = Some(OutsideHead { latents: head.clone(), is_trained });
    let op = cpu::NativeCrossEntropy { targets, outside, backend };
    Tensor::from_dispatch(Dispatch::run2(hidden.into_dispatch(), leaf.into_dispatch(), op))
}

/// The log-probability of each target, `[B·T]`, and 0 where its weight is 0: the losses that
/// [`cross_entropy`] sums, of logits in f32 and without a gradient. The head is `outside`, or the tensor.
///
/// # Panics
/// On a device that has no native operations.
pub fn native_log_probs(
    hidden: Tensor<3>,
    head: Tensor<2>,
    outside: Option<&Latents>,
    targets: Targets,
    backend: OpBackend,
) -> Tensor<1> {
    assert!(backend.is_native(), "a native operation");
    let backend = backend.with_operands(Operands::F32);
    let outside =
        outside.map(|latents| OutsideHead { latents: latents.clone(), is_trained: false });
    let op = cpu::NativeLogProbs(cpu::NativeCrossEntropy { targets, outside, backend });
    let (hidden, head) = (untracked(hidden), untracked(head));
    Tensor::from_dispatch(Dispatch::run2(hidden.into_dispatch(), head.into_dispatch(), op))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::to_host;
    use crate::latents::LatentFormat;
    use crate::model::target_log_probs;
    use crate::ops::testing::{
        DRAWS, PRECISIONS, assert_within, cases, draw, gradient, leaf, of_draws, tolerance,
        with_gradients,
    };
    use burn::tensor::{Int, TensorData};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn the_loss_equals_the_log_probabilities_it_sums(
            time in 1usize..300, width in 1usize..50, vocab in 2usize..200, seed: u64,
        ) {
            check([time, width, vocab], DRAWS, seed);
        }
    }

    /// Several blocks of words and chunks of tokens, then a vocabulary too large for its exponentials
    /// to be kept.
    #[test]
    fn the_loss_over_a_large_vocabulary_equals_the_log_probabilities_it_sums() {
        check([700, 12, 1100], 1, 1);
        check([513, 6, 9000], 1, 2);
    }

    /// Loss and gradients over random hidden states, some of them not trained, against
    /// log-probabilities whose gradients Burn's autodiff derives.
    fn check(shape: [usize; 3], draws: u64, seed: u64) {
        let results =
            |backend| of_draws(draws, seed, |seed| loss_and_gradients(shape, seed, backend));
        let expected = results(None);
        for operands in PRECISIONS {
            // Sums over more words differ by more.
            let within = tolerance(operands) * (1.0 + shape[2] as f64 / 1000.0);
            for backend in [OpBackend::native(operands), OpBackend::reference(operands)] {
                assert_within(
                    &results(Some(backend)),
                    &expected,
                    within,
                    &format!("loss, {backend:?}"),
                );
            }
        }
    }

    /// From the log-probabilities where no backend is given; these are checked themselves then.
    fn loss_and_gradients(
        [time, width, vocab]: [usize; 3],
        seed: u64,
        backend: Option<OpBackend>,
    ) -> Vec<Vec<f32>> {
        let hidden = leaf(draw(seed, "hidden", time * width), [1, time, width]);
        let head = leaf(draw(seed, "head", vocab * width), [vocab, width]);
        let weight = |x: &f32| if *x < -0.5 { 0.0 } else { x.abs() };
        let weights: Vec<f32> = draw(seed, "weights", time).iter().map(weight).collect();
        let id = |x: &f32| (x.abs() * 1e4) as i32 % vocab as i32;
        let ids: Vec<i32> = draw(seed, "ids", time).iter().map(id).collect();
        let run = |loss: Tensor<1>| {
            with_gradients(&loss, seed, |grads| {
                vec![gradient(&hidden, grads), gradient(&head, grads)]
            })
        };
        if let Some(backend) = backend {
            let targets = Targets { ids: Arc::new(ids), weights: Arc::new(weights) };
            return run(cross_entropy(hidden.clone(), head.clone(), targets, backend));
        }
        let device = hidden.device();
        let at = Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), [1, time]), &device);
        let log_probs = target_log_probs(hidden.clone(), head.clone(), at);
        check_log_probs(&log_probs, (&hidden, &head), &ids, &weights);
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [1, time]), &device);
        run((log_probs * weights).sum().neg())
    }

    /// The native form against `expected`, from a head in a tensor and from one outside.
    fn check_log_probs(
        expected: &Tensor<2>,
        (hidden, head): (&Tensor<3>, &Tensor<2>),
        ids: &[i32],
        weights: &[f32],
    ) {
        let targets = Targets { ids: Arc::new(ids.to_vec()), weights: Arc::new(weights.to_vec()) };
        let backend = OpBackend::native(Operands::Bf16);
        let latents = Latents::new(LatentFormat::F32, head.dims(), &to_host(head.clone()));
        let leaf = Tensor::zeros([0, 0], &hidden.device());
        for (head, outside) in [(head.clone(), None), (leaf, Some(&latents))] {
            let found = native_log_probs(hidden.clone(), head, outside, targets.clone(), backend);
            let found = to_host(found);
            for ((found, expected), weight) in
                found.iter().zip(to_host(expected.clone())).zip(weights)
            {
                let expected = if *weight == 0.0 { 0.0 } else { expected };
                assert!(
                    (found - expected).abs() < 2e-5 * (1.0 + expected.abs()),
                    "{found} {expected}"
                );
            }
        }
    }
}
