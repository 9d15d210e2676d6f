//! Products of a matrix with groups over a range of rows: some tokens and 32 rows at a time.

use std::ops::Range;

use crate::groups::{GroupTile, TokenGroups};
use crate::kernel::HeldTiles;
use crate::layout::{BLOCK_CHUNKS, CHUNK, OnLines, ROWS_PER_PAIR};
use crate::{Activations, GroupPanels, Kernel};

/// Tokens that meet a pair of panels before the next pair comes: as many as in `product`.
const TOKENS_PER_PASS: usize = 128;

/// `out [T, rows]` = the products of quantised tokens with some rows of a matrix with groups, the same
/// bits in every kernel: `acc ← acc + d · ((1/a) · s)` for each group, ascending from 0, with the exact
/// sum `s` of the group, its scale `d` and the token's scale `a`, each operation rounded once in f32.
///
/// `rows` starts at a multiple of [`ROWS_PER_PAIR`] and ends at one or at the last row.
///
/// # Panics
/// If rows, columns or places do not fit.
pub fn grouped_product(
    kernel: Kernel,
    panels: &GroupPanels,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [f32],
) {
    panels.check(x.columns(), x.tokens(), &rows, out.len());
    match x.tokens() {
        0 => {}
        // `T` is the size of two arrays on the stack. Decoding one token clears 256 bytes of them,
        // not 32 KB.
        1 => pass::<1>(kernel, panels, x, 0..1, rows, out),
        2..=8 => pass::<8>(kernel, panels, x, 0..x.tokens(), rows, out),
        tokens => {
            for first in (0..tokens).step_by(TOKENS_PER_PASS) {
                let some = first..tokens.min(first + TOKENS_PER_PASS);
                let places = &mut out[first * rows.len()..some.end * rows.len()];
                pass::<TOKENS_PER_PASS>(kernel, panels, x, some, rows.clone(), places);
            }
        }
    }
}

/// At most `T` tokens with all of `rows`.
fn pass<const T: usize>(
    kernel: Kernel,
    panels: &GroupPanels,
    x: &Activations,
    tokens: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (mut sums, mut found) =
        (OnLines([[0; ROWS_PER_PAIR]; T]), OnLines([[0.0; ROWS_PER_PAIR]; T]));
    let mut steps = [0.0; T];
    let (sums, found) = (&mut sums.0[..tokens.len()], &mut found.0[..tokens.len()]);
    for (step, scale) in steps.iter_mut().zip(&x.scales()[tokens.clone()]) {
        // Rounded once a token: the definition multiplies by this inverse and does not divide by
        // `a`.
        *step = 1.0 / scale.multiplier();
    }
    let (groups, chunks) = (x.columns() / panels.width(), panels.width() / CHUNK);
    let blocks = &x.block_sums()[tokens.start * groups * chunks / BLOCK_CHUNKS..];
    let blocks = blocks.chunks_exact(chunks / BLOCK_CHUNKS);
    let offsets = blocks.take(tokens.len() * groups).map(|blocks| blocks.iter().sum());
    let offsets: Vec<i32> = offsets.collect();
    let codes = x.token_codes(tokens);
    let tokens = TokenGroups { codes, chunks, offsets: &offsets, groups, steps: &steps };
    let mut held = HeldTiles::default();
    for first in rows.clone().step_by(ROWS_PER_PAIR) {
        let tile = GroupTile { sums: &mut *sums, out: &mut *found };
        kernel.grouped(&mut held, panels.pair(first / ROWS_PER_PAIR), tokens, tile);
        let here = first - rows.start..rows.len().min(first - rows.start + ROWS_PER_PAIR);
        for (out, found) in out.chunks_exact_mut(rows.len()).zip(&*found) {
            match out[here.clone()].as_mut_array() {
                Some(whole) => *whole = *found,
                None => out[here.clone()].copy_from_slice(&found[..here.len()]),
            }
        }
    }
}
