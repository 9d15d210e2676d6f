//! The gradients of the f64 model, by hand: quantisers let gradients straight through.

use std::collections::HashMap;

use bitnet_format::HiddenAct;

use super::agreement::LossAndGradients;
use super::reference::{Pass, Row, dot, layer_name, sum};

/// A position whose next token counts in the loss.
pub(crate) struct Target {
    pub(crate) row: usize,
    pub(crate) position: usize,
    pub(crate) token: i32,
    /// What one nat of `-log p` adds to the loss.
    pub(crate) weight: f64,
}

impl Target {
    /// Every token of rows `[B, width]` but the first whose label is not negative; a mean weighs
    /// each by one over their number.
    pub(crate) fn next_tokens(labels: &[i32], width: usize, mean: bool) -> Vec<Self> {
        let mut targets = Vec::new();
        for (row, labels) in labels.chunks(width).enumerate() {
            let trained = labels[1..].iter().enumerate().filter(|(_, label)| **label >= 0);
            targets.extend(trained.map(|(position, &token)| Self {
                row,
                position,
                token,
                weight: 1.0,
            }));
        }
        let weight = if mean { 1.0 / targets.len() as f64 } else { 1.0 };
        for target in &mut targets {
            target.weight = weight;
        }
        targets
    }
}

type Gradients = HashMap<String, Vec<f64>>;

