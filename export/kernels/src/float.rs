//! Float products for training, `C = A · B` with f32 sums: operands in f32, or rounded to bf16.
//!
//! The reduction is cut into blocks. For a block, some columns of `B` are brought into panels of 48
//! and, a group of rows after the other, `A` into strips of eight rows (`pack`), whose 32-bit words
//! hold one f32 or two bf16; a tile multiplies a strip with a panel, each output one chain of fused
//! multiply-adds. With bf16
//! the second value of a word comes first, which is the order of the instruction, so a CPU without
//! it gives the same bits (values too small to be normal numbers apart: the instruction takes them
//! for zero).
//!
//! No thread lives here: whoever calls splits the rows of `C`.
#![expect(clippy::inline_always, reason = "packing uses it, compiled for each instruction set")]

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::Kernel;
use crate::pack::{PackLeft, PackRight};

/// Rows of a strip.
pub(crate) const ROWS: usize = 8;

/// Columns of a whole panel.
pub(crate) const PANEL: usize = 48;

/// Words of the reduction in a block. Sums are kept between blocks, so it changes no bit.
const BLOCK: usize = 256;

/// Panels that are packed together: with the strips of a group they stay in a cache of 1 MB.
const PANELS: usize = 15;

/// Rows whose strips are packed together.
const GROUP: usize = 16 * ROWS;

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
    pub(crate) fn per_word(self) -> usize {
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
    pub(crate) fn at(self, place: usize) -> f32 {
        match self {
            Self::All(factor) => factor,
            Self::Each(factors) => factors[place],
        }
    }

    /// The factors of some places.
    pub(crate) fn part(self, places: Range<usize>) -> Self {
        match self {
            Self::All(_) => self,
            Self::Each(factors) => Self::Each(&factors[places]),
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
    /// What several products share.
    Packed(&'a Packed),
}

/// A right operand `[R, N]` in panels: block after block of the reduction, panel after panel.
#[derive(Clone, Debug)]
pub struct Packed {
    format: Format,
    depth: usize,
    columns: usize,
    words: Vec<u32>,
}

impl Packed {
    /// Packs an operand for products with this kernel and these operands.
    pub fn new(
        kernel: Kernel,
        operands: Operands,
        depth: usize,
        columns: usize,
        right: Right,
    ) -> Self {
        let format = Format::new(kernel, operands);
        let size = Size { rows: 0, depth, columns };
        check_right(format, size, right);
        let panels = panels(columns);
        let width: usize = panels.iter().map(|columns| columns.width).sum();
        let length = blocks(format, depth).map(|block| block.steps(format) * width).sum();
        let mut words = vec![0; length];
        let mut rest = &mut words[..];
        for block in blocks(format, depth) {
            for &columns in &panels {
                let panel;
                (panel, rest) = rest.split_at_mut(block.steps(format) * columns.width);
                kernel.packed(PackRight { format, size, right, block, columns, panel });
            }
        }
        Self { format, depth, columns, words }
    }

    /// The panels of some columns in a block.
    fn panels(&self, block: Block, columns: &[Columns]) -> &[u32] {
        let steps = block.steps(self.format);
        let width = panels(self.columns).iter().map(|columns| columns.width).sum::<usize>();
        // Every block but the last is whole, and so is every panel but the last.
        let before = block.first * self.format.width() * width + steps * columns[0].first;
        &self.words[before..][..columns.iter().map(|columns| steps * columns.width).sum()]
    }
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
    panels: Vec<u32>,
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
    let format = Format::new(kernel, operands);
    check(size, left, out.len());
    check_right(format, size, right);
    if size.depth == 0 && !add {
        out.fill(0.0);
    }
    let product = Product { kernel, format, size, left, right };
    let columns = panels(size.columns);
    SCRATCH.with_borrow_mut(|scratch| {
        for block in blocks(format, size.depth) {
            let block = Block { fresh: block.fresh && !add, ..block };
            for columns in columns.chunks(PANELS) {
                product.some_columns(block, columns, scratch, out);
            }
        }
    });
}

/// The blocks of a reduction whose sums begin at 0.
fn blocks(format: Format, depth: usize) -> impl Iterator<Item = Block> {
    let words = depth.div_ceil(format.operands.per_word());
    (0..words).step_by(BLOCK).map(move |first| Block {
        first,
        words: BLOCK.min(words - first),
        depth,
        fresh: first == 0,
    })
}

/// What is the same in all parts of a product.
#[derive(Clone, Copy)]
struct Product<'a> {
    kernel: Kernel,
    format: Format,
    size: Size,
    left: Left<'a>,
    right: Right<'a>,
}

impl Product<'_> {
    /// Adds what a block of the reduction gives in some columns.
    fn some_columns(
        self,
        block: Block,
        columns: &[Columns],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let Self { kernel, format, size, left, right } = self;
        let Scratch { strips, panels } = scratch;
        let steps = block.steps(format);
        let panels = if let Right::Packed(packed) = right {
            packed.panels(block, columns)
        } else {
            let panels = room(panels, columns.iter().map(|columns| steps * columns.width).sum());
            let mut rest = &mut *panels;
            for &columns in columns {
                let panel;
                (panel, rest) = rest.split_at_mut(steps * columns.width);
                kernel.packed(PackRight { format, size, right, block, columns, panel });
            }
            panels
        };
        for (group, out) in out.chunks_mut(GROUP * size.columns).enumerate() {
            let first = group * GROUP;
            let rows = first..size.rows.min(first + GROUP);
            let strips = room(strips, rows.len().div_ceil(ROWS) * block.strip(format));
            kernel.packed(PackLeft { format, left, block, rows, strips });
            let mut rest = panels;
            for &columns in columns {
                let panel;
                (panel, rest) = rest.split_at(steps * columns.width);
                self.tiles(block, columns, strips, panel, out);
            }
        }
    }

    /// Adds the products of some strips with a panel.
    fn tiles(self, block: Block, columns: Columns, strips: &[u32], panel: &[u32], out: &mut [f32]) {
        let Columns { first, count, width } = columns;
        let (by_rows, pairs) = (self.left.order == Order::Inner, self.format.pairs());
        let (length, stride) = (block.steps(self.format) * ROWS, self.size.columns);
        let rows = out.chunks_mut(ROWS * stride);
        for (strip, out) in strips.chunks_exact(block.strip(self.format)).zip(rows) {
            let strip = &strip[..length];
            let tile = Tile { strip, by_rows, panel, width, pairs, fresh: block.fresh };
            if count == width && out.len() == ROWS * stride {
                self.kernel.float_tile(tile, &mut out[first..], stride);
                continue;
            }
            let mut sums = [0.0; ROWS * PANEL];
            for (sums, out) in sums.chunks_exact_mut(PANEL).zip(out.chunks_exact(stride)) {
                sums[..count].copy_from_slice(&out[first..first + count]);
            }
            self.kernel.float_tile(tile, &mut sums, PANEL);
            for (sums, out) in sums.chunks_exact(PANEL).zip(out.chunks_exact_mut(stride)) {
                out[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// As many words; what they hold is of no use.
fn room(words: &mut Vec<u32>, count: usize) -> &mut [u32] {
    if words.len() < count {
        words.resize(count, 0);
    }
    &mut words[..count]
}

fn check(size: Size, left: Left, places: usize) {
    let Size { rows, depth, columns } = size;
    let held = match left.order {
        Order::Inner => rows <= 1 || left.stride >= depth,
        Order::Outer => left.first + rows <= left.stride,
    };
    let outer = if left.order == Order::Inner { rows } else { depth };
    let inner = if left.order == Order::Inner { depth } else { left.first + rows };
    assert!(held && (outer == 0 || left.values.len() >= (outer - 1) * left.stride + inner));
    assert_eq!(places, rows * columns, "a place for each product");
    if let Scale::Each(factors) = left.scale {
        assert_eq!(factors.len(), depth, "a factor for each place of the reduction");
    }
}

fn check_right(format: Format, size: Size, right: Right) {
    let values = match right {
        Right::Codes(codes) => codes.len(),
        Right::Floats(values, _) => values.len(),
        Right::Packed(packed) => {
            assert_eq!(packed.format, format, "packed for this kernel and these operands");
            assert_eq!((packed.depth, packed.columns), (size.depth, size.columns));
            return;
        }
    };
    assert_eq!(values, size.depth * size.columns, "a right operand of this size");
}

/// How values become words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) operands: Operands,
    /// bf16 without the instruction: each value in a word of its own, pairs swapped.
    pub(crate) swapped: bool,
}

impl Format {
    fn new(kernel: Kernel, operands: Operands) -> Self {
        Self { operands, swapped: !kernel.multiplies_bf16() }
    }

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
pub(crate) struct Block {
    pub(crate) first: usize,
    pub(crate) words: usize,
    /// Of the whole reduction, in values.
    pub(crate) depth: usize,
    /// Whether nothing was summed before.
    fresh: bool,
}

impl Block {
    /// Words as they are stored.
    pub(crate) fn used(self, format: Format) -> usize {
        self.words * format.width()
    }

    /// Whole lines of them.
    pub(crate) fn steps(self, format: Format) -> usize {
        self.used(format).next_multiple_of(LINE)
    }

    /// Words from one strip to the next: a line more than it holds, for at a power of two the lines
    /// of neighbouring strips would fall into the same few places of the cache.
    pub(crate) fn strip(self, format: Format) -> usize {
        self.steps(format) * ROWS + LINE
    }

    /// The places of the reduction whose values a word holds, as far as they are there.
    #[inline(always)]
    pub(crate) fn values(self, format: Format, step: usize) -> (Option<usize>, Option<usize>) {
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

/// Some columns of `C`: whole vectors in memory, not all of which need be there.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub(crate) first: usize,
    /// There in `C`.
    pub(crate) count: usize,
    /// In the panel: 16, 32 or 48.
    pub(crate) width: usize,
}

/// Panels of 48 columns; a rest of up to 64 as two of up to 32, so that none is narrow.
fn panels(columns: usize) -> Vec<Columns> {
    let (mut panels, mut first) = (Vec::new(), 0);
    while first < columns {
        let count = match columns - first {
            left @ 1..=PANEL => left,
            49..=64 => 32,
            _ => PANEL,
        };
        panels.push(Columns { first, count, width: count.next_multiple_of(16) });
        first += count;
    }
    panels
}

/// One strip and one panel.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// As [`PackLeft`] lays them.
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
