//! The tile of a float product on CPUs with vectors: one body, compiled into the functions of each
//! instruction set.
#![expect(unsafe_code, reason = "one body is compiled for each instruction set")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::gemm::{CHAIN, LINE, ROWS, Tile};

/// Words of a line of a strip.
const STRIP: usize = LINE * ROWS;

/// A vector of f32 sums, and of words that are multiplied into them.
///
/// # Safety
/// Every function needs the instructions of its implementation.
pub(crate) trait FloatLanes: Copy {
    /// f32 of a vector.
    const LANES: usize;

    /// The first of `sums`.
    unsafe fn load(sums: &[f32]) -> Self;
    /// The first of `words`.
    unsafe fn words(words: &[u32]) -> Self;
    /// One word in every lane.
    unsafe fn broadcast(word: u32) -> Self;
    /// `self` and the products of the values of two words, each rounded once.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// The sum of both.
    unsafe fn plus(self, other: Self) -> Self;
    /// To the first places of `sums`.
    unsafe fn store(self, sums: &mut [f32]);
}

/// Adds a whole tile to `sums`, a row every `stride`, `R` rows and `V` vectors at a time; a panel's vectors are a
/// multiple of `V`.
///
/// # Safety
/// The instructions of `F`.
#[inline(always)]
pub(crate) unsafe fn tile<F: FloatLanes, const R: usize, const V: usize>(
    tile: Tile,
    sums: &mut [f32],
    stride: usize,
) {
    for row in (0..ROWS).step_by(R) {
        for column in (0..tile.width).step_by(V * F::LANES) {
            // SAFETY: the caller has the instructions of `F`.
            unsafe {
                if tile.by_rows {
                    part::<F, R, V, true>(tile, row, column, sums, stride);
                } else {
                    part::<F, R, V, false>(tile, row, column, sums, stride);
                }
            }
        }
    }
}

/// [`tile`] in the order of tile instructions, with a value in each word: see [`crate::Operands::Bf16Tiles`].
///
/// # Safety
/// The instructions of `F`.
#[inline(always)]
pub(crate) unsafe fn chains<F: FloatLanes, const R: usize>(
    tile: Tile,
    sums: &mut [f32],
    stride: usize,
) {
    let lines = tile.strip.chunks(CHAIN * ROWS).zip(tile.panel.chunks(CHAIN * tile.width));
    for (chain, (strip, panel)) in lines.enumerate() {
        let part = Tile { strip, panel, fresh: tile.fresh && chain == 0, ..tile };
        for row in (0..ROWS).step_by(R) {
            for column in (0..tile.width).step_by(F::LANES) {
                // SAFETY: the caller has the instructions of `F`.
                unsafe {
                    let totals = if tile.by_rows {
                        chain_sums::<F, R, true>(part, row, column)
                    } else {
                        chain_sums::<F, R, false>(part, row, column)
                    };
                    for (i, [even, odd]) in totals.into_iter().enumerate() {
                        let places = &mut sums[(row + i) * stride + column..];
                        let before = if part.fresh { F::broadcast(0) } else { F::load(places) };
                        before.plus(even.plus(odd)).store(places);
                    }
                }
            }
        }
    }
}

/// The sums of words of even and of odd number, each a chain from 0.
///
/// # Safety
/// The instructions of `F`.
#[inline(always)]
unsafe fn chain_sums<F: FloatLanes, const R: usize, const BY_ROWS: bool>(
    tile: Tile,
    row: usize,
    column: usize,
) -> [[F; 2]; R] {
    // SAFETY: the caller has the instructions of `F`.
    unsafe {
        let mut totals = [[F::broadcast(0); 2]; R];
        let lines = tile.strip.as_chunks::<STRIP>().0;
        for (line, words) in lines.iter().zip(tile.panel.chunks_exact(LINE * tile.width)) {
            for (pair, words) in words.chunks_exact(2 * tile.width).enumerate() {
                let (even, odd) = words.split_at(tile.width);
                let b = [F::words(&even[column..]), F::words(&odd[column..])];
                for (i, totals) in totals.iter_mut().enumerate() {
                    for (half, total) in totals.iter_mut().enumerate() {
                        let a = line[place::<BY_ROWS>(row + i, 2 * pair + half)];
                        *total = total.add_product(F::broadcast(a), b[half]);
                    }
                }
            }
        }
        totals
    }
}

/// Where a line has the word of a row and a step: `[8 rows][16 steps]` or `[16 steps][8 rows]`, as `PackA`
/// wrote it.
#[inline(always)]
fn place<const BY_ROWS: bool>(row: usize, step: usize) -> usize {
    if BY_ROWS { row * LINE + step } else { step * ROWS + row }
}

/// # Safety
/// The instructions of `F`.
#[inline(always)]
unsafe fn part<F: FloatLanes, const R: usize, const V: usize, const BY_ROWS: bool>(
    tile: Tile,
    row: usize,
    column: usize,
    sums: &mut [f32],
    stride: usize,
) {
    // SAFETY: the caller has the instructions of `F`.
    unsafe {
        // R · V sums stay in registers over the whole block; a step loads V vectors of B and
        // broadcasts R words of A:
        //
        //                  b[0]      b[1]     … V vectors of a panel's step
        //    a of row 0   total     total
        //    a of row 1   total     total      total += a · b, fused, one chain an output
        let mut totals = [[F::broadcast(0); V]; R];
        for (i, totals) in totals.iter_mut().enumerate().filter(|_| !tile.fresh) {
            for (v, total) in totals.iter_mut().enumerate() {
                *total = F::load(&sums[(row + i) * stride + column + v * F::LANES..]);
            }
        }
        let lines = tile.strip.as_chunks::<STRIP>().0;
        for (line, words) in lines.iter().zip(tile.panel.chunks_exact(LINE * tile.width)) {
            for (p, words) in words.chunks_exact(tile.width).enumerate() {
                let words = &words[column..][..V * F::LANES];
                let mut b = [F::broadcast(0); V];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = F::words(&words[v * F::LANES..]);
                }
                for (i, totals) in totals.iter_mut().enumerate() {
                    let a = F::broadcast(line[place::<BY_ROWS>(row + i, p)]);
                    for (total, b) in totals.iter_mut().zip(b) {
                        *total = total.add_product(a, b);
                    }
                }
            }
        }
        for (i, totals) in totals.into_iter().enumerate() {
            for (v, total) in totals.into_iter().enumerate() {
                total.store(&mut sums[(row + i) * stride + column + v * F::LANES..]);
            }
        }
    }
}
