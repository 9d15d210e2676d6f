//! The operations of this room in plain tensor operations, on any backend: what the `flex` ones are
//! compared with, and what computes where there are none of our own. Burn's autodiff makes the
//! gradients. Nothing here waits for a number of a device whose memory is not the host's.

use std::sync::{Arc, OnceLock};

use bitnet_format::HiddenAct;
use bitnet_format::quant::{SCALE_EPS, WeightScale};
use bitnet_kernels::Operands;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation};

use crate::device;
use crate::ops::{AttentionShape, Targets, Update};

/// Tokens whose logits exist at the same time.
const LOGIT_TOKENS: usize = 1024;
/// The score of what may not be seen: its weight is exactly 0. Shaders need not know infinities.
const NEVER: f32 = -1e30;

/// `RMSNorm` over the last dimension: `x [B, T, C]`, `gain [C]` → `[B, T, C]`
pub fn rms_norm(x: Tensor<3>, gain: Tensor<1>, eps: f32) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    let inverse = mean_square.add_scalar(eps).sqrt().recip();
    x * inverse * gain.unsqueeze()
}

/// Quantised linear layers over latents with one input: `x [B, T, in]`, matrices `[outᵢ, in]` →
/// `[B, T, Σ outᵢ]`. Activations are quantised once and one product makes all outputs.
///
/// With bf16 operands the codes are exact still, but a backend gives the product back in bf16 too.
pub fn bit_linear<const N: usize>(
    x: Tensor<3>,
    latents: [Tensor<2>; N],
    operands: Operands,
) -> Tensor<3> {
    let (levels, scale) = activations(&x);
    let matrices = latents.map(ternary);
    let of_rows =
        |(codes, scale): &(Tensor<2>, Tensor<2>)| scale.clone().expand([1, codes.dims()[0]]);
    let weights = Tensor::cat(matrices.iter().map(of_rows).collect(), 1); // [1, Σ out]
    let codes = Tensor::cat(matrices.map(|(codes, _)| codes).into(), 0);
    let sums = product(levels, codes.transpose().unsqueeze(), operands);
    // The order of `ActivationScale::rescale`: times the weight scale, then over the token's.
    sums * weights.unsqueeze() / scale
}

/// A quantised linear layer over given codes `[out, in]`.
pub fn frozen_linear(x: Tensor<3>, codes: Tensor<2>, weight: WeightScale) -> Tensor<3> {
    let (levels, scale) = activations(&x);
    let sums = levels.matmul(codes.transpose().unsqueeze());
    sums.mul_scalar(weight.multiplier()).div(scale)
}

/// The same layer in transformers' order: dequantise both sides, then multiply floats. It exists
/// to be compared with programs that work so; its products round where ours are exact.
pub fn dequantised_linear(x: Tensor<3>, latents: Tensor<2>) -> Tensor<3> {
    let (levels, scale) = activations(&x);
    let rounded = levels.detach() / scale;
    let x = rounded + (x.clone() - x.detach());
    let (codes, weight) = ternary(latents.clone());
    let dequantised = codes.detach() / weight.recip();
    let latents = dequantised + (latents.clone() - latents.detach());
    x.matmul(latents.transpose().unsqueeze())
}

/// 8-bit levels of activations `[B, T, C]` that carry their gradient, and their scales `[B, T, 1]`.
pub fn activations(x: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let values = x.clone().detach();
    let scale = values.clone().abs().max_dim(2).clamp_min(SCALE_EPS).recip().mul_scalar(127.0);
    let levels = (values * scale.clone()).round().clamp(-128.0, 127.0);
    (straight_through(levels, x, &scale), scale)
}

/// Ternary codes of latents `[out, in]` that carry their gradient, and their scale `[1, 1]`.
pub fn ternary(latents: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let values = latents.clone().detach();
    let scale = absmean(&values);
    let inverse = scale.clone().recip();
    let codes = (values * inverse.clone()).round().clamp(-1.0, 1.0);
    (straight_through(codes, &latents, &inverse), scale)
}

