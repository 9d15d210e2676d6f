//! Ternary products over a range of rows: the loop that every instruction set shares.
//!
//! An instruction set supplies one tile (32 rows × up to four tokens of `Σ u·q`); walking the
//! panels, subtracting the `+ 1` of `u = T + 1` and rescaling happen here, once.

use std::ops::Range;

use crate::panels::ROWS_PER_PAIR;
use crate::{Activations, Kernel, TernaryPanels};

/// Tokens that share one unpacking of a pair of panels; a multiple of every kernel's tile.
const TOKENS_PER_PASS: usize = 1020;

/// `out [T, rows]` = `(Σ q·T) · m / a`, in this order, the same bits in every kernel.
///
/// `rows` starts at a multiple of [`ROWS_PER_PAIR`] and ends at one or at the last row.
pub fn matmul(
    kernel: Kernel,
    panels: &TernaryPanels,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [f32],
) {
    each_run(kernel, panels, x, rows, out, |out, sums, token, first_row| {
        kernel.rescale(sums, x.sum(token), &panels.scales()[first_row..], x.scale(token), out);
    });
}

/// `out [T, rows]` = `Σ q·T`, exact. Row ranges are those of [`matmul`].
pub fn accumulate(
    kernel: Kernel,
    panels: &TernaryPanels,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [i32],
) {
    each_run(kernel, panels, x, rows, out, |out, sums, token, _| {
        let offset = x.sum(token);
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum - offset);
    });
}

/// Calls `write(places, Σ u·q, token, first row)` for each run of places in `out [T, rows]`.
fn each_run<O>(
    kernel: Kernel,
    panels: &TernaryPanels,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [O],
    write: impl Fn(&mut [O], &[i32], usize, usize),
) {
    check(panels, x, &rows, out.len());
    let width = rows.len();
    // A single token, the case that must not wait, gets no allocation.
    let (mut one, mut many) = ([[0; ROWS_PER_PAIR]; 1], Vec::new());
    let tiles = if x.tokens() > 1 {
        many.resize(x.tokens().min(TOKENS_PER_PASS), [0; ROWS_PER_PAIR]);
        &mut many[..]
    } else {
        &mut one[..]
    };
    for first_row in rows.clone().step_by(ROWS_PER_PAIR) {
        let pair = panels.pair(first_row / ROWS_PER_PAIR);
        let here = ROWS_PER_PAIR.min(rows.end - first_row);
        for first_token in (0..x.tokens()).step_by(TOKENS_PER_PASS) {
            let count = TOKENS_PER_PASS.min(x.tokens() - first_token);
            let tile = &mut tiles[..count];
            kernel.tile(pair, x.chunks_of(first_token, count), tile);
            for (token, sums) in (first_token..).zip(tile) {
                let places = &mut out[token * width + first_row - rows.start..][..here];
                write(places, &sums[..here], token, first_row);
            }
        }
    }
}

fn check(panels: &TernaryPanels, x: &Activations, rows: &Range<usize>, places: usize) {
    assert_eq!(panels.columns(), x.columns(), "as many activations as columns");
    assert!(rows.start <= rows.end && rows.end <= panels.rows(), "rows of this matrix");
    let whole = |row: usize| row.is_multiple_of(ROWS_PER_PAIR);
    assert!(whole(rows.start), "a row range starts at a multiple of {ROWS_PER_PAIR}");
    assert!(whole(rows.end) || rows.end == panels.rows(), "a row range ends with a pair of panels");
    assert_eq!(places, x.tokens() * rows.len(), "one place for each token and row");
}
