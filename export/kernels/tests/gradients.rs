//! The backward products in integers, on every kernel of this CPU, against their definition in plain
//! arithmetic: the same bits on any shape.
#![allow(clippy::float_cmp, reason = "tests state exact values")]

use std::ops::Range;

use bitnet_format::quant::WeightScale;
use bitnet_kernels::{
    Int8Matrix, Kernel, OutputGradient, RandomBits, RoundedAway, Rounding, TernaryPanels,
    input_gradient, weight_gradient,
};
use proptest::prelude::*;

/// A layer `in -> out` and what its backward pass has: codes, scales, the gradient of the output.
struct Case {
    width: usize,
    weights: Vec<i8>,
    activations: Vec<i8>,
    weight_scales: Vec<f32>,
    inverse_scales: Vec<f32>,
    dy: Vec<f32>,
    rounding: Rounding,
    place: usize,
}

impl Case {
    fn random([tokens, width, out]: [usize; 3], stochastic: bool, seed: u64) -> Self {
        let mut state = seed;
        // A small generator of numbers in [0, 1), so that a failing case is repeated by its seed.
        let mut one = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        // Magnitudes over ten powers of ten, a few zeros.
        let value = |x: f32, y: f32| if x < 0.05 { 0.0 } else { (y - 0.5) * 10f32.powf(-10.0 * x) };
        Self {
            width,
            weights: (0..out * width).map(|_| (one() * 3.0) as i8 - 1).collect(),
            activations: (0..tokens * width).map(|_| (one() * 255.0) as u8 as i8).collect(),
            weight_scales: (0..out).map(|_| 0.01 + one()).collect(),
            inverse_scales: (0..tokens).map(|_| 0.001 + one() / 50.0).collect(),
            dy: (0..tokens * out).map(|_| value(one(), one())).collect(),
            rounding: if stochastic {
                Rounding::Stochastic(RandomBits::new(seed as u32, (seed >> 32) as u32))
            } else {
                Rounding::Nearest
            },
            place: (seed % 1000) as usize,
        }
    }

    fn out(&self) -> usize {
        self.weight_scales.len()
    }

    /// The codes of values that lie at these places, and their scale.
    fn codes(&self, values: &[(usize, f32)]) -> (Vec<i32>, f32) {
        let largest = values.iter().fold(0.0f32, |max, (_, x)| max.max(x.abs()));
        let scale = 127.0 / largest;
        if !scale.is_finite() {
            return (vec![0; values.len()], 1.0);
        }
        let code = |&(place, value): &(usize, f32)| {
            let noise = match self.rounding {
                Rounding::Nearest => 0.0,
                Rounding::Stochastic(bits) => (bits.bits(place) as f32 + 0.5) / 65536.0 - 0.5,
            };
            ((value * scale).clamp(-127.0, 127.0) + noise).round_ties_even() as i32
        };
        (values.iter().map(code).collect(), scale)
    }

    fn expected_input(&self, columns: Range<usize>) -> Vec<f32> {
        let mut dx = Vec::new();
        for (token, dy) in self.dy.chunks(self.out()).enumerate() {
            let first = self.place + token * self.out() + columns.start;
            let factors = &self.weight_scales[columns.clone()];
            let products = dy[columns.clone()].iter().zip(factors).map(|(dy, m)| dy * m);
            let (codes, scale) = self.codes(&(first..).zip(products).collect::<Vec<_>>());
            dx.extend((0..self.width).map(|i| {
                let rows = self.weights.chunks(self.width).skip(columns.start);
                let terms = codes.iter().zip(rows);
                let sum: i32 = terms.map(|(code, row)| code * i32::from(row[i])).sum();
                sum as f32 / scale
            }));
        }
        dx
    }

    fn expected_weights(&self, columns: Range<usize>) -> Vec<f32> {
        let mut dw = Vec::new();
        for column in columns {
            let value = |(token, inverse): (usize, &f32)| {
                let at = token * self.out() + column;
                (self.place + at, self.dy[at] * inverse)
            };
            let values = self.inverse_scales.iter().enumerate().map(value);
            let (codes, scale) = self.codes(&values.collect::<Vec<_>>());
            dw.extend((0..self.width).map(|i| {
                let terms = codes.iter().zip(self.activations.chunks(self.width));
                let sum: i32 = terms.map(|(code, row)| code * i32::from(row[i])).sum();
                sum as f32 / scale
            }));
        }
        dw
    }

