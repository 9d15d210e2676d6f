//! Products on CPUs that add four byte products into each 32-bit lane in one instruction: one body
//! for all of them, compiled into the functions of each instruction set.
//!
//! A byte of a panel holds four ternary codes `u` (see `layout`); masking one field gives the codes of
//! four neighbouring columns of each row, ready for the dot product with four activation codes `q`:
//!
//! ```text
//! lane of row r      [ b0 b1 b2 b3 ]          4 bytes, fields f = 0..3 of 2 bits
//! & 0x03             [ u0 u1 u2 u3 ]  · [ q0  q1  q2  q3  ]   field 0: columns 0..3
//! & 0x0c  (= 4·u)    [ u4 u5 u6 u7 ]  · [ q4  q5  q6  q7  ]   field 1, summed four times too large
//! >> 4, & 0x03       …                · [ q8  q9  q10 q11 ]   field 2
//! ```
//!
//! `u` is unsigned and `q` signed, the operands of `vpdpbusd`; Arm's `sdot` takes both as signed, which
//! `u < 128` allows. The `+ 1` in `u = T + 1` is subtracted once, as `Σ q`, when sums become outputs.
//!
//! One token: each line of a panel is read once, in order. Fields 1 and 3 are masked, not shifted;
//! they are four times too large, so they have accumulators of their own, which are shifted back
//! at the end (their low bits are zero).
//! Several tokens: a field is unpacked in registers and meets a tile of tokens at once, as many as
//! accumulators fit. Nothing but the result is written.
#![expect(unsafe_code, reason = "one body is compiled for each instruction set")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use crate::layout::{CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};
use crate::prefetch::Prefetch;
use crate::reference::chunks_of;

/// A vector of bytes, seen as 32-bit lanes that belong to a row each.
///
/// # Safety
/// Every function needs the instructions of its implementation.
pub(crate) trait Lanes: Copy {
    /// Bytes of a vector.
    const BYTES: usize;
    /// Most tokens of a tile; at most eight.
    const TOKENS: usize;
    /// What [`Lanes::add_wide_products`] leaves out, times `Σ q`.
    const WIDE_OFFSET: i32;

    unsafe fn zero() -> Self;
    /// The first bytes of `bytes`.
    unsafe fn load(bytes: &[u8]) -> Self;
    /// Four codes in every lane.
    unsafe fn broadcast(codes: [i8; 4]) -> Self;
    unsafe fn and(self, mask: u8) -> Self;
    /// Every byte shifted right by `2 · F` bits; what comes in from above may be anything.
    unsafe fn shifted<const F: usize>(self) -> Self;
    /// Adds the four products of each lane: `u` below 128, `q` signed.
    unsafe fn add_products(self, u: Self, q: Self) -> Self;
    /// As [`Lanes::add_products`] with `u - WIDE_OFFSET`, for any `u`.
    unsafe fn add_wide_products(self, u: Self, q: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    /// Lanes divided by four, which they are a multiple of.
    unsafe fn quarter(self) -> Self;
    /// The lanes to the first places of `sums`.
    unsafe fn store(self, sums: &mut [i32]);
}

/// One token or several.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, const V1: usize, const U: usize, const V: usize>(
    pair: &[PairChunk],
    tokens: TokenCodes,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        match sums {
            [] => {}
            [sums] => one_token::<L, V1, U>(pair, tokens.of(0, pair.len()), sums),
            _ => many_tokens::<L, V>(pair, tokens, sums),
        }
    }
}

/// `sums` = `Σ u·q` of one token with the 32 rows of a pair of panels: `V` vectors a chunk, `U`
/// chunks side by side so that eight or more sums hide the latency of the product.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn one_token<L: Lanes, const V: usize, const U: usize>(
    pair: &[PairChunk],
    token: &[[i8; CHUNK]],
    sums: &mut [i32; ROWS_PER_PAIR],
) {
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        // Fields 0 and 2 into `ones`, 1 and 3 into `fours`; U independent chains of additions per
        // vector, because one product takes several cycles and the next into the same sum must wait
        // for it.
        let mut ones = [[L::zero(); V]; U];
        let (mut fours, prefetch) = (ones, Prefetch::chosen());
        let ((pairs, pairs_rest), (xs, xs_rest)) = (pair.as_chunks::<U>(), token.as_chunks::<U>());
        for (chunks, xs) in pairs.iter().zip(xs) {
            for i in 0..U {
                prefetch.after(&chunks[i]);
                add_chunk(&chunks[i], &xs[i], &mut ones[i], &mut fours[i]);
            }
        }
        for (chunk, x) in pairs_rest.iter().zip(xs_rest) {
            add_chunk(chunk, x, &mut ones[0], &mut fours[0]);
        }
        // The sums are integers, so adding the chains in any order gives the same bits.
        for (v, sums) in sums.chunks_exact_mut(ROWS_PER_PAIR / V).enumerate() {
            let mut total = L::zero();
            for i in 0..U {
                total = total.plus(ones[i][v]).plus(fours[i][v].quarter());
            }
            total.store(sums);
        }
    }
}

