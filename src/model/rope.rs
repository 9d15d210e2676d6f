//! Rotary positions in half-split pairs: component `j` turns with component `j + D/2`
//! (transformers' `rotate_half`; `bitnet-b158` §1.4).

use std::sync::Arc;

use bitnet_format::ModelSpec;

/// How many heads a model has, and how fast their components turn.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    /// `theta^(-2j / D)` for `j < D/2`, in f32 as transformers computes them.
    frequencies: Vec<f32>,
    /// Query heads, key heads, width of a head.
    heads: [usize; 3],
}

impl RopeTable {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let width = spec.head_dim as f32;
        let frequency = |j: usize| 1.0 / (spec.rope_theta as f32).powf(2.0 * j as f32 / width);
        let heads = [spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim];
        Self { frequencies: (0..spec.head_dim / 2).map(frequency).collect(), heads }
    }

    /// Query heads, key heads, width of a head.
    pub(crate) fn heads(&self) -> [usize; 3] {
        self.heads
    }

    /// Cosines and sines of tokens at `positions`, each `[positions, D/2]`.
    pub(crate) fn cos_sin(&self, positions: &[i32]) -> (Arc<Vec<f32>>, Arc<Vec<f32>>) {
        let half = self.frequencies.len();
        // Rows repeat positions, so each is computed once.
        let known = positions.iter().max().map_or(0, |&last| last + 1);
        let table = |f: fn(f32) -> f32| {
            let one = |position: i32| self.frequencies.iter().map(move |x| f(position as f32 * x));
            let by_position: Vec<f32> = (0..known).flat_map(one).collect();
            let at = |&position: &i32| &by_position[position as usize * half..][..half];
            Arc::new(positions.iter().flat_map(at).copied().collect())
        };
        (table(f32::cos), table(f32::sin))
    }
}
