//! Moments of the optimizer in fewer bits than f32, updated chunk by chunk.
//!
//! ```text
//! bf16   the nearest bf16
//! 8bit   blocks of 128 values, each with its largest magnitude a (f32); both on a log scale:
//!        second   a · 2^(−c/8), c in 0..=255             no code means zero
//!        first    ± a · 2^(−c/8), c in 0..=126, or zero
//! ```
//!
//! An update computes with the fresh f32 values and stores what is nearest. A step of the scale is 9 % of
//! a value, more than a moment moves in an update, but the noise of gradients carries it over: rounding
//! at random instead makes the error of an update 1.4 times as large (docs/src/log.md, "Moments, nearest
//! or at random").
//!
//! A second moment of zero would divide by eps alone, so its smallest code stands for `a · 2⁻³²` (maps
//! that have a zero blow single steps up by 1e7 and more; linear first moments starve small gradients).
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::borrow::Cow;

use bitnet_format::writer::little_endian;
use rayon::prelude::*;

use crate::latents::MomentFormat;
use crate::latents::codec::{CHUNK, bf16_bits, largest_magnitude, widen};

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

    /// These values, each as the nearest that can be kept.
    pub(crate) fn of(format: MomentFormat, kind: MomentKind, values: &[f32]) -> Self {
        let mut moment = Self::zeros(format, kind, values.len());
        let chunks = moment.chunks().into_par_iter().zip(values.par_chunks(CHUNK));
        chunks.for_each(|(mut chunk, values)| chunk.store(values));
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

    /// The values that are kept.
    pub(crate) fn floats(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(words) => {
                let mut values = vec![0.0; words.len()];
                widen(words, &mut values);
                values
            }
            Self::EightBit { kind, codes, scales } => {
                let mut values = vec![0.0; codes.len()];
                decode(*kind, codes, scales, &mut values);
                values
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

    #[inline(always)]
    pub(crate) fn store(&mut self, values: &[f32]) {
        match self {
            Self::F32(kept) => kept.copy_from_slice(values),
            Self::Bf16(words) => {
                words.iter_mut().zip(values).for_each(|(word, &value)| *word = bf16_bits(value));
            }
            Self::EightBit { kind, codes, scales } => {
                let blocks = codes.chunks_mut(BLOCK).zip(&mut **scales).zip(values.chunks(BLOCK));
                for ((codes, scale), values) in blocks {
                    // The block's scale is that of the new values: a block whose gradients fade
                    // keeps its resolution.
                    *scale = f32::from_bits(largest_magnitude(values));
                    match kind {
                        MomentKind::First => encode_first(values, *scale, codes),
                        MomentKind::Second => encode_second(values, *scale, codes),
                    }
                }
            }
        }
    }
}

/// 2^(−1/8), 2^(−2/8) and 2^(−4/8): what the three bits of an eighth stand for.
const ROOTS: [f32; 3] = [0.917_004_04, 0.840_896_4, 0.707_106_77];

/// 2^(−c/8) of a code, within four roundings. Products of the bits' factors instead of a table, which no
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

/// `round(8 · log2(ratio))` of a ratio of at least 1; infinity gives 1024. At a border between two codes a
/// few roundings decide.
#[inline(always)]
fn eighths(ratio: f32) -> u32 {
    /// 2^(1/16): rounding is cutting, half a step further on.
    const HALF_A_STEP: f32 = 1.044_273_8;
    let bits = (ratio * HALF_A_STEP).to_bits();
    // Eight codes for each power of two; then bit by bit, from the highest, whether what is left of
    // the mantissa reaches the bit's factor.
    let mut code = ((bits >> 23) - 127) << 3;
    let mut rest = f32::from_bits(bits & 0x7f_ffff | 1f32.to_bits());
    for (bit, root) in ROOTS.into_iter().enumerate().rev() {
        let reached = rest * root >= 1.0;
        rest *= if reached { root } else { 1.0 };
        code |= u32::from(reached) << bit;
    }
    code
}

#[inline(always)]
fn encode_second(values: &[f32], scale: f32, codes: &mut [u8]) {
    // Where all are zero the code does not matter.
    let scale = if scale > 0.0 { scale } else { 1.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = eighths(scale / value.abs()).min(255) as u8;
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
fn encode_first(values: &[f32], scale: f32, codes: &mut [u8]) {
    let scale = if scale > 0.0 { scale } else { 1.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        let sign = (value.to_bits() >> 24) & 0x80;
        *code = (eighths(scale / value.abs()).min(ZERO) | sign) as u8;
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

    #[test]
    fn a_block_whose_gradients_fade_comes_down_with_its_scale() {
        let mut values: Vec<f32> = (0..BLOCK).map(|at| (-(at as f32) / 8.0).exp2()).collect();
        let begin = values.clone();
        let mut moment = Moment::of(MomentFormat::EightBit, MomentKind::Second, &values);
        for _ in 0..500 {
            moment.chunks()[0].load(&mut values);
            for value in &mut values {
                *value *= 0.998;
            }
            moment.chunks()[0].store(&values);
        }
        for (found, begin) in values.iter().zip(begin) {
            let exact = f64::from(begin) * 0.998f64.powi(500);
            assert!((f64::from(*found) / exact - 1.0).abs() < 1e-3, "{begin}: {found}");
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
