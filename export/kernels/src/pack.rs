//! How the operands of a float product become strips and panels of 32-bit words, see `float`.
#![expect(clippy::inline_always, reason = "packing is compiled for each instruction set")]

use std::ops::Range;

use crate::float::{Block, Columns, Format, LINE, Left, Operands, Order, ROWS, Right, Scale, Size};
use crate::kernel::Work;

/// One f32 as the operand it stands for.
#[inline(always)]
fn rounded(operands: Operands, x: f32) -> f32 {
    match operands {
        Operands::F32 => x,
        Operands::Bf16 => f32::from_bits(u32::from(round_bf16(x)) << 16),
    }
}

/// The nearest bf16, half to even, NaN staying NaN; it vectorises, other than a library call.
#[inline(always)]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { up }) as u16
}

/// Two values of a word, the first in the low half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(round_bf16(low)) | u32::from(round_bf16(high)) << 16
}

/// What a word holds: one value, or two.
#[inline(always)]
fn word(format: Format, low: f32, high: f32) -> u32 {
    if format.pairs() { pair(low, high) } else { rounded(format.operands, low).to_bits() }
}

/// All strips of a block, one behind the other, each of `steps / 16` lines of eight rows. Where the
/// reduction is inner, a line holds sixteen words of a row: `[8][16]`; else a word of each row lies
/// beside those of the others: `[16][8]`.
pub(crate) struct PackLeft<'a> {
    pub(crate) format: Format,
    pub(crate) size: Size,
    pub(crate) left: Left<'a>,
    pub(crate) block: Block,
    pub(crate) strips: &'a mut Vec<u32>,
}

impl Work for PackLeft<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, size, left, block, strips } = self;
        pack_left(format, size, left, block, strips);
    }
}

#[inline(always)]
fn pack_left(format: Format, size: Size, left: Left, block: Block, strips: &mut Vec<u32>) {
    let steps = block.steps(format);
    let length = size.rows.div_ceil(ROWS) * steps * ROWS;
    if strips.len() < length {
        strips.resize(length, 0);
    }
    let strips = &mut strips[..length];
    if left.order == Order::Outer {
        return pack_outer(format, size, left, block, strips);
    }
    for (strip, words) in strips.chunks_exact_mut(steps * ROWS).enumerate() {
        let rows = strip * ROWS..size.rows.min((strip + 1) * ROWS);
        pack_inner(format, left, block, rows, words);
    }
}

#[inline(always)]
fn pack_inner(format: Format, left: Left, block: Block, rows: Range<usize>, words: &mut [u32]) {
    if rows.len() < ROWS || !block.words.is_multiple_of(LINE) {
        words.fill(0);
    }
    let per_word = format.operands.per_word();
    let values = block.first * per_word..block.depth.min((block.first + block.words) * per_word);
    for (i, row) in rows.enumerate() {
        let source = &left.values[row * left.stride..][values.clone()];
        if !format.swapped || format.operands == Operands::F32 {
            // Words and values lie in the same order: whole lines at a time.
            let lines = words[i * LINE..].chunks_mut(ROWS * LINE);
            let per_line = per_word * LINE;
            for (n, (line, source)) in lines.zip(source.chunks(per_line)).enumerate() {
                match left.scale {
                    Scale::All(factor) => {
                        pack_line(format, source, std::iter::repeat(factor), line);
                    }
                    Scale::Each(factors) => {
                        let factors = &factors[values.start + n * per_line..][..source.len()];
                        pack_line(format, source, factors.iter().copied(), line);
                    }
                }
            }
            continue;
        }
        for step in 0..block.used(format) {
            let (low, high) = block.values(format, step);
            let value = |place: Option<usize>| match place {
                Some(at) => source[at - values.start] * left.scale.at(at),
                None => 0.0,
            };
            words[step / LINE * LINE * ROWS + i * LINE + step % LINE] =
                word(format, value(low), value(high));
        }
    }
}

/// Values of one row and their factors become a line of words.
#[inline(always)]
fn pack_line(format: Format, source: &[f32], factors: impl Iterator<Item = f32>, line: &mut [u32]) {
    let mut scaled = [0.0; 2 * LINE];
    for ((scaled, x), factor) in scaled.iter_mut().zip(source).zip(factors) {
        *scaled = x * factor;
    }
    if format.pairs() {
        for (word, [low, high]) in line[..LINE].iter_mut().zip(scaled.as_chunks::<2>().0) {
            *word = pair(*low, *high);
        }
    } else {
        for (word, x) in line[..LINE].iter_mut().zip(scaled) {
            *word = x.to_bits();
        }
    }
}

