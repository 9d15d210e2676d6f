//! The model in f64, written without the library: what a forward pass may give.
//!
//! Two correct f32 implementations differ in the last bits. Where a value lies that close to the
//! middle between two codes (a near-tie), they may choose different ones, and a logit moves by about
//! 1e-3. [`Reference::passes`] therefore gives one pass for every choice at the near-ties; a correct
//! implementation agrees with one of them.

use std::collections::HashMap;

use bitnet_format::{HiddenAct, ModelSpec};

/// 127 levels times the 4e-7 by which two f32 forward passes differ (`golden_hidden_states…`).
pub(crate) const NEAR_TIE: f64 = 5e-5;
/// The same for weights, whose f32 scales differ by two units in the last place.
const NEAR_TIE_OF_A_WEIGHT: f64 = 5e-7;
/// Passes tried before the search gives up: some batches have twelve near-ties.
const MOST_PASSES: usize = 500;

/// A model's weights, and how far a weight of another implementation may be from ours.
pub(crate) struct Reference {
    pub(crate) spec: ModelSpec,
    weights: HashMap<String, Vec<f64>>,
    errors: HashMap<String, Vec<f64>>,
}

impl Reference {
    pub(crate) fn new(spec: ModelSpec, weights: HashMap<String, Vec<f64>>) -> Self {
        Self { spec, weights, errors: HashMap::new() }
    }

    /// With an error bound for every element of the named weights.
    pub(crate) fn with_errors(self, errors: HashMap<String, Vec<f64>>) -> Self {
        Self { errors, ..self }
    }

    /// A pass over these `rows` for every choice at the near-ties, the most likely first: the one that
    /// rounds to the nearest, then those with other choices where it is nearest to the middle.
    pub(crate) fn passes(&self, rows: &[Vec<i32>]) -> impl Iterator<Item = Pass<'_>> {
        let mut plans = vec![Plan::default()];
        let once = move || {
            let cheapest = plans.iter().enumerate().min_by(|a, b| a.1.cost.total_cmp(&b.1.cost));
            let plan = plans.swap_remove(cheapest?.0);
            let (pass, distances) = self.pass(rows, &plan.choices);
            for (other, distance) in distances.iter().enumerate().skip(plan.choices.len()) {
                plans.push(plan.with_another(other, *distance));
            }
            Some(pass)
        };
        std::iter::from_fn(once).take(MOST_PASSES)
    }

    /// The pass of this plan, and the distances of the near-ties it met.
    fn pass(&self, rows: &[Vec<i32>], plan: &[bool]) -> (Pass<'_>, Vec<f64>) {
        let mut rounding = Rounding { plan, distances: Vec::new() };
        let mut linears = HashMap::new();
        let mut names: Vec<_> = self.weights.keys().filter(|name| name.contains("_proj")).collect();
        names.sort();
        for name in names {
            linears.insert(name.clone(), self.dequantised(name, &mut rounding));
        }
        let mut pass = Pass { model: self, linears, rows: Vec::new(), flips: 0 };
        for row in rows {
            pass.rows.push(pass.forward(row, &mut rounding));
        }
        pass.flips = plan.iter().filter(|&&other| other).count();
        (pass, rounding.distances)
    }

    fn dequantised(&self, name: &str, rounding: &mut Rounding) -> Vec<f64> {
        let latents = &self.weights[name];
        let sum: f64 = latents.iter().map(|w| w.abs()).sum();
        let mean = (sum / latents.len() as f64).max(1e-5);
        let error = |i: usize| self.errors.get(name).map_or(0.0, |errors| errors[i] / mean);
        let code = |(i, w): (usize, &f64)| {
            // Beyond the outermost code the next boundary does not matter.
            let level = (w / mean).clamp(-1.0, 1.0);
            mean * rounding.round(level, NEAR_TIE_OF_A_WEIGHT + error(i))
        };
        latents.iter().enumerate().map(code).collect()
    }

    pub(crate) fn weight(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    /// The gain of a norm; some models have no sub-norms.
    pub(crate) fn gain(&self, name: &str) -> Option<&[f64]> {
        self.weights.get(name).map(Vec::as_slice)
    }

    pub(crate) fn head(&self) -> (&'static str, &[f64]) {
        let tied = self.spec.tie_word_embeddings;
        let name = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        (name, &self.weights[name])
    }
}

/// What to do at the near-ties of a pass.
#[derive(Default)]
struct Plan {
    /// Whether to take the farther neighbour at the n-th near-tie; `false` beyond the end.
    choices: Vec<bool>,
    /// How unlikely: the number of those where it does, and their distances.
    cost: f64,
}

