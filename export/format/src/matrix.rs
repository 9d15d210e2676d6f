//! A matrix of a model: latents that absmean quantises, or codes that have a scale already.
//!
//! A model that was quantised and stored as dequantised floats looks like one with latents, but
//! every value is 0, +s or -s, and its scale is s. absmean over it would give the same codes but
//! a smaller scale: s times the share of nonzero values, about two thirds, and less again the next
//! time. So such a matrix is recognised and keeps its scale. Training it starts from latents that
//! absmean takes back to the same codes and the same scale.

use crate::grouped::GroupedTernary;
use crate::quant::{SCALE_EPS, WeightScale, ternary_codes};

/// The values of a tensor: latents (or plain floats), or codes with their scale.
#[derive(Clone, Debug, PartialEq)]
pub enum Matrix {
    /// Float values `[N, K]`. Those of a ternary matrix are latents, to be quantised with
    /// absmean; those of any other tensor are used as they are.
    Latent(Vec<f32>),
    /// Codes `[N, K]` that were quantised before, each in {-1, 0, +1}, with their scale.
    Ternary {
        /// The codes, row-major.
        codes: Vec<i8>,
        /// What a product of the codes is multiplied by.
        scale: WeightScale,
    },
    /// Codes with a scale for each row or group of columns.
    Grouped(GroupedTernary),
}

impl Matrix {
    /// The float values of a ternary matrix: dequantised codes if [`ternary_values`] sees them,
    /// otherwise latents.
    pub fn from_floats(values: Vec<f32>) -> Self {
        match ternary_values(&values) {
            Some((codes, scale)) => Self::Ternary { codes, scale },
            None => Self::Latent(values),
        }
    }

    /// Codes and scale: its own, or those of absmean.
    ///
    /// # Panics
    /// If it has a scale a group: there is no one scale.
    pub fn quantised(self) -> (Vec<i8>, WeightScale) {
        match self {
            Self::Ternary { codes, scale } => (codes, scale),
            Self::Latent(latents) => {
                let scale = WeightScale::of_latents(&latents);
                (ternary_codes(&latents, scale), scale)
            }
            Self::Grouped(_) => panic!("a matrix with one scale"),
        }
    }

    /// Latents to train: its own, or those of [`latents_for`], for each group where it has groups.
    pub fn into_latents(self) -> Vec<f32> {
        match self {
            Self::Latent(latents) => latents,
            Self::Ternary { codes, scale } => latents_for(&codes, scale),
            Self::Grouped(matrix) => latents_for_groups(&matrix),
        }
    }
}

/// [`latents_for`] group by group; +2 becomes +1, and a group of scale 0 is a group of zeros.
fn latents_for_groups(matrix: &GroupedTernary) -> Vec<f32> {
    let groups = matrix.codes().chunks_exact(matrix.width()).zip(matrix.scales());
    let latents = groups.flat_map(|(codes, &scale)| {
        let sign = if scale < 0.0 { -1 } else { 1 };
        let codes: Vec<i8> = codes.iter().map(|&code| sign * code.min(1)).collect();
        match WeightScale::from_stored(scale.abs()) {
            Some(scale) => latents_for(&codes, scale),
            None => vec![0.0; codes.len()],
        }
    });
    latents.collect()
}

/// Codes and scale of dequantised values: each exactly 0, +s or -s, at least one of them not 0.
///
/// Exact equality is right for every float type, because equal values round equally. `None` for
/// anything else: other magnitudes, only zeros, NaN or infinity. Where no value is 0, such as in
/// a matrix of one element, both readings agree: the absmean is s.
pub fn ternary_values(values: &[f32]) -> Option<(Vec<i8>, WeightScale)> {
    // The first value that is not 0 fixes s; a single other magnitude proves that these are
    // latents.
    let magnitude = values.iter().find(|&&value| value != 0.0)?.abs();
    let scale = WeightScale::from_stored(magnitude)?;
    let code = |value: &f32| match value.abs().to_bits() {
        0 => Some(0),
        bits if bits == magnitude.to_bits() => Some(value.signum() as i8),
        _ => None,
    };
    Some((values.iter().map(code).collect::<Option<_>>()?, scale))
}

