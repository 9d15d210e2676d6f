//! Rotary positions in Hugging Face's pairing: element `j` turns with element `j + D/2`
//! (`bitnet-b158.md` §1.4).

use bitnet_format::ModelSpec;

/// Angular speeds `theta^(-2j/D)`, `j = 0 .. D/2`, rounded once to f32.
#[derive(Debug)]
pub(crate) struct Rope(Vec<f32>);

/// Cosine and sine for some positions, each `[T, D/2]`.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let exponent = |j: usize| -2.0 * j as f64 / spec.head_dim as f64;
        Self((0..spec.head_dim / 2).map(|j| spec.rope_theta.powf(exponent(j)) as f32).collect())
    }

    /// Sets `turns` to these positions. The angle is the f32 product of position and speed, as in
    /// training.
    pub(crate) fn turn_to(&self, positions: impl Iterator<Item = usize>, turns: &mut Turns) {
        turns.half = self.0.len();
        turns.cosines.clear();
        turns.sines.clear();
        for at in positions {
            for speed in &self.0 {
                let (sine, cosine) = (at as f32 * speed).sin_cos();
                turns.cosines.push(cosine);
                turns.sines.push(sine);
            }
        }
    }
}

impl Turns {
    /// Turns the heads of one token, `[heads, D]`.
    pub(crate) fn apply(&self, token: usize, heads: &mut [f32]) {
        let here = token * self.half..(token + 1) * self.half;
        let (cosines, sines) = (&self.cosines[here.clone()], &self.sines[here]);
        for head in heads.chunks_exact_mut(2 * self.half) {
            let (low, high) = head.split_at_mut(self.half);
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope() -> Rope {
        let text = "hidden_size = 4\nintermediate_size = 4\nnum_hidden_layers = 1\n\
            num_attention_heads = 1\nnum_key_value_heads = 1\nvocab_size = 4\nrope_theta = 10000.0";
        Rope::new(&toml::from_str(text).unwrap())
    }

    fn turns(positions: std::ops::Range<usize>) -> Turns {
        let mut turns = Turns::default();
        rope().turn_to(positions, &mut turns);
        turns
    }

    #[test]
    fn element_j_turns_with_element_j_plus_half() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        turns(5..8).apply(2, &mut head);
        let (sin, cos) = 7.0f32.sin_cos();
        let (slow_sin, slow_cos) = (7.0f32 * 0.01).sin_cos();
        assert_eq!(head[0], cos - 3.0 * sin);
        assert_eq!(head[2], 3.0 * cos + sin);
        assert_eq!(head[1], 2.0 * slow_cos - 4.0 * slow_sin);
        assert_eq!(head[3], 4.0 * slow_cos + 2.0 * slow_sin);
    }

    #[test]
    fn position_zero_turns_nothing() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        turns(0..1).apply(0, &mut head);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
    }
}