impl Plan {
    /// This plan with the farther neighbour at one more near-tie, after all of its choices.
    fn with_another(&self, at: usize, distance: f64) -> Self {
        let mut choices = self.choices.clone();
        choices.resize(at, false);
        choices.push(true);
        Self { choices, cost: self.cost + 0.5 + distance }
    }
}

/// Rounds, and at the near-ties it meets takes the choices of a plan.
struct Rounding<'a> {
    plan: &'a [bool],
    /// How far each near-tie met so far is from the middle, as a part of what is near.
    distances: Vec<f64>,
}

impl Rounding<'_> {
    fn round(&mut self, value: f64, near: f64) -> f64 {
        let nearest = value.round_ties_even();
        let distance = (0.5 - (value - nearest).abs()) / near;
        if distance >= 1.0 {
            return nearest;
        }
        let other = self.plan.get(self.distances.len()) == Some(&true);
        self.distances.push(distance);
        if other { nearest + (value - nearest).signum() } else { nearest }
    }
}

/// One pass over some rows, with what its backward pass needs.
pub(crate) struct Pass<'a> {
    pub(crate) model: &'a Reference,
    /// The dequantised ternary matrices `[out, in]`.
    pub(crate) linears: HashMap<String, Vec<f64>>,
    pub(crate) rows: Vec<Row>,
    /// Near-ties at which this pass takes the farther neighbour.
    pub(crate) flips: usize,
}

/// What one row `[T]` went through; everything is `[T, width]`.
pub(crate) struct Row {
    pub(crate) tokens: Vec<i32>,
    pub(crate) layers: Vec<Layer>,
    /// Before and after the last norm.
    pub(crate) last: Vec<f64>,
    pub(crate) hidden: Vec<f64>,
    pub(crate) logits: Vec<f64>,
}

/// The values of one layer; `*_in` are 8-bit activations, dequantised.
pub(crate) struct Layer {
    pub(crate) x: Vec<f64>,
    pub(crate) qkv_in: Vec<f64>,
    pub(crate) q: Vec<f64>,
    pub(crate) k: Vec<f64>,
    pub(crate) v: Vec<f64>,
    /// Probabilities `[heads, T, T]`.
    pub(crate) attention: Vec<f64>,
    pub(crate) mixed: Vec<f64>,
    pub(crate) o_in: Vec<f64>,
    pub(crate) middle: Vec<f64>,
    pub(crate) mlp_in: Vec<f64>,
    pub(crate) gate: Vec<f64>,
    pub(crate) up: Vec<f64>,
    pub(crate) gated: Vec<f64>,
    pub(crate) down_in: Vec<f64>,
}

pub(crate) fn layer_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