/// The scale of latents, `[1, 1]`: by the definition where the host can look at them; elsewhere the
/// device sums in f32 and in its own order, since a number that went to the host and back would
/// keep it waiting.
fn absmean(latents: &Tensor<2>) -> Tensor<2> {
    let device = latents.device();
    if !device::shares_memory(&device) {
        return latents.clone().abs().mean_dim(1).mean_dim(0).clamp_min(SCALE_EPS);
    }
    let data = latents.clone().inner().into_data();
    let scale = WeightScale::of_latents(data.as_slice().expect("latents are f32"));
    Tensor::from_floats([[scale.multiplier()]], &device)
}

/// A float product whose operands are rounded first where that is asked for.
fn product<const D: usize>(left: Tensor<D>, right: Tensor<D>, operands: Operands) -> Tensor<D> {
    match operands {
        Operands::F32 => left.matmul(right),
        Operands::Bf16 => {
            let [left, right] = [left, right].map(|tensor| tensor.cast(FloatDType::BF16));
            left.matmul(right).cast(FloatDType::F32)
        }
    }
}

/// `codes`, with the gradient of `x · scale`: what is added is exactly zero.
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
pub fn attention(qkv: Tensor<3>, shape: &AttentionShape, operands: Operands) -> Tensor<3> {
    let AttentionShape { batch, time, heads, key_heads, width, .. } = *shape;
    let (group, sight) = (shape.group(), shape.sight.on(shape, &qkv.device()));
    let split = |first: usize, count: usize| {
        let part = qkv.clone().narrow(2, first * width, count * width);
        part.reshape([batch, time, count, width]).swap_dims(1, 2)
    };
    let q = sight.turned(split(0, heads)).mul_scalar(1.0 / (width as f32).sqrt());
    let k = sight.turned(split(heads, key_heads));
    let v = split(heads + key_heads, key_heads);
    let q = q.reshape([batch, key_heads, group * time, width]);
    let scores = product(q, k.swap_dims(2, 3), operands); // [B, KV, G·T, T]
    let scores = scores.reshape([batch, key_heads, group, time, time]);
    let mask = sight.forbidden.clone().expand([batch, key_heads, group, time, time]);
    let weights = activation::softmax(scores.mask_fill(mask, NEVER), 4);
    let weights = weights.reshape([batch, key_heads, group * time, time]);
    let mixed = product(weights, v, operands).reshape([batch, heads, time, width]).swap_dims(1, 2);
    mixed.reshape([batch, time, heads * width])
}

/// What tokens see and how they are turned, as tensors: made by the first layer of a forward pass
/// and used by all.
#[derive(Clone, Debug, Default)]
pub struct LazySight(Arc<OnceLock<Sight>>);

/// The tensors of a [`LazySight`].
#[derive(Debug)]
struct Sight {
    /// `[B, 1, T, D/2]`
    cosines: Tensor<4>,
    /// `[B, 1, T, D/2]`
    sines: Tensor<4>,
    /// True where attention is forbidden: the future, and other documents. `[B, 1, 1, T, T]`
    forbidden: Tensor<5, Bool>,
}

impl LazySight {
    fn on(&self, shape: &AttentionShape, device: &Device) -> &Sight {
        self.0.get_or_init(|| Sight::new(shape, &device.clone().inner()))
    }
}

impl Sight {
    fn new(shape: &AttentionShape, device: &Device) -> Self {
        let dims = [shape.batch, 1, shape.time, shape.width / 2];
        let turn =
            |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), dims), device);
        let (cosines, sines) = (turn(&shape.cosines), turn(&shape.sines));
        Self { cosines, sines, forbidden: forbidden(shape, device) }
    }

    /// Heads `[B, N, T, D]` turned by their positions, element `j` with element `j + D/2`.
    fn turned(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cosines, sines) = (self.cosines.clone(), self.sines.clone());
        let low = first.clone() * cosines.clone() - second.clone() * sines.clone();
        let high = second * cosines + first * sines;
        Tensor::cat(vec![low, high], 3)
    }
}

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

