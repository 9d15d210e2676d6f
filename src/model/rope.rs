//! Rotary positions in half-split pairs: component `j` turns with component `j + D/2`
//! (transformers' `rotate_half`; `bitnet-b158` §1.4).

use bitnet_format::ModelSpec;
use burn::tensor::{Device, Tensor, TensorData};

/// The rotary frequencies of a model.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    /// `theta^(-2j / D)` for `j < D/2`, in f32 as transformers computes them.
    frequencies: Vec<f32>,
}

/// Cosines and sines of the positions of one batch, each `[B, 1, T, D/2]`.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RopeTable {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let width = spec.head_dim as f32;
        let frequency = |j: usize| 1.0 / (spec.rope_theta as f32).powf(2.0 * j as f32 / width);
        Self { frequencies: (0..spec.head_dim / 2).map(frequency).collect() }
    }

    /// The rotation of tokens at `positions [B·T]`; `rows` is `B`, or 1 where all rows agree.
    pub(crate) fn rotation(&self, positions: &[i32], rows: usize, device: &Device) -> Rotation {
        let (time, half) = (positions.len() / rows, self.frequencies.len());
        let turn = |f: fn(f32) -> f32| {
            let angles = positions.iter().flat_map(|&position| {
                self.frequencies.iter().map(move |frequency| f(position as f32 * frequency))
            });
            let data = TensorData::new(angles.collect::<Vec<f32>>(), [rows, 1, time, half]);
            Tensor::from_data(data, device)
        };
        Rotation { cos: turn(f32::cos), sin: turn(f32::sin) }
    }
}

impl Rotation {
    /// `x [B, H, T, D]` → `[B, H, T, D]`
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        let turned = first.clone() * self.cos.clone() - second.clone() * self.sin.clone();
        let other = second * self.cos.clone() + first * self.sin.clone();
        Tensor::cat(vec![turned, other], 3)
    }
}