impl Pass<'_> {
    fn forward(&self, tokens: &[i32], rounding: &mut Rounding) -> Row {
        let width = self.model.spec.hidden_size;
        let table = self.model.weight("model.embed_tokens.weight");
        let embedded = tokens.iter().flat_map(|&token| &table[token as usize * width..][..width]);
        let mut x: Vec<f64> = embedded.copied().collect();
        let mut layers = Vec::new();
        for layer in 0..self.model.spec.num_hidden_layers {
            let (made, next) = self.layer(layer, x, tokens.len(), rounding);
            layers.push(made);
            x = next;
        }
        let hidden = self.norm(&x, "model.norm.weight");
        let logits = product(&hidden, self.model.head().1, width);
        Row { tokens: tokens.to_vec(), layers, last: x, hidden, logits }
    }

    fn layer(&self, n: usize, x: Vec<f64>, time: usize, r: &mut Rounding) -> (Layer, Vec<f64>) {
        let qkv_in = quantised(&self.norm(&x, &layer_name(n, "input_layernorm")), time, r);
        let q = self.rotated(&self.linear(&qkv_in, n, "self_attn.q_proj", time), time, 1.0);
        let k = self.rotated(&self.linear(&qkv_in, n, "self_attn.k_proj", time), time, 1.0);
        let v = self.linear(&qkv_in, n, "self_attn.v_proj", time);
        let attention = self.attention(&q, &k, time);
        let mixed = self.mix(&attention, &v, time);
        let o_in =
            quantised(&self.norm(&mixed, &layer_name(n, "self_attn.attn_sub_norm")), time, r);
        let middle = sum(&x, &self.linear(&o_in, n, "self_attn.o_proj", time));
        let norm = layer_name(n, "post_attention_layernorm");
        let mlp_in = quantised(&self.norm(&middle, &norm), time, r);
        let gate = self.linear(&mlp_in, n, "mlp.gate_proj", time);
        let up = self.linear(&mlp_in, n, "mlp.up_proj", time);
        let act = |g: f64| match self.model.spec.hidden_act {
            HiddenAct::Relu2 => g.max(0.0).powi(2),
            HiddenAct::Silu => g / (1.0 + (-g).exp()),
        };
        let gated: Vec<f64> = gate.iter().zip(&up).map(|(&g, u)| act(g) * u).collect();
        let down_in = quantised(&self.norm(&gated, &layer_name(n, "mlp.ffn_sub_norm")), time, r);
        let next = sum(&middle, &self.linear(&down_in, n, "mlp.down_proj", time));
        let layer = Layer {
            x,
            qkv_in,
            q,
            k,
            v,
            attention,
            mixed,
            o_in,
            middle,
            mlp_in,
            gate,
            up,
            gated,
            down_in,
        };
        (layer, next)
    }

    /// Identity where the model has no such norm.
    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let Some(gain) = self.model.gain(name) else { return x.to_vec() };
        let row = |row: &[f64]| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let inverse = 1.0 / (mean + self.model.spec.rms_norm_eps).sqrt();
            row.iter().zip(gain).map(|(v, g)| v * inverse * g).collect::<Vec<_>>()
        };
        x.chunks(gain.len()).flat_map(row).collect()
    }

    fn linear(&self, x: &[f64], layer: usize, part: &str, time: usize) -> Vec<f64> {
        product(x, &self.linears[&layer_name(layer, part)], x.len() / time)
    }

    fn attention(&self, q: &[f64], k: &[f64], time: usize) -> Vec<f64> {
        let spec = &self.model.spec;
        let (heads, kv, width) =
            (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim);
        let mut out = vec![0.0; heads * time * time];
        for (at, row) in out.chunks_mut(time).enumerate() {
            let (head, now) = (at / time, at % time);
            let query = &q[(now * heads + head) * width..][..width];
            for (past, score) in row[..=now].iter_mut().enumerate() {
                let key = &k[(past * kv + head / (heads / kv)) * width..][..width];
                *score = (dot(query, key) / (width as f64).sqrt()).exp();
            }
            let total: f64 = row.iter().sum();
            for p in row {
                *p /= total;
            }
        }
        out
    }

    fn mix(&self, attention: &[f64], v: &[f64], time: usize) -> Vec<f64> {
        let spec = &self.model.spec;
        let (heads, kv, width) =
            (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim);
        let mut out = vec![0.0; time * heads * width];
        for (at, row) in attention.chunks(time).enumerate() {
            let (head, now) = (at / time, at % time);
            let out = &mut out[(now * heads + head) * width..][..width];
            for (past, p) in row.iter().enumerate() {
                let value = &v[(past * kv + head / (heads / kv)) * width..][..width];
                out.iter_mut().zip(value).for_each(|(out, v)| *out += p * v);
            }
        }
        out
    }

    /// Rotary embedding of `[T, heads, head]`; `direction` -1 turns back.
    pub(crate) fn rotated(&self, x: &[f64], time: usize, direction: f64) -> Vec<f64> {
        let (width, theta) = (self.model.spec.head_dim, self.model.spec.rope_theta);
        let (half, of_position) = (width / 2, x.len() / time);
        let mut out = vec![0.0; x.len()];
        for start in (0..x.len()).step_by(width) {
            let position = (start / of_position) as f64;
            for j in start..start + half {
                let frequency = theta.powf(-2.0 * (j - start) as f64 / width as f64);
                let (sin, cos) = (direction * position * frequency).sin_cos();
                out[j] = x[j] * cos - x[j + half] * sin;
                out[j + half] = x[j + half] * cos + x[j] * sin;
            }
        }
        out
    }
}

/// 8-bit activations of `[T, width]`, dequantised.
fn quantised(x: &[f64], time: usize, rounding: &mut Rounding) -> Vec<f64> {
    let row = |row: &[f64]| {
        let scale = 127.0 / row.iter().fold(1e-5, |max: f64, v| max.max(v.abs()));
        row.iter().map(|v| rounding.round(v * scale, NEAR_TIE) / scale).collect::<Vec<_>>()
    };
    x.chunks(x.len() / time).flat_map(row).collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x [N, width] · wᵀ [out, width]`.
fn product(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    x.chunks(width).flat_map(|row| w.chunks(width).map(move |w| dot(row, w))).collect()
}
