//! Ternary matrices with a scale for each group of consecutive weights of a row.
//!
//! The one definition of absmean over groups: each group for itself, `d = mean |w|`, never below
//! [`SCALE_EPS`](crate::quant::SCALE_EPS); `T = clamp(round(w / d), -1, 1)` as for a matrix
//! ([`crate::quant`]). A group of 64, 128 or 256 columns has its scale **rounded to f16 before any
//! code is made**: every file form of such groups holds f16, so codes and scales that were trained
//! are those that are stored and run, and a kernel reads 2.125 bits a weight and not 2.25. A row
//! keeps an f32, as a matrix does.
//!
//! Files of other programs may hold the code +2 (`Q2_0`); it is kept, and never made here.

use std::ops::Range;

use half::f16;

use crate::group::Group;
use crate::quant::{WeightScale, ternary_code};

/// Rows of a ternary matrix `[n, K]` with scales `[n, K / width]`.
///
/// Invariant: codes lie in -1..=2, scales are finite, `width` divides `columns`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedTernary {
    columns: usize,
    width: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl GroupedTernary {
    /// Rows from their parts.
    ///
    /// # Panics
    /// If a code or a scale is invalid, or their numbers do not fit.
    pub fn new(columns: usize, width: usize, codes: Vec<i8>, scales: Vec<f32>) -> Self {
        assert!(width > 0 && columns.is_multiple_of(width), "a row is made of whole groups");
        assert!(codes.len().is_multiple_of(columns), "whole rows");
        assert_eq!(scales.len(), codes.len() / width, "one scale for each group");
        assert!(codes.iter().all(|code| (-1..=2).contains(code)), "codes of two bits");
        assert!(scales.iter().all(|scale| scale.is_finite()), "finite scales");
        Self { columns, width, codes, scales }
    }

    /// Quantises latents `[n, K]`.
    ///
    /// # Panics
    /// If the group is a matrix, or does not divide the columns.
    pub fn of_latents(columns: usize, group: Group, latents: &[f32]) -> Self {
        let width = width_of(columns, group);
        let scale = |latents: &[f32]| group_scale(latents, group);
        let scales: Vec<WeightScale> = latents.chunks_exact(width).map(scale).collect();
        let groups = latents.chunks_exact(width).zip(&scales);
        let codes = groups.flat_map(|(group, scale)| {
            let inverse = scale.inverse();
            // With the inverse of the scale after it was rounded to f16: the one that every reader
            // will see.
            group.iter().map(move |&latent| ternary_code(latent, inverse))
        });
        let codes = codes.collect();
        Self::new(columns, width, codes, scales.into_iter().map(WeightScale::multiplier).collect())
    }

    /// Codes and scales of float values: their own where each group holds one magnitude and 0 (and
    /// twice the magnitude with a plus), as dequantised values do; else those of latents.
    ///
    /// # Panics
    /// As [`GroupedTernary::of_latents`].
    pub fn of_floats(columns: usize, group: Group, values: &[f32]) -> Self {
        let found = Self::of_dequantised(columns, group, values);
        found.unwrap_or_else(|| Self::of_latents(columns, group, values))
    }

    /// Codes and scales of dequantised values; `None` if these are others.
    ///
    /// # Panics
    /// As [`GroupedTernary::of_latents`].
    pub fn of_dequantised(columns: usize, group: Group, values: &[f32]) -> Option<Self> {
        let width = width_of(columns, group);
        let groups = values.chunks_exact(width).map(|values| dequantised(values, group));
        let groups = groups.collect::<Option<Vec<_>>>()?;
        let scales = groups.iter().map(|(_, scale)| *scale).collect();
        let codes = groups.into_iter().flat_map(|(codes, _)| codes).collect();
        Some(Self::new(columns, width, codes, scales))
    }

    /// Number of rows, `n`.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.columns
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns that share a scale.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All codes `[n, K]`, each in -1..=2.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// All scales `[n, K / width]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The scales as f16; `None` if one does not fit, as with scales of rows.
    #[expect(clippy::float_cmp, reason = "a scale is an f16 or it is not")]
    pub fn half_scales(&self) -> Option<Vec<f16>> {
        let half = |&scale: &f32| {
            let half = f16::from_f32(scale);
            (half.to_f32() == scale).then_some(half)
        };
        self.scales.iter().map(half).collect()
    }

    /// The largest code: +2 in some files of other programs, else at most +1.
    pub fn largest_code(&self) -> i8 {
        self.codes.iter().copied().max().unwrap_or(0)
    }

    /// Whether every weight is 0.
    pub fn is_zero(&self) -> bool {
        let mut groups = self.codes.chunks_exact(self.width).zip(&self.scales);
        groups.all(|(codes, scale)| *scale == 0.0 || codes.iter().all(|code| *code == 0))
    }

    /// Some of the rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let groups = self.columns / self.width;
        Self {
            codes: self.codes[rows.start * self.columns..rows.end * self.columns].to_vec(),
            scales: self.scales[rows.start * groups..rows.end * groups].to_vec(),
            ..*self
        }
    }

    /// These rows, in this order.
    #[must_use]
    pub fn rows_in(&self, order: impl Iterator<Item = usize>) -> Self {
        let groups = self.columns / self.width;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in order {
            codes.extend_from_slice(&self.codes[row * self.columns..][..self.columns]);
            scales.extend_from_slice(&self.scales[row * groups..][..groups]);
        }
        Self { codes, scales, ..*self }
    }

    /// The weights `[n, K]`: codes times scales.
    pub fn values(&self) -> Vec<f32> {
        let groups = self.codes.chunks_exact(self.width).zip(&self.scales);
        groups.flat_map(|(codes, scale)| codes.iter().map(move |&c| f32::from(c) * scale)).collect()
    }
}