/// A place of the reduction after the other, each over all strips, so that memory is read in order.
#[inline(always)]
fn pack_outer(format: Format, size: Size, left: Left, block: Block, strips: &mut [u32]) {
    let (used, strip) = (block.used(format), block.steps(format) * ROWS);
    if !size.rows.is_multiple_of(ROWS) || used * ROWS < strip {
        strips.fill(0);
    }
    let row = |place: Option<usize>| match place {
        Some(at) => {
            let values = &left.values[at * left.stride + left.first..][..size.rows];
            (values, left.scale.at(at))
        }
        None => (&[][..], 0.0),
    };
    for step in 0..used {
        let (low, high) = block.values(format, step);
        let ((low, low_factor), (high, high_factor)) = (row(low), row(high));
        let ((low, low_rest), (high, high_rest)) = (low.as_chunks::<ROWS>(), high.as_chunks());
        let none = [0.0; ROWS];
        for (i, strip) in strips.chunks_exact_mut(strip).enumerate() {
            let part = |chunks: &[[f32; ROWS]], rest: &[f32], factor: f32| {
                let mut values = chunks.get(i).copied().unwrap_or(none);
                if i == chunks.len() {
                    values[..rest.len()].copy_from_slice(rest);
                }
                values.map(|x| x * factor)
            };
            let low = part(low, low_rest, low_factor);
            let words = &mut strip[step * ROWS..][..ROWS];
            if format.pairs() {
                let high = part(high, high_rest, high_factor);
                for ((place, low), high) in words.iter_mut().zip(low).zip(high) {
                    *place = pair(low, high);
                }
            } else {
                for (place, low) in words.iter_mut().zip(low) {
                    *place = rounded(format.operands, low).to_bits();
                }
            }
        }
    }
}

/// `[steps, width]`, columns that are not there zero.
pub(crate) struct PackRight<'a> {
    pub(crate) format: Format,
    pub(crate) size: Size,
    pub(crate) right: Right<'a>,
    pub(crate) block: Block,
    pub(crate) columns: Columns,
    pub(crate) panel: &'a mut Vec<u32>,
}

impl Work for PackRight<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, size, right, block, columns, panel } = self;
        pack_right(format, size, right, block, columns, panel);
    }
}

#[inline(always)]
fn pack_right(
    format: Format,
    size: Size,
    right: Right,
    block: Block,
    columns: Columns,
    panel: &mut Vec<u32>,
) {
    let Columns { first, count, width } = columns;
    let length = block.steps(format) * width;
    if panel.len() < length {
        panel.resize(length, 0);
    }
    let panel = &mut panel[..length];
    if count < width {
        panel.fill(0);
    } else {
        panel[block.used(format) * width..].fill(0);
    }
    if let (Right::Floats(values, Order::Inner), false) = (right, format.swapped) {
        let rows = &values[first * size.depth..][..count * size.depth];
        return pack_transposed(format, rows, block, width, panel);
    }
    for (step, words) in panel.chunks_exact_mut(width).take(block.used(format)).enumerate() {
        let (low, high) = block.values(format, step);
        let words = &mut words[..count];
        let place = |at: usize| at * size.columns + first;
        match right {
            Right::Codes(codes) => {
                let row = |at: Option<usize>| at.map(|at| &codes[place(at)..][..count]);
                pack_codes(format, row(low), row(high), words);
            }
            Right::Floats(values, Order::Outer) => {
                let row = |at: Option<usize>| at.map(|at| &values[place(at)..][..count]);
                pack_floats(format, row(low), row(high), words);
            }
            Right::Floats(values, Order::Inner) => {
                for (column, place) in words.iter_mut().enumerate() {
                    let row = &values[(first + column) * size.depth..][..size.depth];
                    let value = |at: Option<usize>| at.map_or(0.0, |at| row[at]);
                    *place = word(format, value(low), value(high));
                }
            }
        }
    }
}

/// Rows `[columns, depth]` become columns of a panel: sixteen words of a few rows at a time are
/// made in order and then turned.
#[inline(always)]
fn pack_transposed(format: Format, rows: &[f32], block: Block, width: usize, panel: &mut [u32]) {
    const TOGETHER: usize = 16;
    let per_word = format.operands.per_word();
    let values = block.first * per_word..block.depth.min((block.first + block.words) * per_word);
    for (group, rows) in rows.chunks(TOGETHER * block.depth).enumerate() {
        let columns = rows.len() / block.depth;
        for start in (0..values.len()).step_by(LINE * per_word) {
            let mut lines = [[0; LINE]; TOGETHER];
            for (line, row) in lines.iter_mut().zip(rows.chunks_exact(block.depth)) {
                let source = &row[values.clone()][start..];
                let source = &source[..source.len().min(LINE * per_word)];
                pack_line(format, source, std::iter::repeat(1.0), line);
            }
            let words = &mut panel[start / per_word * width..];
            let used = (values.len() - start).min(LINE * per_word).div_ceil(per_word);
            for (p, words) in words.chunks_mut(width).take(used).enumerate() {
                let places = &mut words[group * TOGETHER..][..columns];
                for (place, line) in places.iter_mut().zip(&lines) {
                    *place = line[p];
                }
            }
        }
    }
}

#[inline(always)]
fn pack_codes(format: Format, low: Option<&[i8]>, high: Option<&[i8]>, words: &mut [u32]) {
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

#[inline(always)]
fn pack_floats(format: Format, low: Option<&[f32]>, high: Option<&[f32]>, words: &mut [u32]) {
    match (low, high) {
        (Some(low), Some(high)) => {
            for ((word, &low), &high) in words.iter_mut().zip(low).zip(high) {
                *word = pair(low, high);
            }
        }
        (Some(low), None) => {
            for (place, &low) in words.iter_mut().zip(low) {
                *place = word(format, low, 0.0);
            }
        }
        (None, _) => words.fill(0),
    }
}