/// Next-token loss: `hidden [B, T, C]`, `head [V, C]` → `Σ weight · -log p(target)`, `[1]`
///
/// Both gradients are made on the way forward, some tokens at a time, so that logits are never kept;
/// they join the graph as factors of differences that are exactly zero.
pub fn cross_entropy(
    hidden: Tensor<3>,
    head: Tensor<2>,
    targets: &Targets,
    operands: Operands,
) -> Tensor<1> {
    let [batch, time, width] = hidden.dims();
    let hidden = hidden.reshape([batch * time, width]);
    let device = hidden.device();
    let (tokens, frozen) = (hidden.clone().detach(), head.clone().detach());
    let mut sum = Tensor::<1>::zeros([1], &device);
    let mut head_gradient = frozen.zeros_like();
    let mut hidden_gradients = Vec::new();
    for first in (0..batch * time).step_by(LOGIT_TOKENS) {
        let count = LOGIT_TOKENS.min(batch * time - first);
        let part = tokens.clone().narrow(0, first, count);
        // A product that came back in bf16 would cost a logit more than its operands' rounding.
        let logits = part.clone().matmul(frozen.clone().transpose());
        let chosen = Chosen::new(targets, first..first + count, &device);
        let log_probs = activation::log_softmax(logits, 1);
        sum = sum + chosen.loss(&log_probs);
        let error = chosen.error(log_probs); // [count, V]
        hidden_gradients.push(product(error.clone(), frozen.clone(), operands));
        head_gradient = head_gradient + product(error.transpose(), part, operands);
    }
    let along = |x: Tensor<2>, gradient: Tensor<2>| ((x.clone() - x.detach()) * gradient).sum();
    sum + along(hidden, Tensor::cat(hidden_gradients, 0)) + along(head, head_gradient)
}

/// The targets of some tokens, on the device.
struct Chosen {
    /// `[tokens, 1]`
    ids: Tensor<2, Int>,
    /// `[tokens, 1]`
    weights: Tensor<2>,
}

impl Chosen {
    fn new(targets: &Targets, tokens: std::ops::Range<usize>, device: &Device) -> Self {
        let shape = [tokens.len(), 1];
        let ids = TensorData::new(targets.ids[tokens.clone()].to_vec(), shape);
        let weights = TensorData::new(targets.weights[tokens].to_vec(), shape);
        Self { ids: Tensor::from_data(ids, device), weights: Tensor::from_data(weights, device) }
    }

    /// The weighted sum of the losses, `[1]`.
    fn loss(&self, log_probs: &Tensor<2>) -> Tensor<1> {
        (log_probs.clone().gather(1, self.ids.clone()) * self.weights.clone()).sum().neg()
    }

    /// Its gradient with respect to the logits: `weight · (p - 1 at the target)`.
    fn error(self, log_probs: Tensor<2>) -> Tensor<2> {
        let [_, vocab] = log_probs.dims();
        let entries = Tensor::<1, Int>::arange(0..vocab as i64, &self.ids.device());
        let hit = self.ids.equal(entries.unsqueeze());
        (log_probs.exp() - hit.float()) * self.weights
    }
}

/// One update of a parameter in the order of `torch.optim.AdamW`: value, gradient and moments
/// `[elements]` → new value and moments.
pub fn adamw([value, gradient, first, second]: [Tensor<1>; 4], update: Update) -> [Tensor<1>; 3] {
    let Update { gradient: factor, beta1, beta2, eps, keep, step, root } = update;
    let gradient = gradient.mul_scalar(factor);
    let first = first.clone() + (gradient.clone() - first).mul_scalar(1.0 - beta1);
    let second = second.mul_scalar(beta2) + gradient.clone().mul_scalar(1.0 - beta2) * gradient;
    let size = second.clone().sqrt().div_scalar(root).add_scalar(eps);
    let value = value.mul_scalar(keep) - first.clone().mul_scalar(step) / size;
    [value, first, second]
}