fn width_of(columns: usize, group: Group) -> usize {
    group.width(columns).expect("a scale for each row or group of columns")
}

/// The scale of one group of latents: absmean, to the nearest f16 where a group is of columns.
pub fn group_scale(latents: &[f32], group: Group) -> WeightScale {
    let scale = WeightScale::of_latents(latents);
    if !matches!(group, Group::Columns(_)) {
        return scale;
    }
    // Larger means become the largest f16, not infinity: a scale must be finite.
    let half = f16::from_f32(scale.multiplier().min(f16::MAX.to_f32()));
    WeightScale::from_stored(half.to_f32()).expect("the least scale is an f16 above 0")
}

/// Codes and scale of a group of dequantised values; `None` if it holds other magnitudes.
#[expect(clippy::float_cmp, reason = "dequantised values are exactly these")]
fn dequantised(values: &[f32], group: Group) -> Option<(Vec<i8>, f32)> {
    let magnitudes = values.iter().map(|value| value.abs()).filter(|&value| value != 0.0);
    // The smallest magnitude, not the largest: a code of +2 has twice the scale.
    let scale = magnitudes.fold(f32::INFINITY, f32::min);
    if scale.is_infinite() {
        let scale = group_scale(values, group).multiplier();
        return values.iter().all(|&value| value == 0.0).then(|| (vec![0; values.len()], scale));
    }
    // Files hold the scales of groups as f16: another value is a latent that stands alone in its
    // group.
    if group != Group::Row && f16::from_f32(scale).to_f32() != scale {
        return None;
    }
    let code = |&value: &f32| match value {
        0.0 => Some(0),
        value if value == scale => Some(1),
        value if value == -scale => Some(-1),
        value if value == 2.0 * scale && group != Group::Row => Some(2),
        _ => None,
    };
    Some((values.iter().map(code).collect::<Option<_>>()?, scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{SCALE_EPS, ternary_codes};
    use proptest::prelude::*;

    #[test]
    fn each_group_has_the_absmean_of_its_own_weights() {
        let mut latents = vec![1.0; 64];
        latents.extend([0.25; 64]);
        latents[3] = -0.4;
        let found = GroupedTernary::of_latents(128, Group::Columns(64), &latents);
        let mean = f16::from_f32((63.0 + 0.4) / 64.0).to_f32();
        assert_eq!(found.scales(), [mean, 0.25]);
        assert_eq!((found.codes()[2], found.codes()[3], found.codes()[100]), (1, 0, 1));
        assert_eq!((found.rows(), found.largest_code(), found.is_zero()), (1, 1, false));
    }

    #[test]
    fn a_row_is_quantised_as_a_matrix_of_one_row() {
        let latents: Vec<f32> = (0..70).map(|i| (i % 9) as f32 * 0.1 - 0.37).collect();
        let found = GroupedTernary::of_latents(70, Group::Row, &latents);
        let scale = WeightScale::of_latents(&latents);
        assert_eq!(found.scales(), [scale.multiplier()], "an f32 that is no f16");
        assert_eq!(found.codes(), ternary_codes(&latents, scale));
        assert_eq!(found.half_scales(), None);
    }

    #[test]
    fn scales_stay_within_f16() {
        let small = GroupedTernary::of_latents(64, Group::Columns(64), &[0.0; 64]);
        assert_eq!(small.scales(), [f16::from_f32(SCALE_EPS).to_f32()]);
        assert!(small.is_zero() && small.scales()[0] > 0.0);
        let large = GroupedTernary::of_latents(64, Group::Columns(64), &[1e6; 64]);
        assert_eq!(large.scales(), [65504.0]);
    }

    #[test]
    fn dequantised_values_keep_their_scales_and_the_code_2() {
        let mut codes: Vec<i8> = (0..256).map(|i| [0, 1, -1, 1, 0][i % 5]).collect();
        codes[7] = 2;
        codes[64..128].fill(0);
        let stored = GroupedTernary::new(
            128,
            64,
            codes,
            vec![0.5, group_scale(&[0.0], Group::Columns(64)).multiplier(), 0.125, 3.0],
        );
        assert_eq!(GroupedTernary::of_floats(128, Group::Columns(64), &stored.values()), stored);
        let mut latents = stored.values();
        latents[200] = 0.7;
        let found = GroupedTernary::of_floats(128, Group::Columns(64), &latents);
        assert_eq!(found, GroupedTernary::of_latents(128, Group::Columns(64), &latents));
    }

    #[test]
    fn a_part_is_some_of_the_rows() {
        let whole =
            GroupedTernary::new(64, 64, [[1; 64], [0; 64], [-1; 64]].concat(), vec![1.0, 2.0, 3.0]);
        let part = whole.part(1..3);
        assert_eq!((part.rows(), part.scales()), (2, &[2.0, 3.0][..]));
        assert_eq!(part.codes()[64], -1);
    }

    proptest! {
        #[test]
        fn quantising_what_was_quantised_changes_nothing(
            latents in prop::collection::vec(-4.0f32..4.0, 256), narrow: bool,
        ) {
            let width = if narrow { 64 } else { 128 };
            let once = GroupedTernary::of_latents(128, Group::Columns(width), &latents);
            let scale = |at: usize| once.scales()[at / width];
            for (at, (&code, &latent)) in once.codes().iter().zip(&latents).enumerate() {
                let level = (latent * (1.0 / scale(at))).round_ties_even().clamp(-1.0, 1.0);
                prop_assert_eq!(f32::from(code), level);
            }
            prop_assert_eq!(GroupedTernary::of_floats(128, Group::Columns(width), &once.values()), once);
        }
    }
}