impl Pass<'_> {
    fn probabilities(&self, target: &Target) -> (Vec<f64>, f64) {
        let vocab = self.model.spec.vocab_size;
        let logits = &self.rows[target.row].logits[target.position * vocab..][..vocab];
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
        let total: f64 = powers.iter().sum();
        let log_prob = logits[target.token as usize] - most - total.ln();
        (powers.iter().map(|p| p / total).collect(), log_prob)
    }

    pub(crate) fn log_prob(&self, target: &Target) -> f64 {
        self.probabilities(target).1
    }

    /// The loss, the sum of weight times `-log p`.
    pub(crate) fn loss(&self, targets: &[Target]) -> f64 {
        targets.iter().map(|target| -target.weight * self.log_prob(target)).sum()
    }

    /// Loss and gradients, in the order of these parameters.
    pub(crate) fn loss_and_gradients(
        &self,
        targets: &[Target],
        names: &[String],
    ) -> LossAndGradients {
        let all = self.gradients(targets);
        let narrow = |name| all[name].iter().map(|&value| value as f32).collect();
        LossAndGradients { loss: self.loss(targets), gradients: names.iter().map(narrow).collect() }
    }

    /// Its gradient with respect to every weight.
    pub(crate) fn gradients(&self, targets: &[Target]) -> Gradients {
        let mut gradients = Gradients::new();
        let names = ["model.embed_tokens.weight", self.model.head().0];
        for name in names {
            gradients.insert(name.to_owned(), vec![0.0; self.model.weight(name).len()]);
        }
        for (index, row) in self.rows.iter().enumerate() {
            let mut d_logits = vec![0.0; row.logits.len()];
            for target in targets.iter().filter(|target| target.row == index) {
                let (probabilities, _) = self.probabilities(target);
                let at = target.position * probabilities.len();
                for (d, p) in d_logits[at..].iter_mut().zip(&probabilities) {
                    *d += target.weight * p;
                }
                d_logits[at + target.token as usize] -= target.weight;
            }
            self.row_backward(row, &d_logits, &mut gradients);
        }
        gradients
    }

    fn row_backward(&self, row: &Row, d_logits: &[f64], gradients: &mut Gradients) {
        let width = self.model.spec.hidden_size;
        let (head, weight) = self.model.head();
        let d_hidden = product_backward(d_logits, &row.hidden, weight, head, width, gradients);
        let mut dx = self.norm_backward(&row.last, &d_hidden, "model.norm.weight", gradients);
        for layer in (0..row.layers.len()).rev() {
            dx = self.layer_backward(row, layer, &dx, gradients);
        }
        let table = gradients.get_mut("model.embed_tokens.weight").unwrap();
        for (&token, dx) in row.tokens.iter().zip(dx.chunks(width)) {
            let entry = &mut table[token as usize * width..][..width];
            entry.iter_mut().zip(dx).for_each(|(to, d)| *to += d);
        }
    }

    fn layer_backward(&self, row: &Row, n: usize, dx: &[f64], to: &mut Gradients) -> Vec<f64> {
        let (layer, time) = (&row.layers[n], row.tokens.len());
        let linear = |d: &[f64], x: &[f64], part: &str, to: &mut Gradients| {
            let name = layer_name(n, part);
            product_backward(d, x, &self.linears[&name], &name, x.len() / time, to)
        };
        let d_gated = linear(dx, &layer.down_in, "mlp.down_proj", to);
        let norm = layer_name(n, "mlp.ffn_sub_norm");
        let d_gated = self.norm_backward(&layer.gated, &d_gated, &norm, to);
        let (d_gate, d_up) = self.gated_backward(&layer.gate, &layer.up, &d_gated);
        let d_mlp = sum(
            &linear(&d_gate, &layer.mlp_in, "mlp.gate_proj", to),
            &linear(&d_up, &layer.mlp_in, "mlp.up_proj", to),
        );
        let norm = layer_name(n, "post_attention_layernorm");
        let dx = sum(dx, &self.norm_backward(&layer.middle, &d_mlp, &norm, to));
        let d_mixed = linear(&dx, &layer.o_in, "self_attn.o_proj", to);
        let norm = layer_name(n, "self_attn.attn_sub_norm");
        let d_mixed = self.norm_backward(&layer.mixed, &d_mixed, &norm, to);
        let [dq, dk, dv] = self.attention_backward(row, n, &d_mixed);
        let (dq, dk) = (self.rotated(&dq, time, -1.0), self.rotated(&dk, time, -1.0));
        let d_qkv = sum(
            &linear(&dq, &layer.qkv_in, "self_attn.q_proj", to),
            &linear(&dk, &layer.qkv_in, "self_attn.k_proj", to),
        );
        let d_qkv = sum(&d_qkv, &linear(&dv, &layer.qkv_in, "self_attn.v_proj", to));
        sum(&dx, &self.norm_backward(&layer.x, &d_qkv, &layer_name(n, "input_layernorm"), to))
    }

    fn norm_backward(&self, x: &[f64], dy: &[f64], name: &str, to: &mut Gradients) -> Vec<f64> {
        let Some(gain) = self.model.gain(name) else { return dy.to_vec() };
        let d_gain = to.entry(name.to_owned()).or_insert_with(|| vec![0.0; gain.len()]);
        let mut dx = Vec::new();
        for (x, dy) in x.chunks(gain.len()).zip(dy.chunks(gain.len())) {
            let mean = dot(x, x) / x.len() as f64;
            let inverse = 1.0 / (mean + self.model.spec.rms_norm_eps).sqrt();
            let scaled: Vec<f64> = dy.iter().zip(gain).map(|(d, g)| d * g).collect();
            let along = dot(&scaled, x) * inverse * inverse / x.len() as f64;
            for i in 0..x.len() {
                d_gain[i] += dy[i] * x[i] * inverse;
                dx.push(inverse * (scaled[i] - x[i] * along));
            }
        }
        dx
    }

    fn gated_backward(&self, gate: &[f64], up: &[f64], d: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let act = |g: f64| match self.model.spec.hidden_act {
            HiddenAct::Relu2 => (g.max(0.0).powi(2), 2.0 * g.max(0.0)),
            HiddenAct::Silu => {
                let sigmoid = 1.0 / (1.0 + (-g).exp());
                (g * sigmoid, sigmoid * (1.0 + g * (1.0 - sigmoid)))
            }
        };
        let all = gate.iter().zip(up).zip(d);
        all.map(|((&g, u), d)| (d * u * act(g).1, d * act(g).0)).unzip()
    }

    /// Gradients of queries, keys and values after rotation.
    fn attention_backward(&self, row: &Row, n: usize, d: &[f64]) -> [Vec<f64>; 3] {
        let (layer, time, spec) = (&row.layers[n], row.tokens.len(), &self.model.spec);
        let (heads, kv, width) =
            (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim);
        let mut out = [&layer.q, &layer.k, &layer.v].map(|x| vec![0.0; x.len()]);
        for (at, row) in layer.attention.chunks(time).enumerate() {
            let (head, now) = (at / time, at % time);
            let query = (now * heads + head) * width;
            let past_at = |past: usize| (past * kv + head / (heads / kv)) * width;
            let d = &d[query..][..width];
            let d_row: Vec<f64> =
                (0..=now).map(|past| dot(d, &layer.v[past_at(past)..][..width])).collect();
            let along = dot(&d_row, row);
            for (past, (p, d_p)) in row.iter().zip(&d_row).enumerate() {
                let score = p * (d_p - along) / (width as f64).sqrt();
                for i in 0..width {
                    out[0][query + i] += score * layer.k[past_at(past) + i];
                    out[1][past_at(past) + i] += score * layer.q[query + i];
                    out[2][past_at(past) + i] += p * d[i];
                }
            }
        }
        out
    }
}

/// `dy [N, out]` of `y = x · wᵀ`: adds `dyᵀ · x` to the gradient of `name`, returns `dy · w`.
fn product_backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    name: &str,
    width: usize,
    to: &mut Gradients,
) -> Vec<f64> {
    let dw = to.entry(name.to_owned()).or_insert_with(|| vec![0.0; w.len()]);
    let mut dx = vec![0.0; x.len()];
    let rows = dy.chunks(w.len() / width).zip(x.chunks(width)).zip(dx.chunks_mut(width));
    for ((dy, x), dx) in rows {
        for ((d, w), dw) in dy.iter().zip(w.chunks(width)).zip(dw.chunks_mut(width)) {
            for i in 0..width {
                dx[i] += d * w[i];
                dw[i] += d * x[i];
            }
        }
    }
    dx
}
