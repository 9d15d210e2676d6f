//! The gradients: how [`TrainOps`] joins Burn's autodiff graph on any backend that can run the
//! forward and the backward of each operation.

use std::fmt::Debug;

use burn::backend::Backend;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use crate::ops::TrainOps;

/// The two halves of an operation of two inputs, and what the first keeps for the second.
pub(crate) trait Differentiable: TrainOps {
    /// Kept by [`Differentiable::rms_norm_forward`].
    type SavedNorm: Clone + Send + Debug + 'static;
    /// Kept by [`Differentiable::bit_linear_forward`].
    type SavedLinear: Clone + Send + Debug + 'static;

    fn rms_norm_forward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, Self::SavedNorm);

    /// Gradients of input and gain.
    fn rms_norm_backward(
        saved: Self::SavedNorm,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    fn bit_linear_forward(
        x: FloatTensor<Self>,
        latents: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, Self::SavedLinear);

    /// Gradients of input and latents.
    fn bit_linear_backward(
        saved: Self::SavedLinear,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

#[derive(Debug)]
struct NormBackward;

impl<B: Differentiable> Backward<B, 2> for NormBackward {
    type State = B::SavedNorm;

    fn backward(self, ops: Ops<B::SavedNorm, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        register::<B, _>(&ops, grads, |saved| B::rms_norm_backward(saved, dy));
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: Differentiable> Backward<B, 2> for LinearBackward {
    type State = B::SavedLinear;

    fn backward(self, ops: Ops<B::SavedLinear, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        register::<B, _>(&ops, grads, |saved| B::bit_linear_backward(saved, dy));
    }
}

fn register<B: Backend, S: Clone>(
    ops: &Ops<S, 2>,
    grads: &mut Gradients,
    backward: impl FnOnce(S) -> (FloatTensor<B>, FloatTensor<B>),
) {
    let (dx, dw) = backward(ops.state.clone());
    let [x, w] = &ops.parents;
    if let Some(node) = x {
        grads.register::<B>(node.id, dx);
    }
    if let Some(node) = w {
        grads.register::<B>(node.id, dw);
    }
}

impl<B: Differentiable, C: CheckpointStrategy> TrainOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let ((x, x_node), (gain, gain_node)) = (x.into_parts(), gain.into_parts());
        match NormBackward.prepare::<C>([x_node, gain_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, saved) = B::rms_norm_forward(x, gain, eps);
                prep.finish(saved, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rms_norm(x, gain, eps)),
        }
    }

    fn bit_linear(x: FloatTensor<Self>, latents: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (latents, w_node)) = (x.into_parts(), latents.into_parts());
        match LinearBackward.prepare::<C>([x_node, w_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, saved) = B::bit_linear_forward(x, latents);
                prep.finish(saved, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::bit_linear(x, latents)),
        }
    }
}
