//! Moments of the optimizer in fewer bits than f32, updated chunk by chunk.
//!
//! ```text
//! bf16   the nearest bf16
//! 8bit   blocks of 128 values, each with its largest magnitude a (f32); both on a log scale:
//!        second   a · 2^(−c/8), c in 0..=255             no code means zero
//!        first    ± a · 2^(−c/8), c in 0..=126, or zero
//! ```
//!
//! An update computes with the fresh f32 values and keeps one of the two neighbours that can be kept, at
//! random and right on average. The nearest would not do: a step of the scale is 9 % of a value, a moment
//! with `β = 0.98` moves by 2 % an update, so one whose gradients fade would never come down.
//!
//! A second moment of zero would divide by eps alone, so its smallest code stands for `a · 2⁻³²` (maps
//! that have a zero blow single steps up by 1e7 and more; linear first moments starve small gradients).
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::borrow::Cow;

use bitnet_format::writer::little_endian;
use bitnet_kernels::{RandomBits, Rounding};
use rayon::prelude::*;

use crate::latents::MomentFormat;
use crate::latents::codec::{CHUNK, bf16_at_random, bf16_bits, widen};

/// Values that share a scale.
pub(crate) const BLOCK: usize = crate::latents::MOMENT_BLOCK;

/// Which of the two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentKind {
    /// The mean of the gradients.
    First,
    /// The mean of their squares.
    Second,
}

/// One moment of one tensor.
#[derive(Clone, Debug)]
pub(crate) enum Moment {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    EightBit { kind: MomentKind, codes: Vec<u8>, scales: Vec<f32> },
}

impl Moment {
    /// All zero.
    pub(crate) fn zeros(format: MomentFormat, kind: MomentKind, count: usize) -> Self {
        match format {
            MomentFormat::F32 => Self::F32(vec![0.0; count]),
            MomentFormat::Bf16 => Self::Bf16(vec![0; count]),
            // The scale of 0 makes every code zero.
            MomentFormat::EightBit => {
                let scales = vec![0.0; count.div_ceil(BLOCK)];
                Self::EightBit { kind, codes: vec![0; count], scales }
            }
        }
    }

    /// These values, each as the nearest that can be kept. A value that was kept before stays as it was.
    pub(crate) fn of(format: MomentFormat, kind: MomentKind, values: &[f32]) -> Self {
        let mut moment = Self::zeros(format, kind, values.len());
        let chunks = moment.chunks().into_par_iter().zip(values.par_chunks(CHUNK));
        chunks.for_each(|(mut chunk, values)| {
            chunk.store_rounded(values, Rounding::Nearest);
        });
        moment
    }

    pub(crate) fn chunks(&mut self) -> Vec<MomentChunk<'_>> {
        match self {
            Self::F32(values) => values.chunks_mut(CHUNK).map(MomentChunk::F32).collect(),
            Self::Bf16(words) => words.chunks_mut(CHUNK).map(MomentChunk::Bf16).collect(),
            Self::EightBit { kind, codes, scales } => {
                let pairs = codes.chunks_mut(CHUNK).zip(scales.chunks_mut(CHUNK / BLOCK));
                let chunk = |(codes, scales)| MomentChunk::EightBit { kind: *kind, codes, scales };
                pairs.map(chunk).collect()
            }
        }
    }

    /// The bytes of a file, and the scales, which are a tensor of their own.
    pub(crate) fn stored(&self) -> (Cow<'_, [u8]>, Option<&[f32]>) {
        match self {
            Self::F32(values) => (little_endian(values), None),
            Self::Bf16(words) => (little_endian(words), None),
            Self::EightBit { codes, scales, .. } => (Cow::Borrowed(codes), Some(scales)),
        }
    }
}

/// Eight-bit codes as values.
pub(crate) fn decode(kind: MomentKind, codes: &[u8], scales: &[f32], out: &mut [f32]) {
    for ((out, codes), &scale) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
        match kind {
            MomentKind::First => decode_first(codes, scale, out),
            MomentKind::Second => decode_second(codes, scale, out),
        }
    }
}

/// A chunk of a moment, in the form it is kept in.
pub(crate) enum MomentChunk<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
    EightBit { kind: MomentKind, codes: &'a mut [u8], scales: &'a mut [f32] },
}

