//! A BF16 master that keeps the codes of the f32 latents it was rounded from.
//!
//! Rounding latents to the nearest BF16 value moves some of them over the threshold at half the
//! absmean, and moves the absmean itself. A few codes in ten thousand would flip, and a reader
//! that packs the file would get another model than the one that was trained.
//!
//! ```text
//!   code 0        │        code 1
//!   ──┬───────────┼──x────────┬──▶ |w|      x: the latent, just above the threshold
//!   BF16 below    │      BF16 above         nearest is below: its code would become 0,
//!          absmean / 2                      so it is stored as the value above
//! ```
//!
//! The absmean moves again with each such correction, so they are repeated until it stays. Other
//! programs sum it in other orders; the codes hold for every scale within four ulp of ours.

use half::bf16;

use crate::quant::{WeightScale, ternary_code, ternary_codes};

/// How far a reader's scale may be from ours, in units in the last place of f32.
const SLACK: u32 = 4;

/// Each round moves the scale by less; two are common, this many never needed.
const ROUNDS: usize = 32;

/// Latents as BF16.
#[derive(Clone, Debug, PartialEq)]
pub struct Master {
    /// The values, in the order of the latents.
    pub values: Vec<bf16>,
    /// How many differ from the nearest BF16 value.
    pub adjusted: usize,
    /// Indices whose code a reader could still get wrong.
    pub lost: Vec<usize>,
}

/// Rounds latents so that their codes stay. Latents that are BF16 already stay as they are.
pub fn keep_codes(latents: &[f32]) -> Master {
    let nearest: Vec<bf16> = latents.iter().map(|&w| bf16::from_f32(w)).collect();
    if latents.iter().zip(&nearest).all(|(&w, b)| b.to_f32().to_bits() == w.to_bits()) {
        return Master { values: nearest, adjusted: 0, lost: Vec::new() };
    }
    // The codes to keep: those of the f32 latents, which training saw.
    let codes = ternary_codes(latents, WeightScale::of_latents(latents));
    let mut values = nearest.clone();
    let mut edges = Edges::around(scale_of(&values));
    // Corrections move the mean, the mean moves the threshold, and that may ask for other
    // corrections. Each round starts from the nearest values again, so corrections do not pile up.
    for round in 0..ROUNDS {
        values = nearest.iter().zip(&codes).map(|(&b, &code)| edges.correct(b, code)).collect();
        let next = Edges::around(scale_of(&values));
        if next == edges {
            break;
        }
        // A scale that alternates between two values must keep the codes with both.
        edges = if round < ROUNDS / 2 { next } else { edges.widened(next) };
    }
    let adjusted = values.iter().zip(&nearest).filter(|(a, b)| a != b).count();
    let lost = lost(&values, &codes);
    Master { values, adjusted, lost }
}

fn scale_of(values: &[bf16]) -> WeightScale {
    let floats: Vec<f32> = values.iter().map(|b| b.to_f32()).collect();
    WeightScale::of_latents(&floats)
}

/// The scales that readers may find where ours is `scale`.
fn nearby_scales(scale: WeightScale) -> impl Iterator<Item = WeightScale> {
    let bits = scale.multiplier().to_bits();
    // Neighbouring positive floats have neighbouring bit patterns.
    let around = bits.saturating_sub(SLACK)..=bits.saturating_add(SLACK);
    around.filter_map(|bits| WeightScale::from_stored(f32::from_bits(bits)))
}

/// The magnitudes next to the threshold: the largest that is 0 and the smallest that is not,
/// whichever scale a reader finds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Edges {
    zero: bf16,
    one: bf16,
}

impl Edges {
    fn around(scale: WeightScale) -> Self {
        let edges = nearby_scales(scale).map(|scale| {
            let is_zero = |value: bf16| ternary_code(value.to_f32(), scale.inverse()) == 0;
            // Near the threshold; two short walks find the last value that still becomes 0.
            let mut zero = bf16::from_f32(scale.multiplier() / 2.0);
            while !is_zero(zero) {
                zero = bf16::from_bits(zero.to_bits() - 1);
            }
            while is_zero(next_up(zero)) {
                zero = next_up(zero);
            }
            Self { zero, one: next_up(zero) }
        });
        edges.reduce(Self::widened).expect("our own scale is among the nearby ones")
    }

    fn widened(self, other: Self) -> Self {
        let zero = if other.zero < self.zero { other.zero } else { self.zero };
        let one = if other.one > self.one { other.one } else { self.one };
        Self { zero, one }
    }

    /// `value`, or the nearest one on the right side of the threshold.
    fn correct(self, value: bf16, code: i8) -> bf16 {
        let magnitude = bf16::from_bits(value.to_bits() & 0x7fff);
        match code {
            0 if magnitude > self.zero => with_sign_of(self.zero, value),
            1 | -1 if magnitude < self.one => with_sign_of(self.one, value),
            _ => value,
        }
    }
}