/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn add_chunk<L: Lanes, const V: usize>(
    chunk: &PairChunk,
    x: &[i8; CHUNK],
    ones: &mut [L; V],
    fours: &mut [L; V],
) {
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        let x = x.as_chunks::<4>().0;
        let x = [L::broadcast(x[0]), L::broadcast(x[1]), L::broadcast(x[2]), L::broadcast(x[3])];
        for v in 0..V {
            let line = L::load(&chunk.0[v * L::BYTES..]);
            // Shifting once by four bits brings fields 2 and 3 to where 0 and 1 were:
            //
            //    byte   [ f3 f2 f1 f0 ]      & 0x03 → f0      & 0x0c → 4 · f1
            //    >> 4   [  .  . f3 f2 ]      & 0x03 → f2      & 0x0c → 4 · f3
            let upper = line.shifted::<2>();
            ones[v] = ones[v].add_products(line.and(0x03), x[0]);
            fours[v] = fours[v].add_products(line.and(0x0c), x[1]);
            ones[v] = ones[v].add_products(upper.and(0x03), x[2]);
            fours[v] = fours[v].add_products(upper.and(0x0c), x[3]);
        }
    }
}

/// `sums [t][row]` = `Σ u·q` of several tokens `[t, chunks]`, `V` vectors of rows at a time.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn many_tokens<L: Lanes, const V: usize>(
    pair: &[PairChunk],
    tokens: TokenCodes,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    for (tile, sums) in sums.chunks_mut(L::TOKENS).enumerate() {
        let tokens = tokens.behind(tile * L::TOKENS, 0);
        // SAFETY: the caller has the instructions of `L`.
        unsafe {
            // A constant number of tokens keeps all sums in registers; the last tile has fewer.
            match sums.len() {
                8 => tile_of::<L, V, 8>(pair, tokens, sums),
                7 => tile_of::<L, V, 7>(pair, tokens, sums),
                6 => tile_of::<L, V, 6>(pair, tokens, sums),
                5 => tile_of::<L, V, 5>(pair, tokens, sums),
                4 => tile_of::<L, V, 4>(pair, tokens, sums),
                3 => tile_of::<L, V, 3>(pair, tokens, sums),
                2 => tile_of::<L, V, 2>(pair, tokens, sums),
                _ => tile_of::<L, V, 1>(pair, tokens, sums),
            }
        }
    }
}

/// One tile of exactly `T` tokens; instruction sets with fewer accumulators never ask for many.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn tile_of<L: Lanes, const V: usize, const T: usize>(
    pair: &[PairChunk],
    tokens: TokenCodes,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    if T > L::TOKENS {
        return;
    }
    let vectors = 4 * ROWS_PER_PAIR / L::BYTES;
    for first in (0..vectors).step_by(V) {
        // SAFETY: the caller has the instructions of `L`.
        unsafe {
            let totals = products::<L, V, T>(pair, first, tokens);
            for (sums, totals) in sums.iter_mut().zip(totals) {
                for (v, total) in totals.into_iter().enumerate() {
                    total.store(&mut sums[(first + v) * L::BYTES / 4..]);
                }
            }
        }
    }
}

/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn products<L: Lanes, const V: usize, const T: usize>(
    pair: &[PairChunk],
    first: usize,
    tokens: TokenCodes,
) -> [[L; V]; T] {
    let mut rows: [&[[i8; CHUNK]]; T] = [&[]; T];
    for (t, row) in rows.iter_mut().enumerate() {
        *row = tokens.of(t, pair.len());
    }
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        let mut totals = [[L::zero(); V]; T];
        for (c, chunk) in pair.iter().enumerate() {
            // A line is loaded once and meets all T tokens, field after field: unpacking costs the
            // same for one token as for eight.
            let mut lines = [L::zero(); V];
            for (v, line) in lines.iter_mut().enumerate() {
                *line = L::load(&chunk.0[(first + v) * L::BYTES..]);
            }
            add_field::<L, V, T, 0>(&lines, &rows, c, &mut totals);
            add_field::<L, V, T, 1>(&lines, &rows, c, &mut totals);
            add_field::<L, V, T, 2>(&lines, &rows, c, &mut totals);
            add_field::<L, V, T, 3>(&lines, &rows, c, &mut totals);
        }
        totals
    }
}

