//! Packs the operands of a float product into strips and panels of 32-bit words (`gemm` has a picture).
//!
//! A word is one f32, or two neighbouring values of the reduction rounded to bf16:
//!
//! ```text
//! f32    word = a[k]                       one multiply-add a word
//! bf16   word = a[2k+1] << 16 | a[2k]      the instruction adds the upper product first
//! ```
//!
//! Without the bf16 instruction each value has a word of its own and pairs are swapped, which gives the
//! instruction's order of sums, and so its bits, with ordinary multiply-adds.
#![expect(unsafe_code, reason = "packing is compiled for each instruction set")]
#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for each instruction set"
)]

use std::ops::Range;

use crate::gemm::{
    KBlock, LINE, MatrixA, MatrixB, OperandLayout, PanelColumns, ROWS, Scale, Size, TILE_ROWS,
    WordFormat,
};
use crate::layout::SimdWork;
use crate::prefetch::prefetch;
use crate::words::{Arithmetic, RoundToBf16, Square, of_rows, word};

/// Packing, compiled for each instruction set and each way to make words.
pub(crate) trait PackWork {
    /// # Safety
    /// The instructions of `P`.
    unsafe fn run<P: RoundToBf16>(self);
}

/// Packing without an instruction of its own.
pub(crate) struct PortablePack<W>(pub(crate) W);

impl<W: PackWork> SimdWork for PortablePack<W> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: integer arithmetic is on every CPU.
        unsafe { self.0.run::<Arithmetic>() }
    }
}

/// The first of `values`, the rest 0.
#[inline(always)]
fn padded<const N: usize>(values: &[f32]) -> [f32; N] {
    let mut whole = [0.0; N];
    whole[..values.len()].copy_from_slice(values);
    whole
}

/// Strips of a block, one after the other, each of `steps / 16` lines of eight rows. Where the
/// reduction is inner, a line holds sixteen words of a row: `[8][16]`; else a word of each row lies
/// beside those of the others: `[16][8]`. For tile registers it is always `[16][16]`, row by row.
pub(crate) struct PackA<'a> {
    pub(crate) format: WordFormat,
    pub(crate) a: MatrixA<'a>,
    pub(crate) block: KBlock,
    pub(crate) rows: Range<usize>,
    pub(crate) strips: &'a mut [u32],
}

