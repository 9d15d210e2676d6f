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
//! No thread is started here: the caller splits the rows of `C`.

use std::cell::RefCell;

use crate::Kernel;
use crate::gemm::{
    KBlock, MatrixA, MatrixB, OperandLayout, Operands, PANEL, PackedB, PanelColumns, ROWS, Scale,
    Size, TILE_ROWS, Tile, WordFormat,
};
use crate::kernel::HeldTiles;
use crate::layout::LineBuffer;
use crate::pack::{PackA, PackB};

/// Words of the reduction in a block. Sums are kept between blocks, so it changes no bit.
const BLOCK: usize = 256;

/// Panels that are packed together: with the strips of a group they stay in a cache of 1 MB.
const PANELS: usize = 15;

/// Rows whose strips are packed together.
const GROUP: usize = 16 * ROWS;

impl PackedB {
    /// Packs an operand for products with this kernel and these operands.
    pub fn new(
        kernel: Kernel,
        operands: Operands,
        depth: usize,
        columns: usize,
        b: MatrixB,
    ) -> Self {
        let format = WordFormat::new(kernel.multiplies_pairs(operands), operands);
        let size = Size { rows: 0, depth, columns };
        check_b(format, size, b);
        let panels = panels(columns);
        let width: usize = panels.iter().map(|columns| columns.width).sum();
        let length = blocks(format, depth).map(|block| block.steps(format) * width).sum();
        let mut words = LineBuffer::zeros(length);
        let mut rest = &mut words[..];
        for block in blocks(format, depth) {
            for &columns in &panels {
                let panel;
                (panel, rest) = rest.split_at_mut(block.steps(format) * columns.width);
                kernel.packed(PackB { format, size, b, block, columns, panel });
            }
        }
        Self { format, depth, columns, words }
    }

    /// The panels from these columns on in a block, of which a product may use the beginning.
    fn panels(&self, block: KBlock, columns: &[PanelColumns]) -> Panels<'_> {
        let mut stored = blocks(self.format, self.depth).skip(block.first / BLOCK);
        let steps = stored.next().expect("a block of this operand").steps(self.format);
        let width = panels(self.columns).iter().map(|columns| columns.width).sum::<usize>();
        // Every block but the last is whole, and so is every panel but the last.
        // Whole panels before this one are `steps` long and together `columns[0].first` columns
        // wide.
        let before = block.first * self.format.width() * width + steps * columns[0].first;
        Panels { words: &self.words[before..], steps }
    }
}

