//! The backward products of a ternary layer in integers: the gradient of its output is brought to eight
//! bits, once along each axis, and multiplied with the codes of the forward pass.
//!
//! ```text
//! g[t,o] = round(dy[t,o]·m[o] · s[t])     s[t] = 127 / max over o     dx[t,i] = (Σ_o g[t,o]·T[o,i]) / s[t]
//! h[o,t] = round(dy[t,o]/a[t] · r[o])     r[o] = 127 / max over t     dw[o,i] = (Σ_t h[o,t]·q[t,i]) / r[o]
//! ```
//!
//! The sums are exact integers, so every kernel gives the same bits. A value that is not finite makes all
//! results of its scale NaN; values so small that their scale would be infinite count as zeros.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_format::quant::ActivationScale;

use crate::layout::{CHUNK, LineBuffer, SimdWork};
use crate::rounding::Rounding;
use crate::{Activations, Int8Matrix, Kernel, TernaryPanels, matmul};

/// Tokens that are quantised and multiplied before the next ones.
const TOKENS_PER_PASS: usize = 64;

/// Rows of `dw` that are multiplied before the next ones where they are added to others.
const ROWS_PER_PASS: usize = 32;

/// Columns that are quantised together.
const STRIP: usize = 128;

/// Tokens whose codes fill a line of the cache, in quads.
const QUADS: usize = 16;

/// What an 8-bit gradient does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundedAway {
    /// Entries that were quantised.
    pub entries: u64,
    /// Those that were not zero and became it.
    pub lost: u64,
}

impl std::ops::AddAssign for RoundedAway {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.lost += other.lost;
    }
}

/// The gradient of a layer's output, `[T, N]` or some columns of it.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradient<'a> {
    /// `[T, stride]`
    pub values: &'a [f32],
    /// Values of a token.
    pub stride: usize,
    /// How it is rounded.
    pub rounding: Rounding,
    /// The place of the first value among those that share random bits.
    pub place: usize,
}

/// `dx [T, K]`, or that added to it: what these columns of `dy` contribute; `weights` are their transposed
/// codes `[K, columns]` at scale one, `factors [columns]` the scale of each.
pub fn input_gradient(
    kernel: Kernel,
    weights: &TernaryPanels,
    (dy, columns): (OutputGradient, Range<usize>),
    factors: &[f32],
    (add, dx): (bool, &mut [f32]),
) -> RoundedAway {
    let (width, depth) = (weights.rows(), columns.len());
    assert_eq!(factors.len(), depth, "a factor for each column");
    assert_eq!(dx.len() * dy.stride, dy.values.len() * width, "a row of dx for each of dy");
    let (mut codes, mut away) = (Activations::default(), RoundedAway::default());
    let mut sums = vec![0.0; if add { dx.len().min(TOKENS_PER_PASS * width) } else { 0 }];
    for (pass, dx) in dx.chunks_mut(TOKENS_PER_PASS * width).enumerate() {
        let (first, mut broken) = (pass * TOKENS_PER_PASS, Vec::new());
        // `m[o]` is multiplied in before rounding, because the sum runs over `o`: a factor that
        // differs within the sum cannot be taken out of it.
        codes.fill(kernel, [dx.len() / width, depth], |token, codes| {
            let at = (first + token) * dy.stride + columns.start;
            let (values, place) = (&dy.values[at..][..depth], dy.place + at);
            let row = QuantiseRow { values, factors, rounding: dy.rounding, place, codes };
            let row = kernel.dispatch(row);
            if row.largest.is_none() {
                broken.push(token);
            }
            away += RoundedAway { entries: depth as u64, lost: u64::from(row.lost) };
            // `broken` rows get codes 0 here and NaN below: an integer sum cannot carry a NaN.
            row.scale()
        });
        if add {
            let sums = &mut sums[..dx.len()];
            matmul(kernel, weights, &codes, 0..width, sums);
            dx.iter_mut().zip(sums).for_each(|(dx, sum)| *dx += *sum);
        } else {
            matmul(kernel, weights, &codes, 0..width, dx);
        }
        for row in broken {
            dx[row * width..][..width].fill(f32::NAN);
        }
    }
    away
}