/// A zero code's latent that is not 0, as a share of the scale: far from the half that rounds up.
const MARK: f32 = 1.0 / 16.0;

/// Latents that absmean quantises to exactly these codes and, within one ulp, to this scale.
///
/// With z zeros among n codes they are ±v for a nonzero code and 0 for a zero, v chosen so that
/// the mean is the scale. One zero, the first, becomes a sixteenth of the scale instead: values 0
/// and ±v alone would be taken for dequantised ones with the scale v ([`ternary_values`]) if they
/// were stored before training moved them.
///
/// absmean never gives a scale below [`SCALE_EPS`], so a smaller one comes back as that. If all
/// codes are 0, so are the latents, and the scale means nothing.
pub fn latents_for(codes: &[i8], scale: WeightScale) -> Vec<f32> {
    let zeros = codes.iter().filter(|&&code| code == 0).count();
    if zeros == codes.len() {
        return vec![0.0; codes.len()];
    }
    let mean = scale.multiplier().max(SCALE_EPS);
    let mark = if zeros == 0 { 0.0 } else { mean * MARK };
    // absmean divides by all n, zeros included: `v · (n - z) + mark = mean · n`.
    let sum = f64::from(mean) * codes.len() as f64 - f64::from(mark);
    let nearest = ((sum / (codes.len() - zeros) as f64) as f32).min(f32::MAX);
    let gives_scale = |&v: &f32| WeightScale::of_latents(&spread(codes, v, mark)) == scale;
    // Rounding v may move the mean by one ulp; one of the neighbours usually gives it exactly.
    let nearby = [nearest, nearest.next_down(), nearest.next_up()];
    spread(codes, nearby.into_iter().find(gives_scale).unwrap_or(nearest), mark)
}