/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn add_field<L: Lanes, const V: usize, const T: usize, const F: usize>(
    lines: &[L; V],
    rows: &[&[[i8; CHUNK]]; T],
    c: usize,
    totals: &mut [[L; V]; T],
) {
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        let mut u = *lines;
        for u in &mut u {
            *u = u.shifted::<F>().and(0x03);
        }
        for t in 0..T {
            let x = L::broadcast(rows[t][c].as_chunks::<4>().0[F]);
            for v in 0..V {
                totals[t][v] = totals[t][v].add_products(u[v], x);
            }
        }
    }
}

/// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`:
/// `V` vectors a line; a token alone takes `U` lines side by side.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn int8_tile<L: Lanes, const V: usize, const U: usize>(
    panel: &[Line],
    tokens: &[[i8; CHUNK]],
    sums: &mut [[i32; INT8_ROWS]],
) {
    let width = chunks_of(panel, tokens, sums.len());
    for (tile, sums) in sums.chunks_mut(L::TOKENS).enumerate() {
        let tokens = &tokens[L::TOKENS * tile * width..][..sums.len() * width];
        // SAFETY: the caller has the instructions of `L`.
        unsafe {
            match sums.len() {
                8 => wide_products::<L, V, 8, 1>(panel, tokens, sums),
                7 => wide_products::<L, V, 7, 1>(panel, tokens, sums),
                6 => wide_products::<L, V, 6, 1>(panel, tokens, sums),
                5 => wide_products::<L, V, 5, 1>(panel, tokens, sums),
                4 => wide_products::<L, V, 4, 1>(panel, tokens, sums),
                3 => wide_products::<L, V, 3, 1>(panel, tokens, sums),
                2 => wide_products::<L, V, 2, 2>(panel, tokens, sums),
                _ => wide_products::<L, V, 1, U>(panel, tokens, sums),
            }
        }
    }
}

/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn wide_products<L: Lanes, const V: usize, const T: usize, const U: usize>(
    panel: &[Line],
    tokens: &[[i8; CHUNK]],
    sums: &mut [[i32; INT8_ROWS]],
) {
    if T > L::TOKENS {
        return;
    }
    let mut rows: [&[[i8; 4]]; T] = [&[]; T];
    for (row, token) in rows.iter_mut().zip(tokens.chunks_exact(tokens.len() / T)) {
        *row = &token.as_flattened().as_chunks().0[..panel.len()];
    }
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        let (mut totals, prefetch) = ([[[L::zero(); V]; U]; T], Prefetch::chosen());
        // Every row is as long as the panel: the compiler sees that no index needs a check.
        // U lines side by side hide the latency of the product where a token is alone.
        let (mut k, last) = (0, panel.len());
        while U > 1 && k + U <= last {
            for i in 0..U {
                if T == 1 {
                    prefetch.after(&panel[k + i]);
                }
                add_line(&panel[k + i], k + i, i, &rows, &mut totals);
            }
            k += U;
        }
        for (k, line) in panel.iter().enumerate().skip(k) {
            if T == 1 {
                prefetch.after(line);
            }
            add_line(line, k, 0, &rows, &mut totals);
        }
        for ((sums, totals), row) in sums.iter_mut().zip(totals).zip(rows) {
            for (v, places) in sums.chunks_exact_mut(INT8_ROWS / V).enumerate() {
                let mut total = totals[0][v];
                for totals in &totals[1..] {
                    total = total.plus(totals[v]);
                }
                total.store(places);
            }
            // Arm has only signed products: `u` was flipped to `u - 128` there, and `128 · Σ q`
            // comes back here.
            if L::WIDE_OFFSET != 0 {
                let codes: i32 = row.as_flattened().iter().map(|&code| i32::from(code)).sum();
                for sum in sums.iter_mut() {
                    *sum += L::WIDE_OFFSET * codes;
                }
            }
        }
    }
}

/// Line `k` of a panel with every token, into the sums `i` of each.
///
/// # Safety
/// The instructions of `L`.
#[inline(always)]
unsafe fn add_line<L: Lanes, const V: usize, const U: usize, const T: usize>(
    line: &Line,
    k: usize,
    i: usize,
    rows: &[&[[i8; 4]]; T],
    totals: &mut [[[L; V]; U]; T],
) {
    // SAFETY: the caller has the instructions of `L`.
    unsafe {
        let mut u = [L::zero(); V];
        for (v, u) in u.iter_mut().enumerate() {
            *u = L::load(&line.0[v * L::BYTES..]);
        }
        for t in 0..T {
            let x = L::broadcast(rows[t][k]);
            for v in 0..V {
                totals[t][i][v] = totals[t][i][v].add_wide_products(u[v], x);
            }
        }
    }
}
