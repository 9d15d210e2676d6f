//! Products of ternary matrices whose groups of columns have scales of their own.
//!
//! For a token with the step `a = 1 / scale` (its codes times `a` are its values) and a row:
//!
//! ```text
//! s = Σ q·T over the columns of a group                         exact, in i32
//! acc ← acc + d · (a · s)     groups in ascending order, from acc = 0
//! ```
//!
//! in f32, each of `s as f32`, `a · s`, `d · …` and the sum rounded once to the nearest, and no
//! product fused with a sum: the same bits in every kernel, for any rows, tokens and threads.
//!
//! An instruction set supplies the sums of one group; the rest is a plain loop, compiled with it.
#![expect(unsafe_code, reason = "two lines of a panel are seen as one chunk")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::layout::{Line, PairChunk, ROWS_PER_PAIR, TokenCodes};
use crate::prefetch::Prefetch;

/// The groups of 32 rows, each a line of 32 f16 scales and then its chunks of codes.
#[derive(Clone, Copy)]
pub(crate) struct GroupedPair<'a> {
    pub(crate) lines: &'a [Line],
    /// Chunks of a group.
    pub(crate) chunks: usize,
}

impl<'a> GroupedPair<'a> {
    /// Lines of a group of `chunks` chunks.
    pub(crate) const fn lines_of(chunks: usize) -> usize {
        1 + 2 * chunks
    }

    /// The scales of one of the groups.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn scales(self, group: usize) -> &'a Line {
        &self.lines[group * Self::lines_of(self.chunks)]
    }

    #[inline(always)]
    pub(crate) fn groups(self) -> impl Iterator<Item = (&'a Line, &'a [PairChunk])> {
        let groups = self.lines.chunks_exact(Self::lines_of(self.chunks));
        groups.map(|lines| (&lines[0], pair_chunks(&lines[1..])))
    }
}

/// Lines in pairs.
#[inline(always)]
pub(crate) fn pair_chunks(lines: &[Line]) -> &[PairChunk] {
    const {
        assert!(size_of::<PairChunk>() == 2 * size_of::<Line>());
        assert!(align_of::<PairChunk>() == align_of::<Line>());
    }
    // SAFETY: a chunk has the size of two lines and their alignment, and any bytes are one.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() / 2) }
}

/// Some tokens as they meet groups.
#[derive(Clone, Copy)]
pub(crate) struct TokenGroups<'a> {
    pub(crate) codes: TokenCodes<'a>,
    /// Chunks of a group.
    pub(crate) chunks: usize,
    /// Σ of the codes of each group, `[t, groups]`: what the `+ 1` of `u = T + 1` adds.
    pub(crate) offsets: &'a [i32],
    pub(crate) groups: usize,
    /// What each token's sums are multiplied by.
    pub(crate) steps: &'a [f32],
}

impl TokenGroups<'_> {
    /// Without the first tokens and the first groups of the others.
    #[inline(always)]
    pub(crate) fn behind(self, tokens: usize, groups: usize) -> Self {
        Self {
            codes: self.codes.behind(tokens, groups * self.chunks),
            offsets: &self.offsets[tokens * self.groups + groups..],
            steps: &self.steps[tokens..],
            ..self
        }
    }
}

/// Where the products of some tokens `[t]` with 32 rows go.
pub(crate) struct GroupTile<'a> {
    /// Room for the sums of one group.
    pub(crate) sums: &'a mut [[i32; ROWS_PER_PAIR]],
    pub(crate) out: &'a mut [[f32; ROWS_PER_PAIR]],
}

/// The products of some tokens with 32 rows; `sum_codes` gives `Σ u·q` of a group's chunks.
#[inline(always)]
pub(crate) fn each_group(
    pair: GroupedPair,
    tokens: TokenGroups,
    tile: GroupTile,
    sum_codes: impl Fn(&[PairChunk], TokenCodes, &mut [[i32; ROWS_PER_PAIR]]),
) {
    let GroupTile { sums, out } = tile;
    out.fill([0.0; ROWS_PER_PAIR]);
    let prefetch = Prefetch::chosen();
    // Groups in ascending order for every token: float sums depend on it, and it is the definition
    // (`bitnet_format::grouped`).
    for (group, (scales, chunks)) in pair.groups().enumerate() {
        if out.len() == 1 {
            prefetch.after(scales);
        }
        let tokens = tokens.behind(0, group);
        sum_codes(chunks, tokens.codes, sums);
        add_group(sums, tokens, scales, out);
    }
}

/// `out ← out + d · (a · s)` with the sums `s + Σ q` of the first group of some tokens.
#[inline(always)]
pub(crate) fn add_group(
    sums: &[[i32; ROWS_PER_PAIR]],
    tokens: TokenGroups,
    scales: &Line,
    out: &mut [[f32; ROWS_PER_PAIR]],
) {
    let scales = widened(scales);
    let terms = tokens.offsets.iter().step_by(tokens.groups).zip(tokens.steps);
    for ((sums, out), (&offset, &step)) in sums.iter().zip(out).zip(terms) {
        for ((out, &sum), &scale) in out.iter_mut().zip(sums).zip(&scales) {
            // Two products and a sum, each rounded: Rust never fuses them, so every kernel gives these
            // bits.
            *out += scale * (step * (sum - offset) as f32);
        }
    }
}

/// 32 f16 scales as f32.
#[inline(always)]
pub(crate) fn widened(line: &Line) -> [f32; ROWS_PER_PAIR] {
    let halves = line.0.as_chunks::<2>().0;
    std::array::from_fn(|row| widen(u16::from_le_bytes(halves[row])))
}

/// A finite f16 as f32, exactly: its exponent and fraction moved to their places, and the difference
/// of the two exponents' biases made up by a product. It vectorises without an instruction for it.
#[inline(always)]
pub(crate) fn widen(half: u16) -> f32 {
    /// 2¹¹² = 2^(127 - 15)
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let half = u32::from(half);
    f32::from_bits((half & 0x8000) << 16 | (half & 0x7fff) << 13) * BIAS
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widen(bits).to_bits(), half.to_f32().to_bits(), "{bits:#06x}");
            }
        }
    }
}