fn spread(codes: &[i8], magnitude: f32, mark: f32) -> Vec<f32> {
    let mut latents: Vec<f32> = codes.iter().map(|&code| f32::from(code) * magnitude).collect();
    if let Some(first_zero) = codes.iter().position(|&code| code == 0) {
        latents[first_zero] = mark;
    }
    latents
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scale(value: f32) -> WeightScale {
        WeightScale::from_stored(value).unwrap()
    }

    fn dequantised(codes: &[i8], scale: WeightScale) -> Vec<f32> {
        codes.iter().map(|&code| f32::from(code) * scale.multiplier()).collect()
    }

    #[test]
    fn zero_and_one_magnitude_are_codes() {
        let found = ternary_values(&[0.0, 0.3, -0.3, -0.0, 0.3]);
        assert_eq!(found, Some((vec![0, 1, -1, 0, 1], scale(0.3))));
        assert_eq!(ternary_values(&[-2.0, -2.0]), Some((vec![-1, -1], scale(2.0))));
        assert_eq!(ternary_values(&[0.0, 1e-40]), Some((vec![0, 1], scale(1e-40))));
    }

    #[test]
    fn what_merely_looks_like_codes_is_latent() {
        for values in [
            &[][..],
            &[0.0, -0.0],
            &[0.3, -0.3, 0.300_000_04],
            &[0.3, 0.0, -0.2],
            &[1.0, 0.0, -1.0, 0.5],
            &[f32::NAN, 1.0],
            &[1.0, f32::NAN],
            &[0.0, f32::INFINITY],
            &[1.0, f32::NEG_INFINITY],
        ] {
            assert_eq!(ternary_values(values), None, "{values:?}");
        }
        let latents = vec![1.0, -3.0, 0.5];
        assert_eq!(Matrix::from_floats(latents.clone()), Matrix::Latent(latents));
    }

    #[test]
    fn the_scale_of_dequantised_values_does_not_shrink() {
        let values = [0.0, 0.75, -0.75, 0.0];
        assert_eq!(WeightScale::of_latents(&values), scale(0.375), "what absmean would say");
        let quantised = Matrix::from_floats(values.to_vec()).quantised();
        assert_eq!(quantised, (vec![0, 1, -1, 0], scale(0.75)));
    }

    #[test]
    fn without_zeros_both_readings_agree() {
        for values in [&[0.3][..], &[-0.7], &[0.3; 17], &[1e-3, -1e-3, 1e-3]] {
            let absmean = Matrix::Latent(values.to_vec()).quantised();
            assert_eq!(Matrix::from_floats(values.to_vec()).quantised(), absmean);
        }
    }

    #[test]
    fn latents_of_zeros_are_zeros() {
        assert_eq!(latents_for(&[0; 5], scale(0.3)), [0.0; 5]);
        assert_eq!(latents_for(&[], scale(0.3)), [0.0; 0]);
    }

    #[test]
    fn a_scale_out_of_reach_still_keeps_the_codes() {
        let codes = [0, 1, -1, 0, 0, 0, 0, 0, 0, 0];
        for (stored, found) in [(1e-30, SCALE_EPS..=SCALE_EPS), (3e38, 6e37..=7e37)] {
            let latents = latents_for(&codes, scale(stored));
            let (back, scale) = Matrix::Latent(latents).quantised();
            assert_eq!(back, codes);
            assert!(found.contains(&scale.multiplier()), "{stored}: {scale:?}");
        }
    }

    #[test]
    fn latents_survive_bf16_and_f16_as_latents() {
        let codes = [0, 1, -1, 0, 0, 1];
        for stored in [SCALE_EPS, 0.02, 1.3] {
            let latents = latents_for(&codes, scale(stored));
            let bf16 = latents.iter().map(|&x| half::bf16::from_f32(x).to_f32());
            let f16 = latents.iter().map(|&x| half::f16::from_f32(x).to_f32());
            for stored in [bf16.collect::<Vec<_>>(), f16.collect()] {
                assert_eq!(ternary_values(&stored), None);
                assert_eq!(Matrix::Latent(stored).quantised().0, codes);
            }
        }
    }

    /// Codes of which about `share` of 1000 are not 0, and at least one.
    fn codes(length: usize, share: u64, seed: u64) -> Vec<i8> {
        let mut x = seed | 1;
        let mut draw = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            x >> 33
        };
        let mut codes: Vec<i8> = (0..length)
            .map(|_| if draw() % 1000 < share { (draw() % 2) as i8 * 2 - 1 } else { 0 })
            .collect();
        let one = draw() as usize % length;
        codes[one] = if codes[one] == 0 { 1 } else { codes[one] };
        codes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn absmean_takes_latents_back_to_codes_and_scale(
            length in prop_oneof![1usize..70, 1000usize..5000],
            share in prop_oneof![Just(0u64), Just(1), Just(1000), 1u64..1000],
            exponent in -16i32..20,
            mantissa in prop_oneof![Just(1.0f32), 1.0f32..2.0],
            seed: u64,
        ) {
            let (codes, scale) = (codes(length, share, seed), scale(mantissa * 2f32.powi(exponent)));
            let latents = latents_for(&codes, scale);
            let (back, found) = Matrix::Latent(latents.clone()).quantised();
            prop_assert_eq!(&back, &codes);
            let ulps = found.multiplier().to_bits().abs_diff(scale.multiplier().to_bits());
            prop_assert!(ulps <= 1, "{:?} became {:?}", scale, found);
            // Stored untouched, the latents are read as what they are.
            let stored = Matrix::from_floats(latents.clone());
            prop_assert_eq!(stored.clone().quantised(), (codes, found));
            prop_assert_eq!(stored.into_latents(), latents);
        }

        #[test]
        fn dequantised_values_are_recognised(
            length in 1usize..200,
            share in 0u64..=1000,
            value in 1e-30f32..1e30,
            seed: u64,
        ) {
            let (codes, scale) = (codes(length, share, seed), scale(value));
            prop_assert_eq!(ternary_values(&dequantised(&codes, scale)), Some((codes, scale)));
        }
    }
}