impl MomentChunk<'_> {
    #[inline(always)]
    pub(crate) fn load(&self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out.copy_from_slice(values),
            Self::Bf16(words) => widen(words, out),
            Self::EightBit { kind: MomentKind::First, codes, scales } => {
                let blocks = out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(&**scales);
                blocks.for_each(|((out, codes), &scale)| decode_first(codes, scale, out));
            }
            Self::EightBit { kind: MomentKind::Second, codes, scales } => {
                let blocks = out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(&**scales);
                blocks.for_each(|((out, codes), &scale)| decode_second(codes, scale, out));
            }
        }
    }

    /// Keeps new values, each rounded at random to one of the two neighbours that can be kept.
    #[inline(always)]
    pub(crate) fn store(&mut self, values: &[f32], random: RandomBits) {
        self.store_rounded(values, Rounding::Stochastic(random));
    }

    #[inline(always)]
    fn store_rounded(&mut self, values: &[f32], rounding: Rounding) {
        match self {
            Self::F32(kept) => kept.copy_from_slice(values),
            Self::Bf16(words) => {
                for (index, (word, &value)) in words.iter_mut().zip(values).enumerate() {
                    *word = match rounding {
                        Rounding::Nearest => bf16_bits(value),
                        Rounding::Stochastic(random) => bf16_at_random(value, random.bits(index)),
                    };
                }
            }
            Self::EightBit { kind, codes, scales } => {
                let blocks = codes.chunks_mut(BLOCK).zip(&mut **scales).zip(values.chunks(BLOCK));
                for (block, ((codes, scale), values)) in blocks.enumerate() {
                    // The block's scale is that of the new values: a block whose gradients fade
                    // keeps its resolution.
                    *scale = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    let log = LogRounding { rounding, first: block * BLOCK };
                    match kind {
                        MomentKind::First => encode_first(values, *scale, codes, log),
                        MomentKind::Second => encode_second(values, *scale, codes, log),
                    }
                }
            }
        }
    }
}

/// 2^(−1/8), 2^(−2/8) and 2^(−4/8): what the three bits of an eighth stand for.
const ROOTS: [f32; 3] = [0.917_004_04, 0.840_896_4, 0.707_106_77];

/// 2^(−c/8) of a code, within two roundings. Products of the bits' factors instead of a table, which no
/// instruction set reads sixteen times at once.
#[inline(always)]
fn level(code: u32) -> f32 {
    // Whole powers of two go straight into the exponent.
    let mut level = f32::from_bits(1f32.to_bits() - ((code >> 3) << 23));
    for (bit, root) in ROOTS.into_iter().enumerate() {
        level *= if code & (1 << bit) == 0 { 1.0 } else { root };
    }
    level
}

/// `⌊8 · log2(ratio)⌋` of a ratio of at least 1, but for ratios within three roundings of an eighth;
/// infinity gives 1024.
#[inline(always)]
fn eighths(ratio: f32) -> u32 {
    let bits = ratio.to_bits();
    // Eight codes for each power of two; then bit by bit, from the highest, whether what is left
    // reaches the bit's factor.
    let mut code = (bits >> 23).wrapping_sub(127) << 3;
    let mut rest = f32::from_bits(bits & 0x7f_ffff | 1f32.to_bits());
    for (bit, root) in ROOTS.into_iter().enumerate().rev() {
        let reached = rest * root >= 1.0;
        rest *= if reached { root } else { 1.0 };
        code |= u32::from(reached) << bit;
    }
    code
}

/// How the values of a block become codes of the log scale.
#[derive(Clone, Copy)]
struct LogRounding {
    rounding: Rounding,
    /// The place of the block's first value in its chunk.
    first: usize,
}

impl LogRounding {
    /// What a ratio is multiplied by before [`eighths`] cuts it to a code.
    ///
    /// The nearest code is half a step, `2^(1/16)`, further on. At random, with levels `U` and `L = U·2^(−1/8)`
    /// around a value `v`:
    ///
    /// ```text
    /// L          s ≤ v: U          U        v becomes U with the probability (v − L) / (U − L),
    /// ├──────────────┼─────────────┤        where s is drawn between L and U
    ///              v │ s > v: L
    /// ```
    ///
    /// With `s` as a share of `U`, uniform from `2^(−1/8)` to 1, the ratio `a / v` becomes `a / v · s`, and the
    /// code is the next whole eighth above, that is one step further on and cut. `s` stays half of one
    /// of 16,384 steps away from both ends, more than the rounding of all these products, so a value that is a
    /// level stays that level.
    #[inline(always)]
    fn factor(self, index: usize) -> f32 {
        /// `2^(1/16)`.
        const HALF_A_STEP: f32 = 1.044_273_8;
        /// `2^(1/8) − 1`: the length of the interval of `2^(1/8)·s`.
        const SPAN: f32 = 0.090_507_73;
        match self.rounding {
            Rounding::Nearest => HALF_A_STEP,
            Rounding::Stochastic(random) => {
                let drawn = (random.bits(self.first + index) >> 2) as f32 + 0.5;
                1.0 + drawn * (SPAN / 16384.0)
            }
        }
    }
}