/// `dw [columns, K]`, or that added to it: the rows that belong to these columns of `dy`; `activations`
/// are the transposed codes `[K, T]` at scale one, `factors [T]` the inverse of each token's scale.
pub fn weight_gradient(
    kernel: Kernel,
    activations: &Int8Matrix,
    (dy, columns): (OutputGradient, Range<usize>),
    factors: &[f32],
    (add, dw): (bool, &mut [f32]),
) -> RoundedAway {
    let width = activations.rows();
    assert_eq!(factors.len(), activations.columns(), "a factor for each token");
    assert_eq!(dw.len(), columns.len() * width, "a row of dw for each column");
    let mut away = RoundedAway::default();
    let mut sums = vec![0.0; if add { ROWS_PER_PASS * width } else { 0 }];
    for first in columns.clone().step_by(STRIP) {
        let strip = first..columns.end.min(first + STRIP);
        let dw = &mut dw[(first - columns.start) * width..][..strip.len() * width];
        // The same gradient once more, with scales along the other axis: this sum runs over the
        // tokens.
        let work = QuantiseColumns { dy, strip, factors };
        let (codes, largest, lost) = kernel.dispatch(work);
        away += RoundedAway { entries: (codes.tokens() * factors.len()) as u64, lost };
        for row in (0..codes.tokens()).step_by(ROWS_PER_PASS) {
            let rows = row..codes.tokens().min(row + ROWS_PER_PASS);
            let dw = &mut dw[row * width..][..rows.len() * width];
            if add {
                let sums = &mut sums[..dw.len()];
                activations.matmul_tokens(kernel, &codes, rows, 0..width, sums);
                dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw += *sum);
            } else {
                activations.matmul_tokens(kernel, &codes, rows, 0..width, dw);
            }
        }
        let broken = largest.iter().zip(dw.chunks_exact_mut(width));
        broken.filter(|(largest, _)| largest.is_none()).for_each(|(_, dw)| dw.fill(f32::NAN));
    }
    away
}

/// The bits of a magnitude; those of two order as the magnitudes do, NaN above all.
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The magnitude that these bits are of, if it is finite.
#[inline(always)]
fn finite(bits: u32) -> Option<f32> {
    Some(f32::from_bits(bits)).filter(|value| value.is_finite())
}

/// What values are multiplied by before they are rounded; 0 where they count as zeros.
#[inline(always)]
fn multiplier(largest: Option<f32>) -> f32 {
    let scale = 127.0 / largest.unwrap_or(0.0);
    if scale.is_finite() { scale } else { 0.0 }
}

/// That multiplier as what divides a product.
fn divisor(multiplier: f32) -> ActivationScale {
    ActivationScale::from_stored(multiplier).unwrap_or(ActivationScale::ONE)
}

/// The code of a scaled value; the noise lies between -0.5 and 0.5, both excluded.
#[inline(always)]
fn code(scaled: f32, noise: f32) -> i8 {
    // A sum that has no room for fractions: its low byte is the integer.
    const NO_FRACTIONS: f32 = 12_582_912.0; // 1.5 · 2²³
    // 1.5 · 2²³ + x with |x| < 2²²: the unit of such a float is 1, so the addition itself rounds
    // half to even, and the fraction's low byte is x in two's complement.
    (scaled.clamp(-127.0, 127.0) + noise + NO_FRACTIONS).to_bits() as u8 as i8
}

/// Turns nearest into stochastic rounding when it is added before.
#[inline(always)]
fn noise(bits: u32) -> f32 {
    // 16 bits, centred: the 65,536 values are symmetric about 0, so rounding is right on average.
    (bits as f32 + 0.5) * (1.0 / 65536.0) - 0.5
}

/// One token on its way to codes.
struct QuantiseRow<'a> {
    values: &'a [f32],
    factors: &'a [f32],
    rounding: Rounding,
    place: usize,
    codes: &'a mut [i8],
}

/// What is known of a row that was quantised.
struct QuantisedRow {
    /// Its largest magnitude, if all are finite.
    largest: Option<f32>,
    lost: u32,
}

impl QuantisedRow {
    fn scale(&self) -> ActivationScale {
        divisor(multiplier(self.largest))
    }
}

impl SimdWork for QuantiseRow<'_> {
    type Output = QuantisedRow;

    #[inline(always)]
    fn run(self) -> QuantisedRow {
        let Self { values, factors, rounding, place, codes } = self;
        let products = values.iter().zip(factors).map(|(value, factor)| value * factor);
        let largest = finite(products.fold(0, |max, product| max.max(magnitude(product))));
        if largest.is_none() {
            codes.fill(0);
            return QuantisedRow { largest, lost: 0 };
        }
        let scale = multiplier(largest);
        let lost = match rounding {
            Rounding::Nearest => row_codes(values, factors, scale, codes, |_| 0.0),
            Rounding::Stochastic(random) => {
                row_codes(values, factors, scale, codes, |i| noise(random.bits(place + i)))
            }
        };
        QuantisedRow { largest, lost }
    }
}

/// Returns how many became zero.
#[inline(always)]
fn row_codes(
    values: &[f32],
    factors: &[f32],
    scale: f32,
    codes: &mut [i8],
    noise: impl Fn(usize) -> f32,
) -> u32 {
    let mut lost = 0;
    for (i, ((place, value), factor)) in codes.iter_mut().zip(values).zip(factors).enumerate() {
        let product = value * factor;
        *place = code(product * scale, noise(i));
        lost += u32::from(*place == 0 && product != 0.0);
    }
    lost
}

