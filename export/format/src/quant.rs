//! The two quantisers of BitNet b1.58, defined once for training, export and kernels.
//!
//! Weights, per tensor (training tips, Fig. 3): `m = max(mean |W|, 1e-5)`, `s = 1 / m`,
//! `T = clamp(round(W · s), -1, 1)`; dequantised, a weight is `T · m`.
//! Activations, per token: `a = (1 / max(max |x|, 1e-5)) · 127`, the two roundings of torch's
//! `127 / tensor`; `q = clamp(round(x · a), -128, 127)`.
//! Rounding is half to even. The output of a product is `(Σ q·T) · m / a`, in this order: first
//! the integer sum (exact in f32 below 2²⁴), then times the weight scale, then divided by the
//! activation scale. Every fast path elsewhere has a test against this file.

/// Neither mean |w| nor max |x| counts as less than this.
pub const SCALE_EPS: f32 = 1e-5;

/// The per-tensor weight scale: mean |w|, never below [`SCALE_EPS`]. It *multiplies*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightScale(f32);

impl WeightScale {
    /// The scale of a matrix of latents: the mean is summed in f64 and rounded once.
    pub fn of_latents(latents: &[f32]) -> Self {
        Self::from_absmean(absmean(latents))
    }

    /// The scale of latents whose mean |w| is known ([`Absmean`]).
    pub fn from_absmean(mean: f64) -> Self {
        Self((mean as f32).max(SCALE_EPS))
    }

    /// A scale read from a file; `None` unless it is a positive finite number.
    pub fn from_stored(value: f32) -> Option<Self> {
        (value.is_finite() && value > 0.0).then_some(Self(value))
    }

    /// What a ternary product is multiplied by.
    pub fn multiplier(self) -> f32 {
        self.0
    }

    /// What a latent is multiplied by before rounding: `1 / m` in f32.
    pub fn inverse(self) -> f32 {
        1.0 / self.0
    }
}

/// The per-token activation scale, about `127 / max |x|`. It *divides* the product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationScale(f32);

impl ActivationScale {
    /// The scale of one token's activations `[K]`.
    pub fn of_row(row: &[f32]) -> Self {
        Self::from_absmax(row.iter().fold(0.0f32, |max, x| max.max(x.abs())))
    }

    /// The scale for a row whose largest magnitude is known.
    pub fn from_absmax(absmax: f32) -> Self {
        // Two roundings, because torch computes `127 / tensor` as a reciprocal and a product.
        Self(1.0 / absmax.max(SCALE_EPS) * 127.0)
    }

    /// One: codes that are their values.
    pub const ONE: Self = Self(1.0);

    /// A scale that is known, whatever the values are; `None` unless it is a positive finite
    /// number.
    pub fn from_stored(value: f32) -> Option<Self> {
        (value.is_finite() && value > 0.0).then_some(Self(value))
    }

    /// What an activation is multiplied by before rounding.
    pub fn multiplier(self) -> f32 {
        self.0
    }

    /// The result of a product: `acc · m / a`, the order every implementation keeps.
    pub fn rescale(self, accumulator: i32, weight: WeightScale) -> f32 {
        accumulator as f32 * weight.0 / self.0
    }
}

/// Mean of |w| in f64, 0 for an empty slice; the order of the sum is that of [`Absmean`].
pub fn absmean(latents: &[f32]) -> f64 {
    let mut sum = Absmean::default();
    sum.add(latents);
    sum.finish()
}

/// Mean of |w| in f64, summed in one fixed order on every machine: 16 interleaved lanes, then the
/// lanes from first to last. Latents may come in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Absmean {
    lanes: [f64; Self::LANES],
    count: usize,
}

impl Absmean {
    const LANES: usize = 16;

    /// Adds the next latents.
    ///
    /// # Panics
    /// When a piece before the last was not a multiple of 16.
    #[inline]
    pub fn add(&mut self, latents: &[f32]) {
        // A latent's lane is its index modulo 16; a piece that ended elsewhere would shift all
        // after it.
        assert!(self.count.is_multiple_of(Self::LANES), "only the last piece may have a rest");
        self.count += latents.len();
        let (whole, rest) = latents.as_chunks::<{ Self::LANES }>();
        for chunk in whole {
            // f64 lanes: the mean of a billion values has no error that rounding to f32 would show.
            for (lane, &w) in self.lanes.iter_mut().zip(chunk) {
                *lane += f64::from(w.abs());
            }
        }
        for (lane, &w) in self.lanes.iter_mut().zip(rest) {
            *lane += f64::from(w.abs());
        }
    }

