//! The operations of this room in plain tensor operations, on any backend.

use bitnet_format::quant::{SCALE_EPS, WeightScale};
use burn::tensor::Tensor;

/// `RMSNorm` over the last dimension: `x [B, T, C]`, `gain [C]` → `[B, T, C]`
pub fn rms_norm(x: Tensor<3>, gain: Tensor<1>, eps: f32) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    let inverse = mean_square.add_scalar(eps).sqrt().recip();
    x * inverse * gain.unsqueeze()
}

/// A quantised linear layer over latents: `x [B, T, in]`, `latents [out, in]` → `[B, T, out]`
pub fn bit_linear(x: Tensor<3>, latents: Tensor<2>) -> Tensor<3> {
    let (codes, scale) = ternary(latents);
    frozen_linear(x, codes, scale)
}

/// A quantised linear layer over given codes `[out, in]`.
pub fn frozen_linear(x: Tensor<3>, codes: Tensor<2>, weight: WeightScale) -> Tensor<3> {
    let values = x.clone().detach();
    let scale = values.clone().abs().max_dim(2).clamp_min(SCALE_EPS).recip().mul_scalar(127.0);
    let levels = (values * scale.clone()).round().clamp(-128.0, 127.0);
    let levels = straight_through(levels, &x, &scale);
    let product = levels.matmul(codes.transpose().unsqueeze());
    // The order of `ActivationScale::rescale`: times the weight scale, then over the token's.
    product.mul_scalar(weight.multiplier()).div(scale)
}

/// The same layer in transformers' order: dequantise both sides, then multiply floats. It exists
/// to be compared with programs that work so; its products round where ours are exact.
pub fn dequantised_linear(x: Tensor<3>, latents: Tensor<2>) -> Tensor<3> {
    let values = x.clone().detach();
    let scale = values.clone().abs().max_dim(2).clamp_min(SCALE_EPS).recip().mul_scalar(127.0);
    let rounded = (values * scale.clone()).round().clamp(-128.0, 127.0) / scale;
    let x = rounded + (x.clone() - x.detach());
    let (codes, weight) = ternary(latents.clone());
    let dequantised = codes.detach().div_scalar(weight.inverse());
    let latents = dequantised + (latents.clone() - latents.detach());
    x.matmul(latents.transpose().unsqueeze())
}

/// Ternary codes of latents `[out, in]` that carry the latents' gradient, and their scale.
fn ternary(latents: Tensor<2>) -> (Tensor<2>, WeightScale) {
    let values = latents.clone().detach();
    let data = latents.clone().inner().into_data();
    let scale = WeightScale::of_latents(data.as_slice().expect("latents are f32"));
    let inverse = Tensor::from_floats([[scale.inverse()]], &values.device());
    let codes = (values * inverse.clone()).round().clamp(-1.0, 1.0);
    (straight_through(codes, &latents, &inverse), scale)
}

/// `codes`, with the gradient of `x · scale`: the second term is exactly zero.
fn straight_through<const D: usize>(
    codes: Tensor<D>,
    x: &Tensor<D>,
    scale: &Tensor<D>,
) -> Tensor<D> {
    codes + (x.clone() - x.clone().detach()) * scale.clone()
}
