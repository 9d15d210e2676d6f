//! Float products for training, `C = A · B` with f32 sums: operands in f32, or rounded to bf16.
//!
//! The reduction is cut into blocks of a fixed length. For a block, `B` is brought into panels of
//! 48 columns and `A` into strips of eight rows, whose 32-bit words hold one f32 or two bf16; a
//! tile multiplies a strip with a panel, each output one chain of fused multiply-adds. With bf16
//! the second value of a word comes first, which is the order of the instruction, so a CPU without
//! it gives the same bits (values too small to be normal numbers apart: the instruction takes them
//! for zero).
//!
//! No thread lives here: whoever calls splits the rows of `C`.
#![expect(clippy::inline_always, reason = "packing is compiled for each instruction set")]

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::Kernel;
use crate::kernel::Work;

/// Rows of a strip.
pub(crate) const ROWS: usize = 8;

/// Columns of a whole panel.
pub(crate) const PANEL: usize = 48;

/// Words of the reduction in a block; part of what a result is, so it never depends on the machine.
const BLOCK: usize = 512;

/// Words of one row that lie together in a strip.
pub(crate) const LINE: usize = 16;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// f32.
    F32,
    /// f32 rounded to bf16, half to even; the sums stay f32.
    Bf16,
}

impl Operands {
    /// Values of a 32-bit word.
    fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// How a matrix lies in memory, seen from the reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The reduction is the last dimension.
    Inner,
    /// The reduction is the first dimension.
    Outer,
}

/// What the left operand is multiplied by before it is rounded.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// Everything by the same.
    All(f32),
    /// One factor for each place of the reduction.
    Each(&'a [f32]),
}

impl Scale<'_> {
    fn at(self, place: usize) -> f32 {
        match self {
            Self::All(factor) => factor,
            Self::Each(factors) => factors[place],
        }
    }
}

/// The left operand `A`: some rows of `C` and the whole reduction.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// `[M, R]`, or `[R, stride]` of which columns `first .. first + M` are meant.
    pub values: &'a [f32],
    /// Which of both.
    pub order: Order,
    /// Values from one place of the outer dimension to the next.
    pub stride: usize,
    /// The first column of the outer order; 0 else.
    pub first: usize,
    /// Multiplied in before rounding.
    pub scale: Scale<'a>,
}