impl PackWork for PackA<'_> {
    #[inline(always)]
    unsafe fn run<P: RoundToBf16>(self) {
        let Self { format, a, block, rows, strips } = self;
        // SAFETY: says the caller.
        unsafe {
            match a.layout {
                OperandLayout::KOuter => {
                    let source = OuterRows { format, a, block, rows };
                    if format.in_tiles() {
                        pack_outer_by_rows::<P>(source, strips);
                    } else {
                        pack_outer::<P>(source, strips);
                    }
                }
                OperandLayout::KInner => {
                    let strips = strips.chunks_exact_mut(block.strip(format));
                    for (first, words) in rows.clone().step_by(format.rows()).zip(strips) {
                        let rows = first..rows.end.min(first + format.rows());
                        pack_inner::<P>(format, a, block, rows, words);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn pack_inner<P: RoundToBf16>(
    format: WordFormat,
    a: MatrixA,
    block: KBlock,
    rows: Range<usize>,
    words: &mut [u32],
) {
    let height = format.rows();
    if rows.len() < height || !block.words.is_multiple_of(LINE) {
        words.fill(0);
    }
    let per_word = format.operands.per_word();
    let values = block.first * per_word..block.depth.min((block.first + block.words) * per_word);
    for (i, row) in rows.enumerate() {
        let source = &a.values[row * a.stride..][values.clone()];
        let lines = words[i * LINE..].chunks_mut(height * LINE);
        // SAFETY: says the caller.
        unsafe { pack_lines::<P>(format, source, a.scale.part(values.clone()), lines) };
    }
}

/// Values of one row and their factors become the first words of each line.
#[inline(always)]
unsafe fn pack_lines<'a, P: RoundToBf16>(
    format: WordFormat,
    source: &[f32],
    scale: Scale,
    lines: impl Iterator<Item = &'a mut [u32]>,
) {
    if format.pairs() {
        // SAFETY: says the caller.
        each_line(source, scale, lines, |x, factors| unsafe { P::of_neighbours(x, factors) });
    } else if format.operands.are_bf16() {
        // Swapped pairs: the instruction for two adds the odd place first, so neighbours trade their words.
        each_line::<LINE>(source, scale, lines, |x, factors| {
            let words: [u32; LINE] = std::array::from_fn(|i| word(format, x[i] * factors[i], 0.0));
            std::array::from_fn(|i| words[i ^ 1])
        });
    } else {
        each_line::<LINE>(source, scale, lines, |x, factors| {
            std::array::from_fn(|i| (x[i] * factors[i]).to_bits())
        });
    }
}

/// `N` values a line; what is missing in the last is 0.
#[inline(always)]
fn each_line<'a, const N: usize>(
    source: &[f32],
    scale: Scale,
    mut lines: impl Iterator<Item = &'a mut [u32]>,
    words: impl Fn(&[f32; N], &[f32; N]) -> [u32; LINE],
) {
    let mut put = |x: &[f32; N], factors: &[f32; N]| {
        if let Some(line) = lines.next() {
            line[..LINE].copy_from_slice(&words(x, factors));
        }
    };
    let (whole, rest) = source.as_chunks();
    let (factors, last) = match scale {
        Scale::All(factor) => {
            let same = [factor; N];
            for x in whole {
                put(x, &same);
            }
            (&[][..], same)
        }
        Scale::Each(factors) => {
            let (factors, rest) = factors.as_chunks();
            (factors, padded(rest))
        }
    };
    whole.iter().zip(factors).for_each(|(x, factors)| put(x, factors));
    if !rest.is_empty() {
        put(&padded(rest), &last);
    }
}

/// Steps whose rows are prefetched: they lie too far apart for the hardware prefetcher.
const AHEAD: usize = 8;

/// Rows of `A [K, M]`, read along them, the way they lie.
struct OuterRows<'a> {
    format: WordFormat,
    a: MatrixA<'a>,
    block: KBlock,
    rows: Range<usize>,
}

impl<'a> OuterRows<'a> {
    /// The values of a step's one or two places, each with its factor.
    #[inline(always)]
    fn step(&self, step: usize) -> [(&'a [f32], f32); 2] {
        let (low, high) = self.block.values(self.format, step);
        [self.place(low), self.place(high)]
    }

    #[inline(always)]
    fn place(&self, place: Option<usize>) -> (&'a [f32], f32) {
        let Some(at) = place else {
            return (&[], 0.0);
        };
        let values = &self.a.values[at * self.a.stride + self.a.first..];
        (&values[self.rows.clone()], self.a.scale.at(at))
    }

    /// Prefetches the values of a step.
    #[inline(always)]
    fn prefetch(&self, step: usize) {
        self.step(step).iter().for_each(|(values, _)| prefetch(values));
    }

    /// The words of a step for rows `first .. first + 16`.
    #[inline(always)]
    unsafe fn words<P: RoundToBf16>(
        &self,
        [(low, low_factor), (high, high_factor)]: [(&[f32], f32); 2],
        first: usize,
    ) -> [u32; LINE] {
        let rows = [&vector(low, first), &vector(high, first)];
        // SAFETY: says the caller.
        unsafe { of_rows::<P>(self.format, rows, [low_factor, high_factor]) }
    }
}

/// A place of the reduction after the other, over all strips, so that memory is read in order.
#[inline(always)]
unsafe fn pack_outer<P: RoundToBf16>(source: OuterRows, strips: &mut [u32]) {
    let OuterRows { format, block, .. } = source;
    let (used, strip) = (block.used(format), block.strip(format));
    if !source.rows.len().is_multiple_of(ROWS) || used < block.steps(format) {
        strips.fill(0);
    }
    // A step is scattered to all strips: each gets the eight values of its rows.
    for step in 0..used {
        source.prefetch(step + AHEAD);
        let values = source.step(step);
        for (at, strips) in strips.chunks_mut(LINE / ROWS * strip).enumerate() {
            // SAFETY: says the caller.
            let words = unsafe { source.words::<P>(values, at * LINE) };
            for (strip, words) in strips.chunks_exact_mut(strip).zip(words.as_chunks::<ROWS>().0) {
                strip[step * ROWS..][..ROWS].copy_from_slice(words);
            }
        }
    }
}

/// As [`pack_outer`] for strips of sixteen rows whose words lie row by row: squares of 16 x 16 words are made
/// and then transposed.
#[inline(always)]
unsafe fn pack_outer_by_rows<P: RoundToBf16>(source: OuterRows, strips: &mut [u32]) {
    let OuterRows { format, block, .. } = source;
    let (used, strip) = (block.used(format), block.strip(format));
    for first in (0..used).step_by(LINE) {
        for step in first + LINE..used.min(first + 2 * LINE) {
            source.prefetch(step);
        }
        for (at, strip) in strips.chunks_exact_mut(strip).enumerate() {
            let mut square = Square::default();
            for (step, words) in (first..used).zip(&mut square) {
                // SAFETY: says the caller.
                *words = unsafe { source.words::<P>(source.step(step), at * TILE_ROWS) };
            }
            // SAFETY: says the caller.
            let square = unsafe { P::transposed(&square) };
            strip[first * TILE_ROWS..][..LINE * TILE_ROWS].copy_from_slice(square.as_flattened());
        }
    }
}

/// Sixteen of `values`, what is missing 0.
#[inline(always)]
fn vector(values: &[f32], first: usize) -> [f32; LINE] {
    let values = values.get(first..).unwrap_or_default();
    values.first_chunk().copied().unwrap_or_else(|| padded(values))
}

/// `[steps, width]`, columns that are not there zero.
pub(crate) struct PackB<'a> {
    pub(crate) format: WordFormat,
    pub(crate) size: Size,
    pub(crate) b: MatrixB<'a>,
    pub(crate) block: KBlock,
    pub(crate) columns: PanelColumns,
    pub(crate) panel: &'a mut [u32],
}

impl PackWork for PackB<'_> {
    #[inline(always)]
    unsafe fn run<P: RoundToBf16>(self) {
        let Self { format, size, b, block, columns, panel } = self;
        let PanelColumns { first, count, width } = columns;
        if count < width {
            panel.fill(0);
        } else {
            panel[block.used(format) * width..].fill(0);
        }
        if let MatrixB::Floats(values, OperandLayout::KInner) = b {
            let rows = &values[first * size.depth..][..count * size.depth];
            // SAFETY: says the caller.
            return unsafe { pack_transposed::<P>(format, rows, block, width, panel) };
        }
        // A step of a panel is one place of the reduction (two for bf16 pairs) over all its
        // columns.
        for (step, words) in panel.chunks_exact_mut(width).take(block.used(format)).enumerate() {
            let (low, high) = block.values(format, step);
            let words = &mut words[..count];
            let place = |at: usize| at * size.columns + first;
            match b {
                MatrixB::Codes(codes) => {
                    let row = |at: Option<usize>| at.map(|at| &codes[place(at)..][..count]);
                    pack_codes(format, row(low), row(high), words);
                }
                MatrixB::Floats(values, OperandLayout::KOuter) => {
                    let row =
                        |at: Option<usize>| at.map_or(&[][..], |at| &values[place(at)..][..count]);
                    // SAFETY: says the caller.
                    unsafe { pack_floats::<P>(format, row(low), row(high), words) };
                }
                MatrixB::Floats(_, OperandLayout::KInner) | MatrixB::PackedB(_) => {
                    unreachable!("packed above, or packed already")
                }
            }
        }
    }
}

/// Rows `[columns, depth]` become columns of a panel: sixteen words of a few rows at a time are
/// made in order and then transposed.
#[inline(always)]
unsafe fn pack_transposed<P: RoundToBf16>(
    format: WordFormat,
    rows: &[f32],
    block: KBlock,
    width: usize,
    panel: &mut [u32],
) {
    let per_word = format.operands.per_word();
    let values = block.first * per_word..block.depth.min((block.first + block.words) * per_word);
    // As they are stored: swapped pairs take two.
    let per_word = per_word / format.width();
    for (group, rows) in rows.chunks(LINE * block.depth).enumerate() {
        let columns = rows.len() / block.depth;
        for start in (0..values.len()).step_by(LINE * per_word) {
            // Sixteen rows of B are packed along the reduction, where they lie in order, into a
            // square of 16 x 16 words in the first cache; writing its columns is the transposition.
            let mut lines = Square::default();
            for (line, row) in lines.iter_mut().zip(rows.chunks_exact(block.depth)) {
                let source = &row[values.clone()][start..];
                let source = &source[..source.len().min(LINE * per_word)];
                let line = std::iter::once(&mut line[..]);
                // SAFETY: says the caller.
                unsafe { pack_lines::<P>(format, source, Scale::All(1.0), line) };
            }
            let words = &mut panel[start / per_word * width..];
            let used = (values.len() - start).min(LINE * per_word).div_ceil(per_word);
            let used = used.next_multiple_of(format.width());
            // SAFETY: says the caller.
            let steps = unsafe { P::transposed(&lines) };
            for (words, step) in words.chunks_mut(width).zip(&steps[..used]) {
                words[group * LINE..][..columns].copy_from_slice(&step[..columns]);
            }
        }
    }
}

#[inline(always)]
fn pack_codes(format: WordFormat, low: Option<&[i8]>, high: Option<&[i8]>, words: &mut [u32]) {
    let bits = |code: i8| f32::from(code).to_bits();
    // A code has at most eight significant bits, so the upper half of its f32 is all of it.
    let shift = if format.pairs() { 16 } else { 0 };
    match (low, high) {
        (Some(low), Some(high)) => {
            for ((word, &low), &high) in words.iter_mut().zip(low).zip(high) {
                *word = bits(low) >> 16 | bits(high);
            }
        }
        (Some(low), None) => {
            words.iter_mut().zip(low).for_each(|(word, &low)| *word = bits(low) >> shift);
        }
        (None, _) => words.fill(0),
    }
}

/// Rows become words; one that is not there is empty.
#[inline(always)]
unsafe fn pack_floats<P: RoundToBf16>(
    format: WordFormat,
    low: &[f32],
    high: &[f32],
    words: &mut [u32],
) {
    for (at, words) in words.chunks_mut(LINE).enumerate() {
        let part = |values: &[f32]| vector(values, at * LINE);
        // SAFETY: says the caller.
        let packed = unsafe { of_rows::<P>(format, [&part(low), &part(high)], [1.0; 2]) };
        words.copy_from_slice(&packed[..words.len()]);
    }
}
