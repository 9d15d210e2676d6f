//! Attention in plain tensor operations, with all scores in memory at once.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

use super::AttentionShape;
use crate::ops::OpBackend;

/// The score of a masked key: its weight is exactly 0. Shaders need not support infinities.
const MASKED: f32 = -1e30;

/// The `G = H / KV` query heads of a group are stacked along time, so that keys and values are
/// never repeated.
pub(super) fn attention(qkv: Tensor<3>, shape: &AttentionShape, backend: OpBackend) -> Tensor<3> {
    let AttentionShape { batch, time, heads, kv_heads, head_dim, .. } = *shape;
    let (group, mask) = (shape.group(), shape.mask.on(shape, &qkv.device()));
    let split = |first: usize, count: usize| {
        let heads = qkv.clone().narrow(2, first * head_dim, count * head_dim);
        heads.reshape([batch, time, count, head_dim]).swap_dims(1, 2)
    };
    let q = mask.rotary(split(0, heads)).mul_scalar(1.0 / (head_dim as f32).sqrt());
    let k = mask.rotary(split(heads, kv_heads));
    let v = split(heads + kv_heads, kv_heads);
    // `[B, H, T, D]` → `[B, KV, G·T, D]`: the heads of a group are neighbours.
    let q = q.reshape([batch, kv_heads, group * time, head_dim]);
    let scores = backend.matmul(q, k.swap_dims(2, 3)); // [B, KV, G·T, T]
    let scores = scores.reshape([batch, kv_heads, group, time, time]);
    let masked = mask.masked.clone().expand([batch, kv_heads, group, time, time]);
    let weights = activation::softmax(scores.mask_fill(masked, MASKED), 4);
    let weights = weights.reshape([batch, kv_heads, group * time, time]);
    let y = backend.matmul(weights, v);
    let y = y.reshape([batch, heads, time, head_dim]).swap_dims(1, 2);
    y.reshape([batch, time, heads * head_dim])
}

/// Mask and rotary tables as tensors. The first layer of a forward pass makes them, the others
/// share them.
#[derive(Clone, Debug, Default)]
pub struct LazyMask(Arc<OnceLock<AttentionMask>>);

/// The tensors of a [`LazyMask`].
#[derive(Debug)]
struct AttentionMask {
    /// `[B, 1, T, D/2]`
    cos: Tensor<4>,
    /// `[B, 1, T, D/2]`
    sin: Tensor<4>,
    /// True for keys in the future or in another document, `[B, 1, 1, T, T]`.
    masked: Tensor<5, Bool>,
}

impl LazyMask {
    fn on(&self, shape: &AttentionShape, device: &Device) -> &AttentionMask {
        // Without autodiff: mask and angles are constants to every graph.
        self.0.get_or_init(|| AttentionMask::new(shape, &device.clone().inner()))
    }
}

impl AttentionMask {
    fn new(shape: &AttentionShape, device: &Device) -> Self {
        let dims = [shape.batch, 1, shape.time, shape.head_dim / 2];
        let table =
            |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), dims), device);
        Self { cos: table(&shape.cos), sin: table(&shape.sin), masked: masked(shape, device) }
    }

    /// Heads `[B, N, T, D]` rotated by their positions: element `j` pairs with element `j + D/2`.
    fn rotary(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let low = first.clone() * cos.clone() - second.clone() * sin.clone();
        let high = second * cos + first * sin;
        Tensor::cat(vec![low, high], 3)
    }
}

fn masked(shape: &AttentionShape, device: &Device) -> Tensor<5, Bool> {
    let (batch, time) = (shape.batch, shape.time);
    let index = Tensor::<1, Int>::arange(0..time as i64, device);
    let key = index.clone().reshape([1, 1, time]);
    let future = key.clone().greater(index.reshape([1, time, 1]));
    let starts = TensorData::new(shape.segment_starts.to_vec(), [batch, time, 1]);
    let before = key.lower(Tensor::<3, Int>::from_data(starts, device));
    let masked = before.bool_or(future.expand([batch, time, time]));
    masked.reshape([batch, 1, 1, time, time])
}
