//! The operations a model is made of, one file or folder each, with their backward passes. Nothing
//! here knows a model or a file.
//!
//! Each file holds the formula, a reference in plain tensor operations, an implementation on the
//! CPU's buffers with its own backward pass, and the test that compares the two:
//!
//! ```text
//! rms_norm(x, gain, eps, backend)
//!   ├ reference   tensor operations on any device; Burn's autodiff derives the gradients
//!   └ native      NativeOp::forward and backward on flex's buffers, on all cores
//! ```
//!
//! [`OpBackend`] says which of them runs; a model chooses it once, when it is built. A new operation
//! is one new file and a line here. The references never wait for a number of a device whose memory
//! is not the host's.

mod adamw;
mod attention;
mod backend;
mod bit_linear;
mod blended_linear;
mod cross_entropy;
mod distillation;
mod fake_quantise;
mod gated;
mod group_codes;
mod grouped_linear;
mod head;
mod int8;
mod low_rank;
mod merged_latents;
mod muon;
mod native;
mod outside;
mod outside_latents;
mod rms_norm;
#[cfg(test)]
mod testing;

pub(crate) use adamw::UpdateChunk;
pub use adamw::{AdamWUpdate, adamw, sum_of_squares};
pub use attention::{AttentionShape, LazyMask, attention};
pub use backend::{DrawPlace, GradientFormat, GradientRounding, Lambda, OpBackend};
pub use bit_linear::{
    LinearSettings, activation_codes, bit_linear, bit_linear_outside, frozen_linear, weight_codes,
};
pub use blended_linear::{blend, blended_linear};
pub use cross_entropy::{cross_entropy, cross_entropy_outside, native_log_probs};
pub use distillation::{
    DistillationTerms, HeadOperand, TeacherLogits, TopOutcomes, distillation, top_outcomes,
};
pub use fake_quantise::{fake_quantise_activations, fake_quantise_matrix};
pub use gated::gated;
pub use grouped_linear::{LinearQuantiser, frozen_grouped_linear, grouped_linear};
pub use head::Targets;
pub(crate) use head::logits_at_once;
pub use int8::RoundingCounts;
pub(crate) use low_rank::LowRankJoin;
pub use merged_latents::FactorValues;
pub(crate) use merged_latents::merged;
pub(crate) use muon::orthogonalise;
pub(crate) use native::{untracked, with_threads};
pub use outside::{embedding_gradient, matrix_outside, rows_outside};
pub use rms_norm::rms_norm;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitnet_kernels::Kernel;

    use super::attention::tests::random_shape;
    use super::testing::{PRECISIONS, draw, gradient, leaf};
    use super::*;

    #[test]
    fn threads_and_kernels_change_no_bit_of_a_gradient() {
        let shape = random_shape([3, 70], [2, 2, 8], 1);
        let x = leaf(draw(1, "x", 3 * 70 * 64), [3, 70, 64]);
        let w = [64, 32, 32].map(|out| leaf(draw(out as u64, "w", out * 64), [out, 64]));
        let head = leaf(draw(2, "head", 90 * 64), [90, 64]);
        let targets = Targets { ids: Arc::new(vec![5; 210]), weights: Arc::new(vec![1.0; 210]) };
        let gradients = |backend: OpBackend| {
            let qkv = bit_linear(x.clone(), w.clone(), backend);
            let y = attention(qkv, &shape, backend);
            let loss = cross_entropy(y, head.clone(), targets.clone(), backend);
            let mut grads = loss.backward();
            let mut all = vec![gradient(&x, &mut grads)];
            all.extend(w.iter().map(|w| gradient(w, &mut grads)));
            all.push(gradient(&head, &mut grads));
            all
        };
        for operands in PRECISIONS {
            let expected = gradients(OpBackend::native(operands));
            for kernel in Kernel::available() {
                for threads in [1, 2, 3] {
                    let pool =
                        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut backend = OpBackend::native(operands);
                    backend.kernel = kernel;
                    let inside = pool.install(|| gradients(backend));
                    assert!(inside == expected, "{kernel:?} {operands:?} {threads} threads");
                    let shared = pool.install(|| with_threads(threads, || gradients(backend)));
                    assert!(shared == expected, "{kernel:?} {operands:?} shared by {threads}");
                }
            }
        }
    }
}