/// The right operand `B`.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Small integers `[R, N]`, which every kind of operand holds exactly.
    Codes(&'a [i8]),
    /// `[R, N]` or `[N, R]`.
    Floats(&'a [f32], Order),
}

/// The size of a product.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Rows of `A` and `C`.
    pub rows: usize,
    /// Length of the reduction.
    pub depth: usize,
    /// Columns of `B` and `C`.
    pub columns: usize,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    strips: Vec<u32>,
    panel: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out [M, N]` = `A · B`, or that added to it.
pub fn float_product(
    kernel: Kernel,
    operands: Operands,
    size: Size,
    left: Left,
    right: Right,
    add: bool,
    out: &mut [f32],
) {
    check(size, left, right, out.len());
    if size.depth == 0 && !add {
        out.fill(0.0);
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let words = size.depth.div_ceil(operands.per_word());
        let format = Format { operands, swapped: !kernel.multiplies_bf16() };
        for first in (0..words).step_by(BLOCK) {
            let fresh = first == 0 && !add;
            let block = Block { first, words: BLOCK.min(words - first), depth: size.depth, fresh };
            let Scratch { strips, panel } = &mut *scratch;
            kernel.compiled(PackLeft { format, size, left, block, strips });
            for columns in panels(size.columns) {
                kernel.compiled(PackRight { format, size, right, block, columns, panel });
                multiply(kernel, format, size, left.order, block, columns, strips, panel, out);
            }
        }
    });
}

fn check(size: Size, left: Left, right: Right, places: usize) {
    let Size { rows, depth, columns } = size;
    let held = match left.order {
        Order::Inner => rows <= 1 || left.stride >= depth,
        Order::Outer => left.first + rows <= left.stride,
    };
    let outer = if left.order == Order::Inner { rows } else { depth };
    let inner = if left.order == Order::Inner { depth } else { left.first + rows };
    assert!(held && (outer == 0 || left.values.len() >= (outer - 1) * left.stride + inner));
    let values = match right {
        Right::Codes(codes) => codes.len(),
        Right::Floats(values, _) => values.len(),
    };
    assert_eq!(values, depth * columns, "a right operand of this size");
    assert_eq!(places, rows * columns, "a place for each product");
    if let Scale::Each(factors) = left.scale {
        assert_eq!(factors.len(), depth, "a factor for each place of the reduction");
    }
}

/// How values become words.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) operands: Operands,
    /// bf16 without the instruction: each value in a word of its own, pairs swapped.
    pub(crate) swapped: bool,
}

impl Format {
    /// Whether a word holds two values.
    pub(crate) fn pairs(self) -> bool {
        self.operands == Operands::Bf16 && !self.swapped
    }

    /// 32-bit words that hold one word's values.
    fn width(self) -> usize {
        if self.operands == Operands::Bf16 && self.swapped { 2 } else { 1 }
    }
}

/// A part of the reduction, in words.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    words: usize,
    /// Of the whole reduction, in values.
    depth: usize,
    /// Whether nothing was summed before.
    fresh: bool,
}

impl Block {
    /// Words as they are stored.
    fn used(self, format: Format) -> usize {
        self.words * format.width()
    }

    /// Whole lines of them.
    fn steps(self, format: Format) -> usize {
        self.used(format).next_multiple_of(LINE)
    }

    /// The places of the reduction whose values a word holds, as far as they are there.
    #[inline(always)]
    fn values(self, format: Format, step: usize) -> (Option<usize>, Option<usize>) {
        let there = |value: usize| if value < self.depth { Some(value) } else { None };
        match (format.operands, format.swapped) {
            (Operands::F32, _) => (there(self.first + step), None),
            (Operands::Bf16, false) => {
                let value = 2 * (self.first + step);
                (there(value), there(value + 1))
            }
            (Operands::Bf16, true) => (there(2 * (self.first + step / 2) + 1 - step % 2), None),
        }
    }
}

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
struct PackLeft<'a> {
    format: Format,
    size: Size,
    left: Left<'a>,
    block: Block,
    strips: &'a mut Vec<u32>,
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

/// Some columns of `C`: whole vectors in memory, not all of which need be there.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    /// There in `C`.
    count: usize,
    /// In the panel: 16, 32 or 48.
    width: usize,
}

/// Panels of 48 columns; a rest of up to 64 as two of up to 32, so that none is narrow.
fn panels(columns: usize) -> impl Iterator<Item = Columns> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = columns - first;
        let count = match left {
            0 => return None,
            1..=PANEL => left,
            49..=64 => 32,
            _ => PANEL,
        };
        let panel = Columns { first, count, width: count.next_multiple_of(16) };
        first += count;
        Some(panel)
    })
}

/// `[steps, width]`, columns that are not there zero.
struct PackRight<'a> {
    format: Format,
    size: Size,
    right: Right<'a>,
    block: Block,
    columns: Columns,
    panel: &'a mut Vec<u32>,
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

/// One strip and one panel.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// As [`pack_left`] lays them.
    pub(crate) strip: &'a [u32],
    /// Whether a line holds words of one row.
    pub(crate) by_rows: bool,
    /// `[steps, width]`
    pub(crate) panel: &'a [u32],
    pub(crate) width: usize,
    pub(crate) pairs: bool,
    /// Whether the sums begin at 0, whatever the places hold.
    pub(crate) fresh: bool,
}

#[expect(clippy::too_many_arguments, reason = "the loop over what all the others prepared")]
fn multiply(
    kernel: Kernel,
    format: Format,
    size: Size,
    order: Order,
    block: Block,
    columns: Columns,
    strips: &[u32],
    panel: &[u32],
    out: &mut [f32],
) {
    let Columns { first, count, width } = columns;
    let (by_rows, steps) = (order == Order::Inner, block.steps(format));
    let panel = &panel[..steps * width];
    let rows = out.chunks_mut(ROWS * size.columns);
    for (strip, out) in strips.chunks_exact(steps * ROWS).zip(rows) {
        let tile = Tile { strip, by_rows, panel, width, pairs: format.pairs(), fresh: block.fresh };
        if count == width && out.len() == ROWS * size.columns {
            kernel.float_tile(tile, &mut out[first..], size.columns);
            continue;
        }
        let mut sums = [0.0; ROWS * PANEL];
        for (sums, out) in sums.chunks_exact_mut(PANEL).zip(out.chunks_exact(size.columns)) {
            sums[..count].copy_from_slice(&out[first..first + count]);
        }
        kernel.float_tile(tile, &mut sums, PANEL);
        for (sums, out) in sums.chunks_exact(PANEL).zip(out.chunks_exact_mut(size.columns)) {
            out[first..first + count].copy_from_slice(&sums[..count]);
        }
    }
}

/// [`Kernel::float_tile`] as its definition reads: each output one chain of fused multiply-adds.
pub(crate) fn scalar_tile(tile: Tile, sums: &mut [f32], stride: usize) {
    let word = |row: usize, step: usize| {
        let line = &tile.strip[step / LINE * LINE * ROWS..];
        if tile.by_rows { line[row * LINE + step % LINE] } else { line[step % LINE * ROWS + row] }
    };
    if tile.fresh {
        for sums in sums.chunks_mut(stride).take(ROWS) {
            sums[..tile.width].fill(0.0);
        }
    }
    for (step, b) in tile.panel.chunks_exact(tile.width).enumerate() {
        for (row, sums) in sums.chunks_mut(stride).take(ROWS).enumerate() {
            let a = word(row, step);
            for (sum, &b) in sums.iter_mut().zip(b) {
                if tile.pairs {
                    let half = |word: u32, high: u32| bf16::from_bits((word >> high) as u16);
                    let add =
                        |sum: f32, at| half(a, at).to_f32().mul_add(half(b, at).to_f32(), sum);
                    *sum = add(add(*sum, 16), 0);
                } else {
                    *sum = f32::from_bits(a).mul_add(f32::from_bits(b), *sum);
                }
            }
        }
    }
}
