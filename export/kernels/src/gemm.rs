//! The operands of a float product as kernels see them: matrices, blocks of the reduction, strips,
//! panels and tiles. `float` cuts a product into them, `pack` fills them, a kernel multiplies one tile.
//!
//! ```text
//!        panel: 48 columns of B                  tile: 8 x 48 sums of C
//!        ┌────────────────┐                      ┌────────────────┐
//! strip  │ k = 0          │        strip         │                │
//! 8 rows │ k = 1          │   ┌───────────┐      │  += Σ a·b      │
//! of A   │  …             │   │k=0 1 2 …  │  x   │                │
//!        └────────────────┘   └───────────┘      └────────────────┘
//! ```
#![expect(clippy::inline_always, reason = "packing uses it, compiled for each instruction set")]

use std::ops::Range;

use half::bf16;

use crate::layout::LineBuffer;

/// Rows of a strip.
pub(crate) const ROWS: usize = 8;

/// Rows of a strip for tile registers.
pub(crate) const TILE_ROWS: usize = 16;

/// Columns of a whole panel.
pub(crate) const PANEL: usize = 48;

/// Words of one row that lie together in a strip.
pub(crate) const LINE: usize = 16;

/// The number format of the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// f32.
    F32,
    /// f32 rounded to bf16, half to even; the sums stay f32, one chain of fused multiply-adds an
    /// output.
    Bf16,
    /// As [`Operands::Bf16`] in the order of tile instructions: of 32 places of the reduction those with an
    /// even number are one chain that begins at 0, the others another; both are added, and then that
    /// to the output.
    Bf16Tiles,
}

impl Operands {
    /// Values of a 32-bit word.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 | Self::Bf16Tiles => 2,
        }
    }

    /// Whether they are rounded to bf16.
    pub fn are_bf16(self) -> bool {
        self != Self::F32
    }
}

/// How an operand lies in memory, seen from the reduction `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandLayout {
    /// `k` is the last dimension: `A [M, K]`, `B [N, K]`.
    KInner,
    /// `k` is the first dimension: `A [K, M]`, `B [K, N]`.
    KOuter,
}

/// What `A` is multiplied by before it is rounded.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// One factor for all.
    All(f32),
    /// One factor for each `k`.
    Each(&'a [f32]),
}

