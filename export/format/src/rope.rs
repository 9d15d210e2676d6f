//! Rotary position embedding (RoPE, arXiv 2104.09864): the one table of angles for training and
//! engine.
//!
//! Half-split pairs, as transformers' `rotate_half`: component `j` of a head rotates with component
//! `j + D/2` by the angle `position · θ^(−2j/D)`. The order of operations is transformers':
//!
//! ```text
//! frequency = 1 / θ^(2j/D)          f32
//! angle     = position · frequency  f32
//! cos, sin  of the angle            f32, as torch computes them on a CPU
//! ```
//!
//! The last bit of an angle counts: at position 4,095 one ulp of it is 2.4e-4 of its cosine, and
//! that can move an activation to another 8-bit code. So frequencies and angles are torch's to the
//! bit. Cosine and sine are correctly rounded, the same on every platform. torch's come from the
//! vector library it was built with (MKL on x86-64, which is not open) and differ in the last bit
//! of one value in twenty.

use std::borrow::Cow;

use crate::ModelSpec;
use crate::rope_scaling::{RopeScaling, RopeShape, unscaled};

/// The angle by which each pair of components rotates from one position to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by; 1 but for `yarn`.
    attention_factor: f32,
    /// Where frequencies depend on the length of a sequence.
    dynamic: Option<(RopeScaling, RopeShape)>,
}