/// Columns on their way to codes, each a row of them.
struct QuantiseColumns<'a> {
    dy: OutputGradient<'a>,
    strip: Range<usize>,
    factors: &'a [f32],
}

impl SimdWork for QuantiseColumns<'_> {
    /// With the largest magnitude of each column, if all of it are finite, and how many were lost.
    type Output = (Activations, Vec<Option<f32>>, u64);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (count, depth) = (self.strip.len(), self.factors.len());
        let mut largest = [0u32; STRIP];
        for (token, factor) in self.factors.iter().enumerate() {
            for (largest, value) in largest.iter_mut().zip(self.row(token)) {
                *largest = (*largest).max(magnitude(value * factor));
            }
        }
        let largest: Vec<Option<f32>> = largest[..count].iter().map(|&bits| finite(bits)).collect();
        let mut multipliers = [0.0; STRIP];
        for (place, largest) in multipliers.iter_mut().zip(&largest) {
            *place = multiplier(*largest);
        }
        let chunks = depth.div_ceil(CHUNK);
        let mut codes = LineBuffer::zeros(count * chunks);
        let mut sums = [0; STRIP];
        let lost = match self.dy.rounding {
            Rounding::Nearest => self.codes(&multipliers, &mut codes, &mut sums, |_| 0.0),
            Rounding::Stochastic(random) => {
                self.codes(&multipliers, &mut codes, &mut sums, |at| noise(random.bits(at)))
            }
        };
        for (column, _) in largest.iter().enumerate().filter(|(_, largest)| largest.is_none()) {
            codes[column * chunks..][..chunks].fill([0; CHUNK]);
            sums[column] = 0;
        }
        let scales = multipliers[..count].iter().map(|&multiplier| divisor(multiplier)).collect();
        (Activations::from_parts(depth, codes, sums[..count].to_vec(), scales), largest, lost)
    }
}

impl QuantiseColumns<'_> {
    /// The values of a token.
    #[inline(always)]
    fn row(&self, token: usize) -> &[f32] {
        &self.dy.values[token * self.dy.stride..][self.strip.clone()]
    }

    /// Fills `codes [count, chunks]` and their `sums`; returns how many became zero.
    #[inline(always)]
    fn codes(
        &self,
        multipliers: &[f32; STRIP],
        codes: &mut [[i8; CHUNK]],
        sums: &mut [i32; STRIP],
        noise: impl Fn(usize) -> f32 + Copy,
    ) -> u64 {
        let (depth, chunks) = (self.factors.len(), self.factors.len().div_ceil(CHUNK));
        // A transposition in two steps. Tokens arrive row by row; byte t % 4 of word [t /
        // 4][column] collects four of them, and when 64 are there each column's 64 codes are
        // written in one go:
        //
        //    dy row t   c0 c1 c2 …       words[t / 4]   [ t0 t1 t2 t3 ] of c0 | … of c1 | …
        let (mut words, mut lost) = ([[0u32; STRIP]; QUADS], 0);
        for first in (0..depth).step_by(4 * QUADS) {
            let tokens = first..depth.min(first + 4 * QUADS);
            words.fill([0; STRIP]);
            for token in tokens.clone() {
                let (at, words) = (token - first, &mut words[(token - first) / 4]);
                lost += u64::from(self.add_token(token, at % 4, multipliers, words, sums, noise));
            }
            // Four codes of a column lie in each word; a column's line is written at once.
            let quads = tokens.len().div_ceil(CHUNK) * CHUNK / 4;
            for (column, codes) in codes.chunks_exact_mut(chunks).enumerate() {
                let line = codes[first / CHUNK..].as_flattened_mut().as_chunks_mut::<4>().0;
                for (place, words) in line.iter_mut().zip(&words[..quads]) {
                    *place = words[column].to_le_bytes().map(u8::cast_signed);
                }
            }
        }
        lost
    }

    /// Puts the codes of a token into byte `at` of each column's word.
    #[inline(always)]
    fn add_token(
        &self,
        token: usize,
        at: usize,
        multipliers: &[f32; STRIP],
        words: &mut [u32; STRIP],
        sums: &mut [i32; STRIP],
        noise: impl Fn(usize) -> f32,
    ) -> u32 {
        let (factor, mut lost) = (self.factors[token], 0);
        let place = self.dy.place + token * self.dy.stride + self.strip.start;
        let places = words.iter_mut().zip(sums).zip(multipliers);
        for (i, (((word, sum), multiplier), value)) in places.zip(self.row(token)).enumerate() {
            let product = value * factor;
            // Random bits are named by the place in `dy`, not by the order of work: neither strips
            // nor threads change them.
            let code = code(product * multiplier, noise(place + i));
            lost += u32::from(code == 0 && product != 0.0);
            *sum += i32::from(code);

            *word |= u32::from(code.cast_unsigned()) << (8 * at);
        }
        lost
    }
}
