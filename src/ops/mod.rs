//! Burn operations of our own, each with its own backward pass.
//!
//! The trait [`TrainOps`] is what a backend must do; `flex` does it on the backend's raw buffers
//! with all cores, `autodiff` adds the gradients, and [`mod@reference`] says the same in plain tensor
//! operations, which tests compare with and all other devices run. Nothing here knows a model or a
//! file.
//!
//! Matrices that share an input are multiplied together and give one tensor, outputs beside
//! outputs: queries, keys and values; gate and up.

mod autodiff;
mod compute;
mod flex;
pub mod reference;

use bitnet_format::HiddenAct;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::device::runs_own_operations;

pub use compute::{AttentionShape, Compute, Targets, Update};
pub(crate) use flex::logits_at_once;

/// What a backend does for us.
#[backend_extension(Flex, Autodiff)]
pub trait TrainOps: Backend {
    /// `x [.., C]`, `gain [C]` → `[.., C]`
    fn rms_norm(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        eps: f32,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// `x [.., in]`, `latents [out, in]` → `[.., out]`
    fn bit_linear(
        x: FloatTensor<Self>,
        latents: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// Two matrices: `x [.., in]` → `[.., out₁ + out₂]`
    fn bit_linear_pair(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// Three matrices: `x [.., in]` → `[.., out₁ + out₂ + out₃]`
    fn bit_linear_triple(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// `[B, T, 2F]`, gate first → `[B, T, F]`
    fn gated(gate_up: FloatTensor<Self>, act: HiddenAct, compute: Compute) -> FloatTensor<Self>;
    /// `qkv [B, T, (H + 2 KV)·D]` → `[B, T, H·D]`
    fn causal_attention(
        qkv: FloatTensor<Self>,
        shape: AttentionShape,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// `hidden [B, T, C]`, `head [V, C]` → the weighted sum of the targets' losses `[1]`
    fn cross_entropy(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: Targets,
        compute: Compute,
    ) -> FloatTensor<Self>;
    /// Value, gradient and both moments `[elements]` → the new value and moments; no gradients.
    fn adamw(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        update: Update,
        compute: Compute,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// `Σ x²` of `[elements]`, `[1]`; no gradients.
    fn sum_of_squares(x: FloatTensor<Self>, compute: Compute) -> FloatTensor<Self>;
}

/// `RMSNorm` over the last dimension: `x [B, T, C]`, `gain [C]` → `[B, T, C]`
pub fn rms_norm(x: Tensor<3>, gain: Tensor<1>, eps: f32, compute: Compute) -> Tensor<3> {
    if !runs_own_operations(&x.device()) {
        return reference::rms_norm(x, gain, eps);
    }
    let (x, gain) = (x.into_dispatch(), gain.into_dispatch());
    Tensor::from_dispatch(Dispatch::rms_norm(x, gain, eps, compute))
}

/// Quantised linear layers over latents with one input: `x [B, T, in]`, one to three matrices
/// `[outᵢ, in]` → `[B, T, Σ outᵢ]`
///
/// # Panics
/// With no matrix or more than three.
pub fn bit_linear<const N: usize>(
    x: Tensor<3>,
    latents: [Tensor<2>; N],
    compute: Compute,
) -> Tensor<3> {
    if !runs_own_operations(&x.device()) {
        return reference::bit_linear(x, latents, compute.operands);
    }
    let x = x.into_dispatch();
    let mut latents = latents.into_iter().map(Tensor::into_dispatch);
    let y = match (latents.next(), latents.next(), latents.next(), latents.next()) {
        (Some(a), None, None, None) => Dispatch::bit_linear(x, a, compute),
        (Some(a), Some(b), None, None) => Dispatch::bit_linear_pair(x, a, b, compute),
        (Some(a), Some(b), Some(c), None) => Dispatch::bit_linear_triple(x, a, b, c, compute),
        _ => panic!("one to three matrices"),
    };
    Tensor::from_dispatch(y)
}

/// `act(gate) · up`: `gate_up [B, T, 2F]`, gate first → `[B, T, F]`
pub fn gated(gate_up: Tensor<3>, act: HiddenAct, compute: Compute) -> Tensor<3> {
    if !runs_own_operations(&gate_up.device()) {
        return reference::gated(gate_up, act);
    }
    Tensor::from_dispatch(Dispatch::gated(gate_up.into_dispatch(), act, compute))
}

/// Causal grouped-query attention with rotary positions, inside documents:
/// `qkv [B, T, (H + 2 KV)·D]` → `[B, T, H·D]`
pub fn attention(qkv: Tensor<3>, shape: &AttentionShape, compute: Compute) -> Tensor<3> {
    if !runs_own_operations(&qkv.device()) {
        return reference::attention(qkv, shape, compute.operands);
    }
    Tensor::from_dispatch(Dispatch::causal_attention(qkv.into_dispatch(), shape.clone(), compute))
}

/// Next-token loss: `hidden [B, T, C]`, `head [V, C]` → `Σ weight · -log p(target)`, `[1]`
pub fn cross_entropy(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: Targets,
    compute: Compute,
) -> Tensor<1> {
    if !runs_own_operations(&hidden.device()) {
        return reference::cross_entropy(hidden, head, &targets, compute.operands);
    }
    let (hidden, head) = (hidden.into_dispatch(), head.into_dispatch());
    Tensor::from_dispatch(Dispatch::cross_entropy(hidden, head, targets, compute))
}

/// One update of a parameter: value, gradient and moments `[elements]` → new value and moments.
pub fn adamw(
    value: Tensor<1>,
    gradient: Tensor<1>,
    first: Tensor<1>,
    second: Tensor<1>,
    update: Update,
    compute: Compute,
) -> [Tensor<1>; 3] {
    if !runs_own_operations(&value.device()) {
        return reference::adamw([value, gradient, first, second], update);
    }
    let [value, gradient, first, second] =
        [value, gradient, first, second].map(Tensor::into_dispatch);
    let (value, first, second) = Dispatch::adamw(value, gradient, first, second, update, compute);
    [value, first, second].map(Tensor::from_dispatch)
}

/// `Σ x²`, `[1]`, summed in a fixed order.
pub fn sum_of_squares(x: Tensor<1>, compute: Compute) -> Tensor<1> {
    if !runs_own_operations(&x.device()) {
        return x.square().sum();
    }
    Tensor::from_dispatch(Dispatch::sum_of_squares(x.into_dispatch(), compute))
}