impl Scale<'_> {
    pub(crate) fn at(self, k: usize) -> f32 {
        match self {
            Self::All(factor) => factor,
            Self::Each(factors) => factors[k],
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

/// The operand `A`: some rows of `C` and the whole reduction.
#[derive(Clone, Copy, Debug)]
pub struct MatrixA<'a> {
    /// `[M, R]`, or `[R, stride]` of which columns `first .. first + M` are meant.
    pub values: &'a [f32],
    /// Which of the two.
    pub layout: OperandLayout,
    /// Values from one place of the outer dimension to the next.
    pub stride: usize,
    /// The first column of the outer order; 0 else.
    pub first: usize,
    /// Multiplied in before rounding.
    pub scale: Scale<'a>,
}

/// The operand `B`.
#[derive(Clone, Copy, Debug)]
pub enum MatrixB<'a> {
    /// Small integers `[R, N]`, which every kind of operand holds exactly.
    Codes(&'a [i8]),
    /// `[R, N]` or `[N, R]`.
    Floats(&'a [f32], OperandLayout),
    /// Packed once for several products, which use the first columns and the first places of the
    /// reduction. What lies behind those must be finite: it is multiplied by 0.
    PackedB(&'a PackedB),
}

/// `B [K, N]` in panels: block after block of the reduction, panel after panel.
#[derive(Clone, Debug)]
pub struct PackedB {
    pub(crate) format: WordFormat,
    pub(crate) depth: usize,
    pub(crate) columns: usize,
    pub(crate) words: LineBuffer<u32>,
}

/// The size of a product `[M, K] · [K, N]`.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Rows of `A` and `C`.
    pub rows: usize,
    /// Length of the reduction.
    pub depth: usize,
    /// Columns of `B` and `C`.
    pub columns: usize,
}

/// How values become 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WordFormat {
    pub(crate) operands: Operands,
    /// bf16 without the instruction: each value in a word of its own, pairs swapped.
    pub(crate) swapped: bool,
}

impl WordFormat {
    pub(crate) fn new(multiplies_pairs: bool, operands: Operands) -> Self {
        Self { operands, swapped: !multiplies_pairs }
    }

    /// Whether a word holds two values.
    pub(crate) fn pairs(self) -> bool {
        self.operands.are_bf16() && !self.swapped
    }

    /// Whether strips and panels are for tile registers.
    pub(crate) fn in_tiles(self) -> bool {
        self.operands == Operands::Bf16Tiles && self.pairs()
    }

    /// Rows of a strip.
    pub(crate) fn rows(self) -> usize {
        if self.in_tiles() { TILE_ROWS } else { ROWS }
    }

    /// 32-bit words that hold one word's values.
    pub(crate) fn width(self) -> usize {
        if self.operands.are_bf16() && self.swapped { 2 } else { 1 }
    }
}

/// A part of the reduction, in words.
#[derive(Clone, Copy)]
pub(crate) struct KBlock {
    pub(crate) first: usize,
    pub(crate) words: usize,
    /// Length of the whole reduction, in values.
    pub(crate) depth: usize,
    /// Whether nothing was summed before.
    pub(crate) fresh: bool,
}

impl KBlock {
    /// Words as they are stored.
    pub(crate) fn used(self, format: WordFormat) -> usize {
        self.words * format.width()
    }

    /// Whole lines of them.
    pub(crate) fn steps(self, format: WordFormat) -> usize {
        self.used(format).next_multiple_of(LINE)
    }

    /// Words from one strip to the next: a line more than it holds, for at a power of two the lines
    /// of neighbouring strips would fall into the same few places of the cache.
    pub(crate) fn strip(self, format: WordFormat) -> usize {
        self.steps(format) * format.rows() + LINE
    }

    /// The places of the reduction whose values a word holds, as far as they are there.
    #[inline(always)]
    pub(crate) fn values(self, format: WordFormat, step: usize) -> (Option<usize>, Option<usize>) {
        let there = |value: usize| if value < self.depth { Some(value) } else { None };
        match (format.operands, format.swapped) {
            (Operands::F32, _) => (there(self.first + step), None),
            (Operands::Bf16 | Operands::Bf16Tiles, false) => {
                let value = 2 * (self.first + step);
                (there(value), there(value + 1))
            }
            (Operands::Bf16 | Operands::Bf16Tiles, true) => {
                (there(2 * (self.first + step / 2) + 1 - step % 2), None)
            }
        }
    }
}

/// Some columns of `C`: whole vectors in memory, not all of which need be there.
#[derive(Clone, Copy)]
pub(crate) struct PanelColumns {
    pub(crate) first: usize,
    /// There in `C`.
    pub(crate) count: usize,
    /// In the panel: 16, 32 or 48.
    pub(crate) width: usize,
}

/// One strip and one panel.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// As [`PackA`] lays them.
    pub(crate) strip: &'a [u32],
    /// Whether a line holds words of one row.
    pub(crate) by_rows: bool,
    /// `[steps, width]`
    pub(crate) panel: &'a [u32],
    pub(crate) width: usize,
    pub(crate) format: WordFormat,
    /// Whether the sums begin at 0, whatever the places hold.
    pub(crate) fresh: bool,
}

/// The reference of [`crate::Kernel::float_tile`]: each output one chain of fused multiply-adds.
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
    if tile.format.operands == Operands::Bf16Tiles {
        return scalar_chains(tile, word, sums, stride);
    }
    for (step, b) in tile.panel.chunks_exact(tile.width).enumerate() {
        for (row, sums) in sums.chunks_mut(stride).take(ROWS).enumerate() {
            let a = word(row, step);
            for (sum, &b) in sums.iter_mut().zip(b) {
                if tile.format.pairs() {
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

/// Stored words whose values are summed apart in the order of tiles: 32 places of the reduction.
pub(crate) const CHAIN: usize = 32;

/// [`Operands::Bf16Tiles`] with a value in each word.
fn scalar_chains(tile: Tile, word: impl Fn(usize, usize) -> u32, sums: &mut [f32], stride: usize) {
    assert!(!tile.format.pairs(), "words of one value");
    for (chain, panel) in tile.panel.chunks(CHAIN * tile.width).enumerate() {
        for (row, sums) in sums.chunks_mut(stride).take(ROWS).enumerate() {
            for (column, sum) in sums[..tile.width].iter_mut().enumerate() {
                let mut chains = [0.0f32; 2];
                for (step, b) in panel.chunks_exact(tile.width).enumerate() {
                    let a = f32::from_bits(word(row, chain * CHAIN + step));
                    let total = &mut chains[step % 2];
                    *total = a.mul_add(f32::from_bits(b[column]), *total);
                }
                *sum += chains[0] + chains[1];
            }
        }
    }
}
