//! Burn operations of our own, each with its own backward pass.
//!
//! The trait [`TrainOps`] is what a backend must do; `flex` does it on the backend's raw buffers
//! with all cores, `autodiff` adds the gradients, and [`mod@reference`] says the same in plain tensor
//! operations, which tests compare with. Nothing here knows a model or a file.

mod autodiff;
mod flex;
pub mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

/// What a backend does for us.
#[backend_extension(Flex, Autodiff)]
pub trait TrainOps: Backend {
    /// `x [.., C]`, `gain [C]` → `[.., C]`
    fn rms_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    /// `x [.., in]`, `latents [out, in]` → `[.., out]`
    fn bit_linear(x: FloatTensor<Self>, latents: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `RMSNorm` over the last dimension: `x [B, T, C]`, `gain [C]` → `[B, T, C]`
pub fn rms_norm(x: Tensor<3>, gain: Tensor<1>, eps: f32) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), gain.into_dispatch(), eps))
}

/// A quantised linear layer over latents: `x [B, T, in]`, `latents [out, in]` → `[B, T, out]`
pub fn bit_linear(x: Tensor<3>, latents: Tensor<2>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::bit_linear(x.into_dispatch(), latents.into_dispatch()))
}