/// Panels one after the other, `steps` words of each column.
struct Panels<'a> {
    words: &'a [u32],
    steps: usize,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    strips: LineBuffer<u32>,
    panels: LineBuffer<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out [M, N]` = `A · B`, or that added to it.
pub fn float_product(
    kernel: Kernel,
    operands: Operands,
    size: Size,
    a: MatrixA,
    b: MatrixB,
    add: bool,
    out: &mut [f32],
) {
    let format = WordFormat::new(kernel.multiplies_pairs(operands), operands);
    check(size, a, out.len());
    check_b(format, size, b);
    if size.depth == 0 && !add {
        out.fill(0.0);
    }
    let product = Product { kernel, format, size, a, b };
    let held = kernel.float_tiles(format);
    let columns = columns_of(b, size.columns);
    SCRATCH.with_borrow_mut(|scratch| {
        // Every output adds k = 0, 1, 2, … in this order, whatever the panels and groups are: the
        // blocks are the outermost loop, and `out` carries the sums from one block to the next.
        //
        //    for block of K          256 words: strips and panels fit the caches
        //      for 15 panels of B    packed once, used by all rows
        //        for 128 rows of A   packed once, used by all 15 panels
        //          tile 8 x 48
        for block in blocks(format, size.depth) {
            // A fresh block starts its sums at 0 and does not read `out`, which may hold anything.
            let block = KBlock { fresh: block.fresh && !add, ..block };
            for columns in columns.chunks(PANELS) {
                product.some_columns(block, columns, (scratch, &held), out);
            }
        }
    });
}

/// The blocks of a reduction whose sums begin at 0.
fn blocks(format: WordFormat, depth: usize) -> impl Iterator<Item = KBlock> {
    let words = depth.div_ceil(format.operands.per_word());
    (0..words).step_by(BLOCK).map(move |first| KBlock {
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
    format: WordFormat,
    size: Size,
    a: MatrixA<'a>,
    b: MatrixB<'a>,
}

impl Product<'_> {
    /// Adds what a block of the reduction gives in some columns.
    fn some_columns(
        self,
        block: KBlock,
        columns: &[PanelColumns],
        (scratch, held): (&mut Scratch, &HeldTiles),
        out: &mut [f32],
    ) {
        let Self { kernel, format, size, a, b } = self;
        let Scratch { strips, panels } = scratch;
        let steps = block.steps(format);
        let panels = if let MatrixB::PackedB(packed) = b {
            packed.panels(block, columns)
        } else {
            let words =
                scratch_words(panels, columns.iter().map(|columns| steps * columns.width).sum());
            let mut rest = &mut *words;
            for &columns in columns {
                let panel;
                (panel, rest) = rest.split_at_mut(steps * columns.width);
                kernel.packed(PackB { format, size, b, block, columns, panel });
            }
            Panels { words, steps }
        };
        for (group, out) in out.chunks_mut(GROUP * size.columns).enumerate() {
            let first = group * GROUP;
            let rows = first..size.rows.min(first + GROUP);
            let strips =
                scratch_words(strips, rows.len().div_ceil(format.rows()) * block.strip(format));
            kernel.packed(PackA { format, a, block, rows, strips });
            let mut rest = panels.words;
            for &columns in columns {
                let panel;
                (panel, rest) = rest.split_at(panels.steps * columns.width);
                // Of an operand that is deeper than this product, the first steps.
                let panel = &panel[..steps * columns.width];
                self.tiles(held, (block, columns), strips, panel, out);
            }
        }
    }

    /// Adds the products of some strips with a panel.
    fn tiles(
        self,
        held: &HeldTiles,
        (block, columns): (KBlock, PanelColumns),
        strips: &[u32],
        panel: &[u32],
        out: &mut [f32],
    ) {
        let PanelColumns { first, count, width } = columns;
        let Self { kernel, format, .. } = self;
        let (rows, stride, fresh) = (format.rows(), self.size.columns, block.fresh);
        let by_rows = self.a.layout == OperandLayout::KInner || format.in_tiles();
        let length = block.steps(format) * rows;
        let places = out.chunks_mut(rows * stride);
        for (strip, out) in strips.chunks_exact(block.strip(format)).zip(places) {
            let tile = Tile { strip: &strip[..length], by_rows, panel, width, format, fresh };
            if count == width && out.len() == rows * stride {
                kernel.float_tile(held, tile, &mut out[first..], stride);
                continue;
            }
            // Tiles at the edge: fewer rows or columns than a whole one. They are computed in a
            // whole tile aside, so the kernel needs no case for them.
            let mut sums = [0.0; TILE_ROWS * PANEL];
            for (sums, out) in sums.chunks_exact_mut(PANEL).zip(out.chunks_exact(stride)) {
                sums[..count].copy_from_slice(&out[first..first + count]);
            }
            kernel.float_tile(held, tile, &mut sums, PANEL);
            for (sums, out) in sums.chunks_exact(PANEL).zip(out.chunks_exact_mut(stride)) {
                out[first..first + count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

/// As many words; what they hold is of no use.
fn scratch_words(words: &mut LineBuffer<u32>, count: usize) -> &mut [u32] {
    if words.len() < count {
        words.resize(count);
    }
    &mut words[..count]
}

fn check(size: Size, a: MatrixA, places: usize) {
    let Size { rows, depth, columns } = size;
    let held = match a.layout {
        OperandLayout::KInner => rows <= 1 || a.stride >= depth,
        OperandLayout::KOuter => a.first + rows <= a.stride,
    };
    let outer = if a.layout == OperandLayout::KInner { rows } else { depth };
    let inner = if a.layout == OperandLayout::KInner { depth } else { a.first + rows };
    assert!(held && (outer == 0 || a.values.len() >= (outer - 1) * a.stride + inner));
    assert_eq!(places, rows * columns, "a place for each product");
    if let Scale::Each(factors) = a.scale {
        assert_eq!(factors.len(), depth, "a factor for each place of the reduction");
    }
}

fn check_b(format: WordFormat, size: Size, b: MatrixB) {
    let values = match b {
        MatrixB::Codes(codes) => codes.len(),
        MatrixB::Floats(values, _) => values.len(),
        MatrixB::PackedB(packed) => {
            assert_eq!(packed.format, format, "packed for this kernel and these operands");
            assert!(packed.depth >= size.depth && packed.columns >= size.columns);
            return;
        }
    };
    assert_eq!(values, size.depth * size.columns, "a B of this size");
}

/// The columns of a product, in the panels that `b` has or will have.
fn columns_of(b: MatrixB, count: usize) -> Vec<PanelColumns> {
    let MatrixB::PackedB(packed) = b else { return panels(count) };
    let all = panels(packed.columns).into_iter().take_while(|columns| columns.first < count);
    all.map(|columns| PanelColumns { count: columns.count.min(count - columns.first), ..columns })
        .collect()
}

/// Panels of 48 columns; a rest of up to 64 as two of up to 32, so that none is narrow.
fn panels(columns: usize) -> Vec<PanelColumns> {
    let (mut panels, mut first) = (Vec::new(), 0);
    while first < columns {
        let count = match columns - first {
            left @ 1..=PANEL => left,
            49..=64 => 32,
            _ => PANEL,
        };
        panels.push(PanelColumns { first, count, width: count.next_multiple_of(16) });
        first += count;
    }
    panels
}
