//! Ternary products over a range of rows: the loop that every instruction set shares.
//!
//! An instruction set supplies one tile (32 rows × some tokens of `Σ u·q`); walking the panels,
//! subtracting the `+ 1` of `u = T + 1` and rescaling happen here, once.

use std::ops::Range;

use crate::kernel::HeldTiles;
use crate::layout::{OnLines, ROWS_PER_PAIR, RescaleTerms};
use crate::prefetch::prefetch;
use crate::{Activations, Kernel, TernaryPanels};

/// Tokens that meet a pair of panels before the next pair comes: a multiple of every kernel's
/// tile, and few enough for their codes to stay in the second cache.
const TOKENS_PER_PASS: usize = 128;

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
    each_tile(kernel, panels, x, rows, out, |tile, tokens, rows, stride, out| {
        let terms = RescaleTerms {
            offsets: &x.sums()[tokens.clone()],
            factor: 1,
            weights: &panels.scales()[rows],
            scales: &x.scales()[tokens],
            stride,
        };
        kernel.rescale(tile, terms, out);
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
    each_tile(kernel, panels, x, rows, out, |tile, tokens, rows, stride, out| {
        let places = out.chunks_mut(stride).zip(tile).zip(&x.sums()[tokens]);
        for ((out, sums), offset) in places {
            out.iter_mut().zip(&sums[..rows.len()]).for_each(|(out, sum)| *out = sum - offset);
        }
    });
}

/// Calls `write(sums [t][32], tokens, rows, stride, places)` for some tokens and each pair of
/// panels; `places` starts at the output of the first of both, a token every `stride`.
fn each_tile<O>(
    kernel: Kernel,
    panels: &TernaryPanels,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [O],
    write: impl Fn(&[[i32; ROWS_PER_PAIR]], Range<usize>, Range<usize>, usize, &mut [O]),
) {
    check(panels, x, &rows, out.len());
    let (stride, mut held) = (rows.len(), HeldTiles::default());
    // A single token, the case that must not wait, clears no more than it needs.
    let (mut one, mut few, mut many);
    let sums: &mut [[i32; ROWS_PER_PAIR]] = match x.tokens() {
        0..=1 => {
            one = OnLines([[0; ROWS_PER_PAIR]; 1]);
            &mut one.0
        }
        2..=8 => {
            few = OnLines([[0; ROWS_PER_PAIR]; 8]);
            &mut few.0
        }
        _ => {
            many = OnLines([[0; ROWS_PER_PAIR]; TOKENS_PER_PASS]);
            &mut many.0
        }
    };
    for first in (0..x.tokens()).step_by(TOKENS_PER_PASS) {
        let tokens = first..x.tokens().min(first + TOKENS_PER_PASS);
        let (codes, tile) = (x.token_codes(tokens.clone()), &mut sums[..tokens.len()]);
        // Tokens outside, panels inside: at most 64 tokens stay in the cache while the whole matrix
        // streams past them once.
        for row in rows.clone().step_by(ROWS_PER_PAIR) {
            let here = row..rows.end.min(row + ROWS_PER_PAIR);
            // They lie apart from the codes, and are here when the sums are.
            prefetch(&panels.scales()[here.clone()]);
            kernel.tile(&mut held, panels.pair(row / ROWS_PER_PAIR), codes, tile);
            // `out` is [T, rows of this call], a tile [t][32]: token `t` of the tile goes to
            // `places[t * stride ..]`, as many of its 32 sums as there are rows.
            let places = &mut out[first * stride + row - rows.start..];
            write(tile, tokens.clone(), here, stride, places);
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