#[inline(always)]
fn encode_second(values: &[f32], scale: f32, codes: &mut [u8], log: LogRounding) {
    // Where all are zero the code does not matter.
    let scale = if scale > 0.0 { scale } else { 1.0 };
    for (index, (code, value)) in codes.iter_mut().zip(values).enumerate() {
        *code = eighths(scale / value.abs() * log.factor(index)).min(255) as u8;
    }
}

#[inline(always)]
fn decode_second(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = scale * level(u32::from(code));
    }
}

/// The magnitude's code of a first moment of zero.
const ZERO: u32 = 127;

#[inline(always)]
fn encode_first(values: &[f32], scale: f32, codes: &mut [u8], log: LogRounding) {
    let scale = if scale > 0.0 { scale } else { 1.0 };
    for (index, (code, value)) in codes.iter_mut().zip(values).enumerate() {
        let sign = (value.to_bits() >> 24) & 0x80;
        *code = (eighths(scale / value.abs() * log.factor(index)).min(ZERO) | sign) as u8;
    }
}

#[inline(always)]
fn decode_first(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        let magnitude = u32::from(code) & ZERO;
        let level = if magnitude == ZERO { 0.0 } else { level(magnitude) };
        let sign = (u32::from(code) & 0x80) << 24;
        *out = f32::from_bits((scale * level).to_bits() | sign);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latents::rounding::RoundingKey;
    use proptest::prelude::*;

    fn kept(moment: &mut Moment, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        for (chunk, out) in moment.chunks().iter().zip(values.chunks_mut(CHUNK)) {
            chunk.load(out);
        }
        values
    }

    /// The definition, in f64.
    fn expected(kind: MomentKind, value: f32, largest: f32) -> f64 {
        let [value, largest] = [value, largest].map(f64::from);
        if largest == 0.0 {
            return 0.0;
        }
        let code = (8.0 * (largest / value.abs()).log2()).round();
        match kind {
            MomentKind::First if code > 126.0 => 0.0,
            MomentKind::First => value.signum() * largest * 2f64.powf(-code / 8.0),
            MomentKind::Second => largest * 2f64.powf(-code.min(255.0) / 8.0),
        }
    }

    proptest! {
        #[test]
        fn eight_bits_are_the_nearest_on_a_log_scale_and_survive_being_stored_again(
            values in prop::collection::vec((-30.0f32..3.0, prop::bool::ANY), 1..5000),
        ) {
            for kind in [MomentKind::First, MomentKind::Second] {
                let signed = |(log, minus): &(f32, bool)| {
                    let sign = if *minus && kind == MomentKind::First { -1.0 } else { 1.0 };
                    sign * log.exp2()
                };
                let values: Vec<f32> = values.iter().map(signed).collect();
                let mut moment = Moment::of(MomentFormat::EightBit, kind, &values);
                let found = kept(&mut moment, values.len());
                for (block, found) in values.chunks(BLOCK).zip(found.chunks(BLOCK)) {
                    let largest = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    for (value, found) in block.iter().zip(found) {
                        let expected = expected(kind, *value, largest);
                        // A ratio at a border may fall to either side.
                        let error = (f64::from(*found) / expected).abs();
                        let near = |one: f64| (error / one - 1.0).abs() < 1e-5;
                        let steps = [1.0, 2f64.powf(0.125), 2f64.powf(-0.125)];
                        let exact = expected == 0.0 && *found == 0.0;
                        prop_assert!(exact || steps.into_iter().any(near), "{value} {found} {expected}");
                    }
                }
                let mut again = Moment::of(MomentFormat::EightBit, kind, &found);
                prop_assert_eq!(kept(&mut again, values.len()), found);
            }
        }
    }

    /// Values from 1 down to 2⁻¹², the first the largest, kept 4,000 times: the mean of what was kept is
    /// the value, within five standard errors of a draw between two neighbours.
    #[test]
    fn what_an_update_keeps_is_right_on_average() {
        let values: Vec<f32> = (0..BLOCK).map(|at| (-(at as f32) * 0.094).exp2()).collect();
        let draws = 4_000;
        for format in [MomentFormat::Bf16, MomentFormat::EightBit] {
            for kind in [MomentKind::First, MomentKind::Second] {
                let mut moment = Moment::zeros(format, kind, BLOCK);
                let mut sums = vec![0.0f64; BLOCK];
                for update in 0..draws {
                    let [random, _] = RoundingKey::new(3, update, 0).chunk(0).moments;
                    moment.chunks()[0].store(&values, random);
                    let found = kept(&mut moment, BLOCK);
                    sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += f64::from(found));
                }
                let step = if format == MomentFormat::Bf16 { 1.0 / 128.0 } else { 0.0906 };
                let bound = 5.0 * 0.5 * step / (draws as f64).sqrt();
                for (sum, value) in sums.iter().zip(&values) {
                    let error = sum / draws as f64 / f64::from(*value) - 1.0;
                    assert!(error.abs() <= bound, "{format:?} {kind:?} {value}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn a_second_moment_whose_gradients_fade_comes_down() {
        let mut moment = Moment::of(MomentFormat::EightBit, MomentKind::Second, &[1.0, 1.0]);
        let mut values = vec![0.0; 2];
        for update in 0..2_000 {
            moment.chunks()[0].load(&mut values);
            values.iter_mut().for_each(|value| *value *= 0.998);
            // The first keeps the scale of the block where it is.
            values[0] = 1.0;
            let [_, random] = RoundingKey::new(3, update, 0).chunk(0).moments;
            moment.chunks()[0].store(&values, random);
        }
        // 0.998²⁰⁰⁰ = 2^−5.8: 46 codes, each step of them drawn, so some 7 more or fewer.
        let found = kept(&mut moment, 2)[1].log2();
        assert!((-7.8..=-3.8).contains(&found), "2^{found}");
    }

    proptest! {
        #[test]
        fn what_is_kept_is_a_neighbour_and_a_level_stays(
            values in prop::collection::vec(-14.0f32..3.0, 1..700), seed: u64,
        ) {
            let values: Vec<f32> = values.iter().map(|log| log.exp2()).collect();
            for kind in [MomentKind::First, MomentKind::Second] {
                let mut moment = Moment::zeros(MomentFormat::EightBit, kind, values.len());
                let [first, second] = RoundingKey::new(seed, 1, 0).chunk(0).moments;
                moment.chunks()[0].store(&values, first);
                let found = kept(&mut moment, values.len());
                for (value, found) in values.iter().zip(&found) {
                    let off = f64::from(found / value).log2().abs();
                    // The first moment's smallest levels may have become zero.
                    let below = kind == MomentKind::First && *found == 0.0;
                    prop_assert!(off <= 0.125 + 1e-6 || below, "{value} became {found}");
                }
                moment.chunks()[0].store(&found, second);
                prop_assert_eq!(kept(&mut moment, values.len()), found);
            }
        }
    }

    #[test]
    fn no_second_moment_but_that_of_an_empty_block_is_zero() {
        let mut values = vec![0.0; 2 * BLOCK];
        values[3] = 1.0;
        let mut second = Moment::of(MomentFormat::EightBit, MomentKind::Second, &values);
        let found = kept(&mut second, values.len());
        assert!((found[3] - 1.0).abs() < f32::EPSILON);
        assert!(found[..BLOCK].iter().all(|&value| value > 0.0));
        assert!(found[BLOCK..].iter().all(|&value| value == 0.0));
        let mut first = Moment::of(MomentFormat::EightBit, MomentKind::First, &values);
        assert_eq!(kept(&mut first, values.len()), values);
    }

    #[test]
    fn every_level_is_an_eighth_of_an_octave_below_the_last() {
        for code in 0..256 {
            let exact = 2f64.powf(-f64::from(code) / 8.0);
            assert!((f64::from(level(code)) / exact - 1.0).abs() < 2e-7, "{code}");
        }
    }
}
