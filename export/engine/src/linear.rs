//! `BitLinear` and the head: products of all tokens with a matrix, split over the threads.
//!
//! Few tokens are split by rows, so that each weight is read once; many by tokens.

use std::ops::Range;

use bitnet_format::group::ActivationForm;
use bitnet_kernels::{
    Activations, DenseMatrix, GroupPanels, INT8_ROWS, Int8Matrix, ROWS_PER_PAIR, TernaryPanels,
    grouped_product, matmul,
};

use crate::compute::KernelChoice;
use crate::workspace::{Products, scratch_slice, with_thread_scratch};

/// Up to here reading the weights takes longer than putting the outputs in order.
const FEW_TOKENS: usize = 64;

/// What quantising a value costs next to a multiply-add, roughly.
const QUANTISE_COST: usize = 16;

/// What moving a value from another core costs next to a multiply-add, roughly.
const COPY_COST: usize = 8;

/// Rows of a dense matrix that one call computes.
const DENSE_ROWS: usize = 16;

/// A matrix `[rows, columns]` whose rows are computed in groups of `unit`.
#[derive(Clone, Copy)]
struct MatrixShape {
    rows: usize,
    columns: usize,
    unit: usize,
}

/// A ternary matrix `[N, K]`, or several below each other, and what it is multiplied with.
#[derive(Debug)]
pub(crate) struct TernaryMatrix {
    pub(crate) panels: Panels,
    pub(crate) activations: ActivationForm,
}

/// Codes as a kernel reads them.
#[derive(Debug)]
pub(crate) enum Panels {
    /// One scale a matrix or a row.
    Rows(TernaryPanels),
    /// A scale for each group of columns.
    Groups(GroupPanels),
}

impl TernaryMatrix {
    /// Outputs, `N`.
    pub(crate) fn rows(&self) -> usize {
        match &self.panels {
            Panels::Rows(panels) => panels.rows(),
            Panels::Groups(panels) => panels.rows(),
        }
    }

    /// Inputs, `K`.
    pub(crate) fn columns(&self) -> usize {
        match &self.panels {
            Panels::Rows(panels) => panels.columns(),
            Panels::Groups(panels) => panels.columns(),
        }
    }

    /// The weights of one row `[K]`.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) {
        match &self.panels {
            Panels::Rows(panels) => panels.copy_row(row, out),
            Panels::Groups(panels) => panels.copy_row(row, out),
        }
    }

    /// `x [T, K]` → `out [T, N]`: activations to 8 bits, the exact integer product, then the scales
    /// (BitNet b1.58, arXiv 2402.17764); or floats times the weights, where a model has those.
    pub(crate) fn forward(
        &self,
        compute: KernelChoice,
        x: &[f32],
        products: &mut Products,
        out: &mut [f32],
    ) {
        let (rows, columns, kernel) = (self.rows(), self.columns(), compute.kernel);
        let shape = MatrixShape { rows, columns, unit: ROWS_PER_PAIR };
        match (&self.panels, self.activations) {
            (Panels::Rows(panels), ActivationForm::Int8) => {
                quantised(compute, shape, x, products, out, |x, rows, out| {
                    matmul(kernel, panels, x, rows, out);
                });
            }
            (Panels::Groups(panels), ActivationForm::Int8) => {
                quantised(compute, shape, x, products, out, |x, rows, out| {
                    grouped_product(kernel, panels, x, rows, out);
                });
            }
            (Panels::Rows(panels), ActivationForm::None) => {
                floats(compute, shape, x, &mut products.tiles, out, |x, rows, out| {
                    panels.float_product(kernel, x, rows, out);
                });
            }
            (Panels::Groups(panels), ActivationForm::None) => {
                floats(compute, shape, x, &mut products.tiles, out, |x, rows, out| {
                    panels.float_product(kernel, x, rows, out);
                });
            }
        }
    }
}

/// The embedding table or the head.
#[derive(Debug)]
pub(crate) enum EmbeddingOrHead {
    /// At the precision of the file.
    File(DenseMatrix),
    /// In 8 bits.
    Int8(Int8Matrix),
    /// In codes, as the matrices of the blocks are.
    Ternary(TernaryMatrix),
}

impl EmbeddingOrHead {
    /// The embedding of one token `[C]`.
    pub(crate) fn copy_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::File(matrix) => matrix.copy_row(row, out),
            Self::Int8(matrix) => matrix.copy_row(row, out),
            Self::Ternary(matrix) => matrix.copy_row(row, out),
        }
    }

    /// `x [T, C]` → logits `[T, V]`: the head is not a `BitLinear`, unless it is ternary.
    pub(crate) fn logits(
        &self,
        compute: KernelChoice,
        x: &[f32],
        products: &mut Products,
        out: &mut [f32],
    ) {
        match self {
            Self::File(matrix) => dense(compute, matrix, x, &mut products.tiles, out),
            Self::Int8(matrix) => int8(compute, matrix, x, products, out),
            Self::Ternary(matrix) => matrix.forward(compute, x, products, out),
        }
    }
}

/// `x [T, K]` → `out [T, N]` in floats.
pub(crate) fn dense(
    compute: KernelChoice,
    matrix: &DenseMatrix,
    x: &[f32],
    tiles: &mut Vec<f32>,
    out: &mut [f32],
) {
    let shape = MatrixShape { rows: matrix.rows(), columns: matrix.columns(), unit: DENSE_ROWS };
    floats(compute, shape, x, tiles, out, |x, rows, out| {
        matrix.matmul(compute.kernel, x, rows, out);
    });
}

