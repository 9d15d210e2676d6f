//! How close a forward pass comes to a rounding boundary, computed in f64 by an implementation that
//! shares no code with the library.
//!
//! Two correct f32 implementations differ in the last bits. Where an activation is that close to the
//! middle between two codes they choose different ones, and the loss moves by about 1e-3. So a
//! trajectory may leave torch's only after a step for which this file finds such a value.

use std::collections::HashMap;

use bitnet_format::quant::WeightScale;
use bitnet_format::{HiddenAct, ModelSpec};

/// The smallest distance of any activation or weight of this forward pass from a rounding boundary,
/// in units of the codes. `rows [B, T]`.
pub(crate) fn smallest_margin(
    spec: &ModelSpec,
    weights: &HashMap<String, Vec<f32>>,
    rows: &[i32],
    time: usize,
) -> f64 {
    let mut pass = ReferencePass { spec, weights, time, margin: f64::INFINITY };
    for row in rows.chunks(time) {
        pass.forward(row);
    }
    pass.margin
}

struct ReferencePass<'a> {
    spec: &'a ModelSpec,
    weights: &'a HashMap<String, Vec<f32>>,
    time: usize,
    margin: f64,
}

impl ReferencePass<'_> {
    fn forward(&mut self, tokens: &[i32]) {
        let width = self.spec.hidden_size;
        let table = &self.weights["model.embed_tokens.weight"];
        let mut x: Vec<f64> = Vec::new();
        for &token in tokens {
            x.extend(table[token as usize * width..][..width].iter().map(|&v| f64::from(v)));
        }
        for layer in 0..self.spec.num_hidden_layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let h = self.norm(&x, &at("input_layernorm"));
            let q = self.linear(&h, &at("self_attn.q_proj"));
            let k = self.linear(&h, &at("self_attn.k_proj"));
            let v = self.linear(&h, &at("self_attn.v_proj"));
            let mixed = self.norm(&self.attend(&q, &k, &v), &at("self_attn.attn_sub_norm"));
            add(&mut x, &self.linear(&mixed, &at("self_attn.o_proj")));
            let h = self.norm(&x, &at("post_attention_layernorm"));
            let gate = self.linear(&h, &at("mlp.gate_proj"));
            let up = self.linear(&h, &at("mlp.up_proj"));
            let act = |g: f64| match self.spec.hidden_act {
                HiddenAct::Relu2 => g.max(0.0).powi(2),
                HiddenAct::Silu => g / (1.0 + (-g).exp()),
            };
            let gated: Vec<f64> = gate.iter().zip(&up).map(|(&g, u)| act(g) * u).collect();
            let gated = self.norm(&gated, &at("mlp.ffn_sub_norm"));
            add(&mut x, &self.linear(&gated, &at("mlp.down_proj")));
        }
    }

    /// Identity where the model has no such norm.
    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let Some(gain) = self.weights.get(name) else { return x.to_vec() };
        let row = |row: &[f64]| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let inverse = 1.0 / (mean + self.spec.rms_norm_eps).sqrt();
            row.iter().zip(gain).map(|(v, g)| v * inverse * f64::from(*g)).collect::<Vec<_>>()
        };
        x.chunks(gain.len()).flat_map(row).collect()
    }

    fn linear(&mut self, x: &[f64], name: &str) -> Vec<f64> {
        let latents = &self.weights[name];
        let scale = WeightScale::of_latents(latents);
        let codes: Vec<f64> = latents
            .iter()
            .map(|w| self.round(f64::from(*w) * f64::from(scale.inverse())).clamp(-1.0, 1.0))
            .collect();
        let width = x.len() / self.time;
        let mut out = Vec::new();
        for row in x.chunks(width) {
            let a = 127.0 / row.iter().fold(1e-5, |max: f64, v| max.max(v.abs()));
            let activations: Vec<f64> = row.iter().map(|v| self.round(v * a)).collect();
            for code_row in codes.chunks(width) {
                let dot: f64 = activations.iter().zip(code_row).map(|(q, t)| q * t).sum();
                out.push(dot * f64::from(scale.multiplier()) / a);
            }
        }
        out
    }

    fn round(&mut self, value: f64) -> f64 {
        // Counts boundaries beyond the outermost code too, which only makes the margin smaller.
        self.margin = self.margin.min((value - value.floor() - 0.5).abs());
        value.round_ties_even()
    }

    fn attend(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let (heads, kv, width) =
            (self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.head_dim);
        let mut out = vec![0.0; q.len()];
        for head in 0..heads {
            let shared = head / (heads / kv);
            for now in 0..self.time {
                let query = self.rotated(&q[(now * heads + head) * width..][..width], now);
                let scores: Vec<f64> = (0..=now)
                    .map(|past| {
                        let key = self.rotated(&k[(past * kv + shared) * width..][..width], past);
                        let dot: f64 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                        (dot / (width as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                for (past, score) in scores.iter().enumerate() {
                    let value = &v[(past * kv + shared) * width..][..width];
                    let out = &mut out[(now * heads + head) * width..][..width];
                    for (out, v) in out.iter_mut().zip(value) {
                        *out += score / total * v;
                    }
                }
            }
        }
        out
    }

    fn rotated(&self, x: &[f64], position: usize) -> Vec<f64> {
        let half = x.len() / 2;
        let mut out = vec![0.0; x.len()];
        for j in 0..half {
            let frequency = self.spec.rope_theta.powf(-2.0 * j as f64 / x.len() as f64);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            out[j] = x[j] * cos - x[j + half] * sin;
            out[j + half] = x[j + half] * cos + x[j] * sin;
        }
        out
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
