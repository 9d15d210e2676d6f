//! Products of ternary matrices with tokens that stay floats ([`crate::float_codes`] has the definition): 32 rows and
//! some tokens at a time.

use std::borrow::Cow;
use std::ops::Range;

use crate::float_codes::{RowValues, TokenFloats};
use crate::groups::{GroupedPair, widened};
use crate::layout::{CHUNK, ROWS_PER_PAIR};
use crate::{GroupPanels, Kernel, TernaryPanels};

/// Chunks of a block where a row has one scale.
const ROW_BLOCK: usize = 16;

/// Tokens that meet a pair of panels before the next pair comes.
const TOKENS_PER_PASS: usize = 64;

impl TernaryPanels {
    /// `out [T, rows]` = the products of float tokens `x [T, K]` with some rows: sums of `T·x` over
    /// blocks of 256 columns, added in ascending order, then times the row's scale. The same bits in every kernel.
    ///
    /// `rows` starts at a multiple of [`ROWS_PER_PAIR`].
    ///
    /// # Panics
    /// If rows, columns or places do not fit.
    pub fn float_product(&self, kernel: Kernel, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows of this matrix");
        each_pair(self.columns(), x, rows, out, |first, tokens, found, sums| {
            let blocks = self.pair(first / ROWS_PER_PAIR).chunks(ROW_BLOCK);
            found.fill([0.0; ROWS_PER_PAIR]);
            for (index, block) in blocks.enumerate() {
                kernel.code_sums(block, tokens.behind(index * ROW_BLOCK), sums);
                let places = found.as_flattened_mut().iter_mut();
                places.zip(sums.as_flattened()).for_each(|(found, sum)| *found += sum);
            }
            let scales = &self.scales()[first..];
            for found in found {
                found.iter_mut().zip(scales).for_each(|(found, scale)| *found *= scale);
            }
        });
    }
}

impl GroupPanels {
    /// `out [T, rows]` = the products of float tokens `x [T, K]` with some rows: for each group its scale times
    /// its sum of `T·x`, added in ascending order. The same bits in every kernel.
    ///
    /// `rows` starts at a multiple of [`ROWS_PER_PAIR`].
    ///
    /// # Panics
    /// If rows, columns or places do not fit.
    pub fn float_product(&self, kernel: Kernel, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows of this matrix");
        each_pair(self.columns(), x, rows, out, |first, tokens, found, sums| {
            scaled_groups(kernel, self.pair(first / ROWS_PER_PAIR), tokens, found, sums);
        });
    }
}

fn scaled_groups(
    kernel: Kernel,
    pair: GroupedPair,
    tokens: TokenFloats,
    found: &mut [RowValues],
    sums: &mut [RowValues],
) {
    found.fill([0.0; ROWS_PER_PAIR]);
    for (index, (scales, chunks)) in pair.groups().enumerate() {
        kernel.code_sums(chunks, tokens.behind(index * pair.chunks), sums);
        let scales = widened(scales);
        for (found, sums) in found.iter_mut().zip(&*sums) {
            for ((found, sum), scale) in found.iter_mut().zip(sums).zip(&scales) {
                *found += scale * sum;
            }
        }
    }
}

/// Calls `product(first row, tokens, found, room for sums)` for all of `rows` and `x`, and puts what
/// it found in place.
fn each_pair(
    columns: usize,
    x: &[f32],
    rows: Range<usize>,
    out: &mut [f32],
    product: impl Fn(usize, TokenFloats, &mut [RowValues], &mut [RowValues]),
) {
    assert!(
        rows.start.is_multiple_of(ROWS_PER_PAIR),
        "a row range starts at a multiple of {ROWS_PER_PAIR}"
    );
    assert!(x.len().is_multiple_of(columns), "whole tokens of {columns} values");
    let (tokens, width) = (x.len() / columns, columns.div_ceil(CHUNK));
    assert_eq!(out.len(), tokens * rows.len(), "one place for each token and row");
    let x = whole_chunks(x, columns);
    let x = x.as_chunks::<CHUNK>().0;
    let mut room = vec![[0.0; ROWS_PER_PAIR]; 2 * tokens.min(TOKENS_PER_PASS)];
    for start in (0..tokens).step_by(TOKENS_PER_PASS) {
        let count = TOKENS_PER_PASS.min(tokens - start);
        let (found, sums) = room[..2 * count].split_at_mut(count);
        let some = TokenFloats { chunks: &x[start * width..], stride: width };
        for first in rows.clone().step_by(ROWS_PER_PAIR) {
            product(first, some, found, sums);
            let here = ROWS_PER_PAIR.min(rows.end - first);
            let places = out[start * rows.len()..].chunks_exact_mut(rows.len());
            for (out, found) in places.zip(&*found) {
                out[first - rows.start..][..here].copy_from_slice(&found[..here]);
            }
        }
    }
}

/// Tokens of whole chunks: where `columns` ends within one, zeros follow, which meet the code 0.
fn whole_chunks(x: &[f32], columns: usize) -> Cow<'_, [f32]> {
    if columns.is_multiple_of(CHUNK) {
        return Cow::Borrowed(x);
    }
    let width = columns.next_multiple_of(CHUNK);
    let mut padded = vec![0.0; x.len() / columns * width];
    for (padded, x) in padded.chunks_exact_mut(width).zip(x.chunks_exact(columns)) {
        padded[..columns].copy_from_slice(x);
    }
    Cow::Owned(padded)
}