    /// The mean of all that were added.
    pub fn finish(self) -> f64 {
        self.lanes.iter().sum::<f64>() / self.count.max(1) as f64
    }
}

/// The ternary code of one latent: `clamp(round(W · s), -1, 1)`, which rounds to even at exactly
/// one half, hence to 0. Written as two comparisons, which need no rounding instruction.
pub fn ternary_code(latent: f32, scale_inverse: f32) -> i8 {
    let scaled = latent * scale_inverse;
    i8::from(scaled > 0.5) - i8::from(scaled < -0.5)
}

/// The ternary codes of a matrix of latents, each in {-1, 0, +1}.
pub fn ternary_codes(latents: &[f32], scale: WeightScale) -> Vec<i8> {
    let inverse = scale.inverse();
    latents.iter().map(|&w| ternary_code(w, inverse)).collect()
}

/// Quantises one token's activations `[K]` into `codes [K]` and returns the scale.
pub fn quantise_row(row: &[f32], codes: &mut [i8]) -> ActivationScale {
    assert_eq!(row.len(), codes.len(), "one code for each activation");
    let scale = ActivationScale::of_row(row);
    for (code, &x) in codes.iter_mut().zip(row) {
        *code = (x * scale.0).round_ties_even().clamp(-128.0, 127.0) as i8;
    }
    scale
}

/// The place of the first value that is NaN or infinite.
pub fn first_not_finite(values: &[f32]) -> Option<usize> {
    // Whole blocks first: a loop that may end at every value is a slow one.
    let bad = |block: &[f32]| block.iter().fold(false, |bad, value| bad | !value.is_finite());
    let block = values.chunks(1024).position(bad)?;
    let within = values[block * 1024..].iter().position(|value| !value.is_finite());
    within.map(|at| block * 1024 + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_all_zero_matrix_keeps_a_finite_scale() {
        let scale = WeightScale::of_latents(&[0.0; 7]);
        assert_eq!(scale.multiplier(), 1e-5);
        assert_eq!(ternary_codes(&[0.0; 7], scale), [0; 7]);
    }

    #[test]
    fn exactly_half_the_absmean_rounds_to_zero() {
        // mean |w| = 1, so 0.5 is the tie and goes to the even code.
        let latents = [0.5, -0.5, 1.5, -1.5];
        let scale = WeightScale::of_latents(&latents);
        assert_eq!(scale.multiplier(), 1.0);
        assert_eq!(ternary_codes(&latents, scale), [0, 0, 1, -1]);
    }

    #[test]
    fn two_comparisons_are_the_rounding_of_the_definition() {
        let around = |x: f32| [x.next_down(), x, x.next_up()];
        let mut values: Vec<f32> = [0.0, 0.5, 1.0, 1.5, 2.5, 1e9, f32::MIN_POSITIVE]
            .into_iter()
            .flat_map(|x| [around(x), around(-x)].concat())
            .collect();
        values.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        for x in values {
            let defined = x.round_ties_even().clamp(-1.0, 1.0) as i8;
            assert_eq!(ternary_code(x, 1.0), defined, "{x}");
        }
    }

    #[test]
    fn activations_round_half_to_even() {
        let mut codes = [0; 5];
        let scale = quantise_row(&[127.0, 0.5, 1.5, -2.5, -127.0], &mut codes);
        assert_eq!(scale.multiplier(), 1.0);
        assert_eq!(codes, [127, 0, 2, -2, -127]);
    }

    #[test]
    fn a_zero_row_gives_zero_codes() {
        let mut codes = [1; 3];
        let scale = quantise_row(&[0.0; 3], &mut codes);
        assert_eq!(codes, [0; 3]);
        assert_eq!(scale.multiplier(), 1.0 / 1e-5 * 127.0);
    }

    #[test]
    fn absmean_counts_the_tail() {
        let latents: Vec<f32> = (0..19).map(|i| if i % 2 == 0 { 1.0 } else { -3.0 }).collect();
        assert_eq!(absmean(&latents), (10.0 + 27.0) / 19.0);
    }

    #[test]
    fn the_order_of_the_scales_is_product_times_weight_over_activation() {
        let weight = WeightScale::from_stored(0.3).unwrap();
        let activation = ActivationScale::from_absmax(0.7);
        assert_eq!(activation.rescale(1001, weight), 1001.0f32 * 0.3 / (1.0 / 0.7 * 127.0));
    }

    #[test]
    fn a_stored_scale_must_be_positive_and_finite() {
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(WeightScale::from_stored(bad), None);
        }
    }
}
