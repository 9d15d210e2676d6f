//! The operations of this room in plain tensor operations, on any backend.

use bitnet_format::HiddenAct;
use bitnet_format::quant::{SCALE_EPS, WeightScale};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

use crate::ops::AttentionShape;

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

/// `act(gate) · up`: `gate_up [B, T, 2F]`, gate first → `[B, T, F]`
pub fn gated(gate_up: Tensor<3>, act: HiddenAct) -> Tensor<3> {
    let width = gate_up.dims()[2] / 2;
    let (gate, up) = (gate_up.clone().narrow(2, 0, width), gate_up.narrow(2, width, width));
    let gate = match act {
        HiddenAct::Relu2 => activation::relu(gate).square(),
        HiddenAct::Silu => activation::silu(gate),
    };
    gate * up
}

/// Attention with all scores at once: `qkv [B, T, (H + 2 KV)·D]` → `[B, T, H·D]`
///
/// The `G = H / KV` query heads of a group are stacked along time, so that keys and values are
/// never repeated.
pub fn attention(qkv: Tensor<3>, shape: &AttentionShape) -> Tensor<3> {
    let AttentionShape { batch, time, heads, key_heads, width, .. } = *shape;
    let (group, device) = (shape.group(), qkv.device().inner());
    let split = |first: usize, count: usize| {
        let part = qkv.clone().narrow(2, first * width, count * width);
        part.reshape([batch, time, count, width]).swap_dims(1, 2)
    };
    let q = turned(split(0, heads), shape, &device).mul_scalar(1.0 / (width as f32).sqrt());
    let k = turned(split(heads, key_heads), shape, &device);
    let v = split(heads + key_heads, key_heads);
    let q = q.reshape([batch, key_heads, group * time, width]);
    let scores = q.matmul(k.swap_dims(2, 3)); // [B, KV, G·T, T]
    let scores = scores.reshape([batch, key_heads, group, time, time]);
    let mask = forbidden(shape, &device).expand([batch, key_heads, group, time, time]);
    let weights = activation::softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 4);
    let mixed = weights.reshape([batch, key_heads, group * time, time]).matmul(v);
    let mixed = mixed.reshape([batch, heads, time, width]).swap_dims(1, 2);
    mixed.reshape([batch, time, heads * width])
}

/// Heads `[B, N, T, D]` turned by their positions, element `j` with element `j + D/2`.
fn turned(x: Tensor<4>, shape: &AttentionShape, device: &Device) -> Tensor<4> {
    let half = shape.width / 2;
    let dims = [shape.batch, 1, shape.time, half];
    let turn =
        |values: &[f32]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), dims), device);
    let (cosines, sines) = (turn(&shape.cosines), turn(&shape.sines));
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let low = first.clone() * cosines.clone() - second.clone() * sines.clone();
    let high = second * cosines + first * sines;
    Tensor::cat(vec![low, high], 3)
}

/// True where attention is forbidden: the future, and other documents. `[B, 1, 1, T, T]`
fn forbidden(shape: &AttentionShape, device: &Device) -> Tensor<5, Bool> {
    let (batch, time) = (shape.batch, shape.time);
    let index = Tensor::<1, Int>::arange(0..time as i64, device);
    let key = index.clone().reshape([1, 1, time]);
    let future = key.clone().greater(index.reshape([1, time, 1]));
    let starts = TensorData::new(shape.starts.to_vec(), [batch, time, 1]);
    let before = key.lower(Tensor::<3, Int>::from_data(starts, device));
    let forbidden = before.bool_or(future.expand([batch, time, time]));
    forbidden.reshape([batch, 1, 1, time, time])
}