impl RopeFrequencies {
    /// For heads of width `head_dim` and base `theta`.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        let frequencies = unscaled(theta as f32, head_dim);
        Self { frequencies, attention_factor: 1.0, dynamic: None }
    }

    /// The frequencies of a model, scaled as its config says.
    pub fn of(spec: &ModelSpec) -> Self {
        let Some(scaling) = &spec.rope_scaling else {
            return Self::new(spec.rope_theta, spec.head_dim);
        };
        let (theta, head_dim) = (spec.rope_theta, spec.head_dim);
        let shape = RopeShape { theta, head_dim, context: spec.max_position_embeddings };
        let is_dynamic = matches!(scaling, RopeScaling::Dynamic { .. });
        let dynamic = is_dynamic.then(|| (scaling.clone(), shape));
        let (frequencies, attention_factor) = scaling.frequencies(shape, 0);
        Self { frequencies, attention_factor, dynamic }
    }

    /// Whether they depend on the length of a sequence.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic.is_some()
    }

    /// The frequencies of a sequence of `tokens` tokens; they hold for all of its positions.
    ///
    /// As in transformers, a generated token is rotated by the frequencies of the sequence up to
    /// it, and keys that were cached before keep their rotation.
    pub fn for_length(&self, tokens: usize) -> Cow<'_, Self> {
        match &self.dynamic {
            Some((scaling, shape)) if tokens > shape.context => {
                let (frequencies, attention_factor) = scaling.frequencies(*shape, tokens);
                Cow::Owned(Self { frequencies, attention_factor, dynamic: None })
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// The frequencies themselves, `[D/2]`.
    pub fn values(&self) -> &[f32] {
        &self.frequencies
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        self.attention_factor
    }

    /// Number of pairs, `D/2`.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Cosine and sine of each pair's angle at a position, times the attention factor.
    pub fn at(&self, position: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        self.frequencies.iter().map(move |frequency| {
            let (cos, sin) = cos_sin(position as f32 * frequency);
            (cos * self.attention_factor, sin * self.attention_factor)
        })
    }
}

/// Rotates one head `[D]` by the cosines and sines `[D/2]` of its position, or back if `direction`
/// is -1 instead of 1.
#[inline(always)]
#[expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]
pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32], direction: f32) {
    // Component j is paired with j + D/2 (Hugging Face), not with its neighbour (llama.cpp's other
    // form).
    let (low, high) = head.split_at_mut(cosines.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
        let sin = direction * sin;
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

/// Cosine and sine of an f32 angle, correctly rounded: computed in f64 and rounded once.
fn cos_sin(angle: f32) -> (f32, f32) {
    // The error of f64 is far below half an ulp of f32, so every platform rounds to the same value.
    let (sin, cos) = f64::from(angle).sin_cos();
    (cos as f32, sin as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `scripts/rope_table.py`; its first line names the torch and the CPU.
    const TABLE: &str = include_str!("../tests/rope_table.txt");
    const POSITIONS: usize = 32_768;

    fn crc32(bytes: impl IntoIterator<Item = u8>) -> u32 {
        let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        let table: Vec<u32> = (0..256).map(|byte| (0..8).fold(byte, |crc, _| step(crc))).collect();
        let update = |crc: u32, byte| (crc >> 8) ^ table[((crc ^ u32::from(byte)) & 255) as usize];
        !bytes.into_iter().fold(!0, update)
    }

    /// One shape of the table.
    struct Shape {
        theta: f64,
        head_dim: usize,
        frequencies: Vec<u32>,
        /// Checksum of the angles at all positions.
        angles: u32,
        /// Position, cosines and sines.
        rows: Vec<(usize, Vec<u32>, Vec<u32>)>,
    }

    fn shapes() -> Vec<Shape> {
        let hex = |word: &str| u32::from_str_radix(word, 16).unwrap();
        let all = |words: &str| -> Vec<u32> { words.split_whitespace().map(hex).collect() };
        let shape = |text: &str| {
            let mut lines = text.lines().filter(|line| !line.is_empty());
            let mut head = lines.next().unwrap().split_whitespace();
            let (theta, head_dim) = (head.next().unwrap(), head.next().unwrap());
            let (theta, head_dim) = (theta.parse().unwrap(), head_dim.parse().unwrap());
            let (frequencies, angles) = (all(lines.next().unwrap()), hex(lines.next().unwrap()));
            let mut rows = Vec::new();
            while let (Some(at), Some(cos), Some(sin)) = (lines.next(), lines.next(), lines.next())
            {
                rows.push((at.parse().unwrap(), all(cos), all(sin)));
            }
            Shape { theta, head_dim, frequencies, angles, rows }
        };
        TABLE.split("shape ").skip(1).map(shape).collect()
    }

    #[test]
    fn frequencies_and_angles_are_torchs_to_the_bit_at_all_positions() {
        let shapes = shapes();
        assert_eq!(shapes.len(), 3);
        for Shape { theta, head_dim, frequencies, angles, .. } in shapes {
            let rope = RopeFrequencies::new(theta, head_dim);
            let found: Vec<u32> =
                rope.values().iter().map(|frequency| frequency.to_bits()).collect();
            assert_eq!(found, frequencies, "theta {theta}, head_dim {head_dim}");
            let angle = |position: usize| rope.values().iter().map(move |f| position as f32 * f);
            let bytes = (0..POSITIONS).flat_map(angle).flat_map(f32::to_le_bytes);
            assert_eq!(crc32(bytes), angles, "theta {theta}, head_dim {head_dim}");
        }
    }

    /// torch's own values depend on its vector library and are within 1 ulp of the true ones too.
    #[test]
    fn cosines_and_sines_are_within_one_ulp_of_torchs() {
        let ulps = |a: f32, b: u32| (a.to_bits() as i32).abs_diff(b as i32);
        let (mut values, mut differ) = (0, 0);
        for Shape { theta, head_dim, rows, .. } in shapes() {
            let rope = RopeFrequencies::new(theta, head_dim);
            for (position, cosines, sines) in rows {
                let expected = cosines.into_iter().zip(sines);
                for ((cos, sin), (expected_cos, expected_sin)) in rope.at(position).zip(expected) {
                    let apart = [ulps(cos, expected_cos), ulps(sin, expected_sin)];
                    assert!(apart.iter().all(|&ulps| ulps <= 1), "{position}: {apart:?}");
                    values += 2;
                    differ += apart.iter().sum::<u32>();
                }
            }
        }
        eprintln!("rope: {differ} of {values} cosines and sines differ from torch's by 1 ulp");
        assert!(values > 2000);
    }

    #[test]
    fn the_table_is_frozen_to_the_bit() {
        let rope = RopeFrequencies::new(500_000.0, 128);
        let pairs = (0..POSITIONS).flat_map(|position| rope.at(position).collect::<Vec<_>>());
        let bytes = pairs.flat_map(|(cos, sin)| [cos, sin]).flat_map(f32::to_le_bytes);
        assert_eq!(format!("{:08x}", crc32(bytes)), "8dcdad52");
    }

    #[test]
    fn component_j_rotates_with_component_j_plus_half() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        let ([cos, slow_cos], [sin, slow_sin]) = ([0.6, 0.8], [0.8, 0.6]);
        rotate(&mut head, &[cos, slow_cos], &[sin, slow_sin], 1.0);
        let expected = [
            cos - 3.0 * sin,
            2.0 * slow_cos - 4.0 * slow_sin,
            3.0 * cos + sin,
            4.0 * slow_cos + 2.0 * slow_sin,
        ];
        assert_eq!(head, expected);
        assert!(RopeFrequencies::new(10_000.0, 4).at(0).eq([(1.0, 0.0); 2]));
    }
}