/// The next larger value of a positive finite one.
fn next_up(value: bf16) -> bf16 {
    bf16::from_bits(value.to_bits() + 1)
}

fn with_sign_of(magnitude: bf16, sign: bf16) -> bf16 {
    bf16::from_bits(magnitude.to_bits() | (sign.to_bits() & 0x8000))
}

fn lost(values: &[bf16], codes: &[i8]) -> Vec<usize> {
    let inverses: Vec<f32> = nearby_scales(scale_of(values)).map(WeightScale::inverse).collect();
    let kept = |value: f32, code: i8| inverses.iter().all(|&i| ternary_code(value, i) == code);
    let all = values.iter().zip(codes).enumerate();
    all.filter(|(_, (value, code))| !kept(value.to_f32(), **code)).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Draw(u64);

    impl Draw {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        }

        fn gaussian(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }

        /// Gaussian, uniform, or with heavy tails.
        fn value(&mut self, kind: usize) -> f64 {
            match kind {
                0 => self.gaussian(),
                1 => 2.0 * self.uniform() - 1.0,
                _ => self.gaussian() / self.uniform().sqrt(),
            }
        }
    }

    fn latents(length: usize, kind: usize, spread: f64, seed: u64) -> Vec<f32> {
        let mut draw = Draw(seed | 1);
        (0..length).map(|_| (spread * draw.value(kind)) as f32).collect()
    }

    fn flips(latents: &[f32], values: &[bf16]) -> usize {
        let codes = ternary_codes(latents, WeightScale::of_latents(latents));
        let scale = scale_of(values);
        let read = |scale: WeightScale| {
            let pairs = values.iter().zip(&codes);
            pairs.filter(|(b, code)| ternary_code(b.to_f32(), scale.inverse()) != **code).count()
        };
        nearby_scales(scale).map(read).max().unwrap()
    }

    #[test]
    fn large_matrices_keep_every_code_where_plain_rounding_flips_some() {
        for kind in 0..3 {
            let latents = latents(640 * 2560, kind, 0.02, 7 + kind as u64);
            let nearest: Vec<bf16> = latents.iter().map(|&w| bf16::from_f32(w)).collect();
            let plain = flips(&latents, &nearest);
            let master = keep_codes(&latents);
            assert!(plain > latents.len() / 20_000, "{kind}: plain rounding flips {plain}");
            assert_eq!((flips(&latents, &master.values), master.lost.len()), (0, 0), "{kind}");
            assert!(master.adjusted < latents.len() / 500, "{kind}: {}", master.adjusted);
            eprintln!("kind {kind}: {plain} flips avoided by {} adjustments", master.adjusted);
        }
    }

    #[test]
    fn only_values_beside_the_threshold_are_moved_and_by_one_step() {
        let latents = latents(300_000, 0, 1.3, 3);
        let master = keep_codes(&latents);
        let edges = Edges::around(scale_of(&master.values));
        for (&w, &b) in latents.iter().zip(&master.values) {
            let nearest = bf16::from_f32(w);
            if nearest != b {
                assert!(nearest.to_bits().abs_diff(b.to_bits()) <= 2, "{w} became {b}");
                let magnitude = bf16::from_bits(b.to_bits() & 0x7fff);
                assert!(magnitude == edges.zero || magnitude == edges.one, "{w} became {b}");
            }
        }
        assert!(master.adjusted > 0);
    }

    #[test]
    fn values_that_are_bf16_already_stay_whatever_a_reader_makes_of_them() {
        // 0.5 lies exactly on the threshold of mean 1.
        let latents = [0.5, -0.5, 1.5, -1.5, 0.0, -0.0];
        let master = keep_codes(&latents);
        let back: Vec<u32> = master.values.iter().map(|b| b.to_f32().to_bits()).collect();
        assert_eq!(back, latents.map(f32::to_bits));
        assert_eq!(master.adjusted, 0);
    }

    #[test]
    fn dead_and_tiny_matrices_keep_their_codes() {
        for latents in [vec![1e-34f32; 9], vec![0.0; 4], vec![3e-6, -1e-6, 9.1e-6, 2e-6]] {
            let master = keep_codes(&latents);
            assert_eq!((flips(&latents, &master.values), master.lost.len()), (0, 0));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn codes_hold_for_every_reader_or_are_named(
            length in 1usize..3000,
            kind in 0usize..3,
            spread in prop_oneof![Just(0.02), Just(1.3), 1e-6..1e3],
            seed: u64,
        ) {
            let latents = latents(length, kind, spread, seed);
            let master = keep_codes(&latents);
            prop_assert_eq!(flips(&latents, &master.values) == 0, master.lost.is_empty());
            // In a matrix of some size no code is ever lost.
            prop_assert!(length < 64 || master.lost.is_empty(), "{} lost", master.lost.len());
        }
    }
}