    fn dy(&self) -> OutputGradient<'_> {
        let Self { dy, rounding, place, .. } = self;
        OutputGradient { values: dy, stride: self.out(), rounding: *rounding, place: *place }
    }

    fn input(
        &self,
        kernel: Kernel,
        columns: Range<usize>,
        before: Option<f32>,
    ) -> (Vec<f32>, RoundedAway) {
        let one = vec![WeightScale::from_stored(1.0).unwrap(); self.width];
        let mut panels = TernaryPanels::for_rows(columns.len(), one);
        let codes = &self.weights[columns.start * self.width..columns.end * self.width];
        panels.groups().for_each(|mut group| group.transpose(kernel, codes));
        let mut dx = vec![before.unwrap_or(7.0); self.inverse_scales.len() * self.width];
        let factors = &self.weight_scales[columns.clone()];
        let out = (before.is_some(), &mut dx[..]);
        let away = input_gradient(kernel, &panels, (self.dy(), columns), factors, out);
        (dx, away)
    }

    fn weights(&self, kernel: Kernel, columns: Range<usize>, before: Option<f32>) -> Vec<f32> {
        let mut matrix = Int8Matrix::for_transpose(self.width, self.inverse_scales.len());
        matrix.panel_groups(2).for_each(|group| group.transpose(kernel, &self.activations));
        let mut dw = vec![before.unwrap_or(7.0); columns.len() * self.width];
        let (dy, out) = ((self.dy(), columns), (before.is_some(), &mut dw[..]));
        weight_gradient(kernel, &matrix, dy, &self.inverse_scales, out);
        dw
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_gradients_are_those_of_the_definition(
        tokens in 1usize..150, width in 1usize..70, out in 1usize..150, stochastic: bool, seed: u64,
    ) {
        let case = Case::random([tokens, width, out], stochastic, seed);
        let some = out / 3..out - out / 4;
        let add = |values: &[f32]| values.iter().map(|value| 0.25 + value).collect::<Vec<f32>>();
        for columns in [0..out, some] {
            let dx = case.expected_input(columns.clone());
            let dw = case.expected_weights(columns.clone());
            for kernel in Kernel::available() {
                let input = |before| case.input(kernel, columns.clone(), before).0;
                let weights = |before| case.weights(kernel, columns.clone(), before);
                prop_assert_eq!(&input(None), &dx, "{:?}", kernel);
                prop_assert_eq!(&input(Some(0.25)), &add(&dx), "{:?}", kernel);
                prop_assert_eq!(&weights(None), &dw, "{:?}", kernel);
                prop_assert_eq!(&weights(Some(0.25)), &add(&dw), "{:?}", kernel);
            }
        }
    }
}

#[test]
fn the_largest_sums_are_exact() {
    // 65,536 tokens of ±127: the largest sum is 127 · 128 · 65,536, near 2³⁰, and 255 · 127 · 65,536 is
    // near 2³¹ within the product.
    let mut case = Case::random([1 << 16, 1, 1], false, 1);
    for activation in [127, -127, -128] {
        case.activations.fill(activation);
        case.inverse_scales.fill(1.0);
        for sign in [1.0f32, -1.0] {
            case.dy.fill(sign);
            let expected = sign * f32::from(activation) * 65536.0;
            for kernel in Kernel::available() {
                let found = case.weights(kernel, 0..1, None)[0];
                assert!((found / expected - 1.0).abs() < 1e-6, "{kernel:?} {found} {expected}");
            }
        }
    }
}

#[test]
fn rounding_is_right_on_average_only_when_it_is_stochastic() {
    // One entry sets the scale; the others are a tenth of a step.
    let mut case = Case::random([1, 1, 4097], true, 3);
    case.weights.fill(1);
    case.weight_scales.fill(1.0);
    case.dy.fill(0.1);
    (case.dy[0], case.weights[0]) = (127.0, 0);
    let (dx, away) = case.input(Kernel::detect(), 0..4097, None);
    // Four standard deviations: a code is 1 in a tenth of all cases.
    let deviation = (4096.0f32 * 0.1 * 0.9).sqrt();
    assert!((dx[0] - 409.6).abs() < 4.0 * deviation, "{}", dx[0]);
    assert_eq!(away.entries, 4097);
    assert_eq!(away.lost, 4096 - dx[0] as u64);
    case.rounding = Rounding::Nearest;
    let (dx, away) = case.input(Kernel::detect(), 0..4097, None);
    assert_eq!((dx[0], away.lost), (0.0, 4096));
}

#[test]
fn values_that_are_not_finite_stay_and_too_small_ones_become_zero() {
    let mut case = Case::random([3, 5, 4], true, 9);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        case.dy[4 + 2] = bad;
        for kernel in Kernel::available() {
            let (dx, dw) = (case.input(kernel, 0..4, None).0, case.weights(kernel, 0..4, None));
            for (row, dx) in dx.chunks(5).enumerate() {
                assert!(dx.iter().all(|dx| dx.is_nan() == (row == 1)), "{kernel:?} {dx:?}");
            }
            for (row, dw) in dw.chunks(5).enumerate() {
                assert!(dw.iter().all(|dw| dw.is_nan() == (row == 2)), "{kernel:?} {dw:?}");
            }
        }
    }
    case.dy.fill(1e-40);
    for kernel in Kernel::available() {
        assert_eq!(case.input(kernel, 0..4, None).0, [0.0; 15]);
        assert_eq!(case.weights(kernel, 0..4, None), [0.0; 20]);
    }
}
