//! The gradients: how [`TrainOps`] joins Burn's autodiff graph on any backend that can run the
//! forward and the backward of each operation.

use std::fmt::Debug;

use bitnet_format::HiddenAct;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend};

use crate::ops::{AttentionShape, Compute, Targets, TrainOps, Update};

/// What an operation keeps from its forward pass, and how gradients come back through it.
pub(crate) trait Saved<B: Backend, const N: usize>: Clone + Send + Debug + 'static {
    /// The gradients of the `N` inputs.
    fn backward(self, dy: FloatTensor<B>) -> [FloatTensor<B>; N];
}

/// The forward halves of the operations, each with what it keeps.
pub(crate) trait Differentiable: TrainOps {
    type Norm: Saved<Self, 2>;
    type Linear: Saved<Self, 2> + Saved<Self, 3> + Saved<Self, 4>;
    type Gated: Saved<Self, 1>;
    type Attention: Saved<Self, 1>;
    type Loss: Saved<Self, 2>;

    fn rms_norm_forward(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        eps: f32,
        compute: Compute,
    ) -> (FloatTensor<Self>, Self::Norm);

    fn bit_linear_forward<const N: usize>(
        x: FloatTensor<Self>,
        latents: [FloatTensor<Self>; N],
        compute: Compute,
    ) -> (FloatTensor<Self>, Self::Linear);

    fn gated_forward(
        gate_up: FloatTensor<Self>,
        act: HiddenAct,
        compute: Compute,
    ) -> (FloatTensor<Self>, Self::Gated);

    fn attention_forward(
        qkv: FloatTensor<Self>,
        shape: AttentionShape,
        compute: Compute,
    ) -> (FloatTensor<Self>, Self::Attention);

    fn cross_entropy_forward(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Targets,
        compute: Compute,
    ) -> (FloatTensor<Self>, Self::Loss);
}

/// The backward half of every operation: what was saved knows what to do.
#[derive(Debug)]
struct Step<S>(std::marker::PhantomData<fn() -> S>);

impl<S> Step<S> {
    fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<B: Backend, S: Saved<B, N>, const N: usize> Backward<B, N> for Step<S> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let found = ops.state.backward(dy);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Joins an operation of some inputs to the graph: `forward` where something is tracked, `plain`
/// where nothing is.
macro_rules! join {
    ($saved:ty, [$($input:ident),+], $forward:expr, $plain:expr) => {{
        $(let $input = $input.into_parts();)+
        let nodes = [$($input.1),+];
        $(let $input = $input.0;)+
        match Step::<$saved>::new().prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (y, saved) = $forward;
                prep.finish(saved, y)
            }
            OpsKind::UnTracked(prep) => prep.finish($plain),
        }
    }};
}

impl<B: Differentiable, C: CheckpointStrategy> TrainOps for Autodiff<B, C> {
    fn rms_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        eps: f32,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Norm,
            [x, gain],
            B::rms_norm_forward(x, gain, eps, compute),
            B::rms_norm(x, gain, eps, compute)
        )
    }

    fn bit_linear(
        x: FloatTensor<Self>,
        latents: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Linear,
            [x, latents],
            B::bit_linear_forward(x, [latents], compute),
            B::bit_linear(x, latents, compute)
        )
    }

    fn bit_linear_pair(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Linear,
            [x, first, second],
            B::bit_linear_forward(x, [first, second], compute),
            B::bit_linear_pair(x, first, second, compute)
        )
    }

    fn bit_linear_triple(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Linear,
            [x, first, second, third],
            B::bit_linear_forward(x, [first, second, third], compute),
            B::bit_linear_triple(x, first, second, third, compute)
        )
    }

    fn gated(gate_up: FloatTensor<Self>, act: HiddenAct, compute: Compute) -> FloatTensor<Self> {
        join!(
            B::Gated,
            [gate_up],
            B::gated_forward(gate_up, act, compute),
            B::gated(gate_up, act, compute)
        )
    }

    fn causal_attention(
        qkv: FloatTensor<Self>,
        shape: AttentionShape,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Attention,
            [qkv],
            B::attention_forward(qkv, shape, compute),
            B::causal_attention(qkv, shape, compute)
        )
    }

    fn cross_entropy(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Targets,
        compute: Compute,
    ) -> FloatTensor<Self> {
        join!(
            B::Loss,
            [hidden, head],
            B::cross_entropy_forward(hidden, head, targets, compute),
            B::cross_entropy(hidden, head, targets, compute)
        )
    }

    /// An update is no part of a graph.
    fn adamw(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: Update,
        compute: Compute,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [value, gradient, first, second] =
            [value, gradient, first, second].map(|tensor| tensor.into_parts().0);
        let (value, first, second) = B::adamw(value, gradient, first, second, update, compute);
        (Self::from_inner(value), Self::from_inner(first), Self::from_inner(second))
    }

    fn sum_of_squares(x: FloatTensor<Self>, compute: Compute) -> FloatTensor<Self> {
        Self::from_inner(B::sum_of_squares(x.into_parts().0, compute))
    }
}