/// Calls `product(tokens, rows, out)` so that all of `out [T, N]` is computed.
fn floats(
    compute: KernelChoice,
    shape: MatrixShape,
    x: &[f32],
    tiles: &mut Vec<f32>,
    out: &mut [f32],
    product: impl Fn(&[f32], Range<usize>, &mut [f32]) + Sync,
) {
    // Few tokens: threads take rows, so that each weight is read by one of them. Many tokens:
    // threads take tokens, because then the weights are read often anyway and every thread can
    // quantise its own input.
    if x.len() <= FEW_TOKENS * shape.columns {
        by_rows(compute, shape, tiles, out, |rows, out| product(x, rows, out));
    } else {
        by_tokens(compute, shape, x, out, |x, out| product(x, 0..shape.rows, out));
    }
}

fn int8(
    compute: KernelChoice,
    matrix: &Int8Matrix,
    x: &[f32],
    products: &mut Products,
    out: &mut [f32],
) {
    let shape = MatrixShape { rows: matrix.rows(), columns: matrix.columns(), unit: INT8_ROWS };
    quantised(compute, shape, x, products, out, |x, rows, out| {
        matrix.matmul(compute.kernel, x, rows, out);
    });
}

/// [`floats`] with tokens quantised to 8 bits.
fn quantised(
    compute: KernelChoice,
    shape: MatrixShape,
    x: &[f32],
    products: &mut Products,
    out: &mut [f32],
    product: impl Fn(&Activations, Range<usize>, &mut [f32]) + Sync,
) {
    let Products { activations, tiles, .. } = products;
    if x.len() <= FEW_TOKENS * shape.columns {
        quantise(compute, x, shape.columns, activations);
        let x = &*activations;
        by_rows(compute, shape, tiles, out, |rows, out| product(x, rows, out));
    } else {
        by_tokens(compute, shape, x, out, |x, out| {
            with_thread_scratch(|scratch| {
                scratch.activations.requantise(compute.kernel, x, shape.columns);
                product(&scratch.activations, 0..shape.rows, out);
            });
        });
    }
}

/// `x [T, columns]` to 8 bits. One token allocates nothing.
fn quantise(compute: KernelChoice, x: &[f32], columns: usize, activations: &mut Activations) {
    let KernelChoice { kernel, threads } = compute;
    if x.len() == columns {
        return activations.requantise(kernel, x, columns);
    }
    let mut slots: Vec<_> = activations.slots([x.len() / columns, columns]).collect();
    threads.split(&mut slots, 1, QUANTISE_COST * columns, |first, slots| {
        let rows = x[first * columns..].chunks_exact(columns);
        slots.iter_mut().zip(rows).for_each(|(slot, row)| slot.quantise(kernel, row));
    });
}

fn by_tokens(
    compute: KernelChoice,
    shape: MatrixShape,
    x: &[f32],
    out: &mut [f32],
    product: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    let MatrixShape { rows, columns, .. } = shape;
    // Fewer where there are threads for more parts.
    let each = x.len() / columns / compute.threads.count();
    let tokens = each.clamp(1, compute.kernel.tokens_together());
    compute.threads.split(out, tokens * rows, tokens * rows * columns, |first, out| {
        let start = first * tokens * columns;
        product(&x[start..][..out.len() / rows * columns], out);
    });
}

/// `product(rows, out [T, those rows])` for groups of rows, whose outputs are then put in place.
fn by_rows(
    compute: KernelChoice,
    shape: MatrixShape,
    tiles: &mut Vec<f32>,
    out: &mut [f32],
    product: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let MatrixShape { rows, columns, unit } = shape;
    let (tokens, threads) = (out.len() / rows, compute.threads);
    // One token: the outputs of a range of rows lie together, so each thread writes straight into
    // `out`.
    if tokens == 1 {
        return threads.split(out, unit, unit * columns, |group, out| {
            product(group * unit..group * unit + out.len(), out);
        });
    }
    if threads.count() == 1 {
        return product(0..rows, out);
    }
    // Several tokens: rows of `out [T, N]` interleave what threads compute. Each writes a tile `[T,
    // its rows]`, and a second pass copies the tiles into place:
    //
    //    tiles  [ t0: r0 r1 | t1: r0 r1 ] [ t0: r2 r3 | t1: r2 r3 ]
    //    out    [ t0: r0 r1 r2 r3 ] [ t1: r0 r1 r2 r3 ]
    let tiles = scratch_slice(tiles, out.len());
    threads.split(tiles, unit * tokens, unit * columns * tokens, |first, tiles| {
        for (group, tile) in (first..).zip(tiles.chunks_mut(unit * tokens)) {
            product(group * unit..group * unit + tile.len() / tokens, tile);
        }
    });
    let tiles = &*tiles;
    threads.split(out, rows, COPY_COST * rows, |first, out| {
        for (token, out) in (first..).zip(out.chunks_mut(rows)) {
            for (places, tile) in out.chunks_mut(unit).zip(tiles.chunks(unit * tokens)) {
                let here = token * places.len()..(token + 1) * places.len();
                places.copy_from_slice(&tile[here]);
            }
        }
    });
}
