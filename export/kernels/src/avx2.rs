//! The kernels in 256-bit instructions (x86-64 with AVX2, no VNNI needed).
//!
//! A field of a byte is two bits: those below it are shifted out, those above it masked. `vpmaddubsw`
//! adds pairs in i16; a block of sixteen chunks keeps those sums exact (see [`BLOCK`]):
//!
//! ```text
//! bytes of 8 rows   [ b0 b1 b2 b3 | … ]   32 bytes
//! vpmaddubsw        [ u0·q0 + u1·q1 , u2·q2 + u3·q3 | … ]   16 x i16, summed over 16 chunks
//! vpmaddwd by 1     [ sum of the two ]                       8 x i32, one a row
//! ```

#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_fmadd_ps,
    _mm256_hadd_epi32, _mm256_load_si256, _mm256_loadu_ps, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_permute4x64_epi64, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_storeu_si256,
};

use crate::float_tile::{self, FloatLanes};
use crate::gemm::{Operands, Tile};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, each_group};
use crate::layout::{
    CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, RescaleTerms, SimdWork, TokenCodes,
};
use crate::prefetch::Prefetch;
use crate::reference;
pub(crate) use vectors::{dot, dot_bf16, dot_f16, quantise};

mod vectors;

/// Fields of a byte.
const FIELDS: usize = 4;

/// Chunks whose products fit i16: a code of at most 2, two columns of each of four fields, 2 · 2 · 4 = 16 a
/// chunk. 16 · 16 · 127 = 32 512 and 16 · 16 · -128 = -32 768.
const BLOCK: usize = 16;

/// The same where a code may be 3: 3 · 2 · 4 = 24 a chunk, 8 · 24 · -128 = -24 576.
const GROUP_BLOCK: usize = 8;

/// Rows whose sums fill one vector.
const ROWS: usize = 8;

/// Vectors of one chunk of a pair.
const VECTORS: usize = ROWS_PER_PAIR / ROWS;

/// Whether this CPU has the instructions.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
}

impl FloatLanes for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load(sums: &[f32]) -> Self {
        // SAFETY: AVX, says the caller; eight values.
        unsafe { _mm256_loadu_ps(sums[..8].as_ptr()) }
    }

    #[inline(always)]
    unsafe fn words(words: &[u32]) -> Self {
        // SAFETY: AVX, says the caller; eight words.
        unsafe { _mm256_loadu_ps(words[..8].as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(word: u32) -> Self {
        // SAFETY: AVX, says the caller.
        unsafe { _mm256_set1_ps(f32::from_bits(word)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: FMA, says the caller.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX, says the caller.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [f32]) {
        // SAFETY: AVX, says the caller; eight places.
        unsafe { _mm256_storeu_ps(sums[..8].as_mut_ptr(), self) }
    }
}

/// [`crate::Kernel::dispatch`] for this instruction set.
pub(crate) fn dispatch<W: SimdWork>(work: W) -> W::Output {
    assert!(is_available(), "this CPU has no AVX2");
    // SAFETY: the instructions are there, asserted above.
    unsafe { with_instructions(work) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn with_instructions<W: SimdWork>(work: W) -> W::Output {
    work.run()
}

/// Adds a strip's products with a panel to `sums`, a row every `stride`.
pub(crate) fn float_tile(tile: Tile, sums: &mut [f32], stride: usize) {
    assert!(is_available() && !tile.format.pairs(), "this CPU has AVX2 and no bf16");
    // SAFETY: the instructions are there, asserted above.
    unsafe {
        if tile.format.operands == Operands::Bf16Tiles {
            chains(tile, sums, stride);
        } else {
            floats(tile, sums, stride);
        }
    }
}

/// Twelve accumulators, three vectors of B and one of A are all sixteen registers.
#[target_feature(enable = "avx2,fma")]
fn floats(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe {
        match tile.width {
            48 => float_tile::tile::<__m256, 4, 3>(tile, sums, stride),
            _ => float_tile::tile::<__m256, 4, 2>(tile, sums, stride),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn chains(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe { float_tile::chains::<__m256, 4>(tile, sums, stride) }
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no AVX2");
    tokens.check(sums.len(), pair.len());
    // SAFETY: AVX2 is there, asserted above.
    unsafe { tile_in_blocks::<BLOCK>(pair, tokens, sums) }
}

/// [`each_group`] of a pair of panels.
pub(crate) fn grouped(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    assert!(is_available(), "this CPU has no AVX2");
    // SAFETY: AVX2 is there, asserted above.
    unsafe { grouped_products(pair, tokens, tile) }
}

#[target_feature(enable = "avx2")]
fn grouped_products(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    each_group(pair, tokens, tile, |chunks, tokens, sums| {
        // SAFETY: the function around it has the instructions.
        unsafe { tile_in_blocks::<GROUP_BLOCK>(chunks, tokens, sums) }
    });
}

/// # Safety
/// AVX2.
unsafe fn tile_in_blocks<const B: usize>(
    pair: &[PairChunk],
    tokens: TokenCodes,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    let token = |t: usize| tokens.of(t, pair.len());
    // One token streams each line once; several reuse the unpacked fields of sixteen rows.
    // SAFETY: AVX2, says the caller.
    unsafe {
        match sums {
            [] => {}
            [sums] => rows::<VECTORS, 1, B>(pair, 0, [token(0)], [sums]),
            [a, b] => halves::<2, B>(pair, [token(0), token(1)], [a, b]),
            [a, b, c] => halves::<3, B>(pair, [token(0), token(1), token(2)], [a, b, c]),
            [a, b, c, d, rest @ ..] => {
                let four = [token(0), token(1), token(2), token(3)];
                halves::<4, B>(pair, four, [a, b, c, d]);
                if !rest.is_empty() {
                    tile_in_blocks::<B>(pair, tokens.behind(4, 0), rest);
                }
            }
        }
    }
}

/// Two vectors of rows at a time, whose sums with four tokens fill half of the registers.
#[target_feature(enable = "avx2")]
fn halves<const T: usize, const B: usize>(
    pair: &[PairChunk],
    tokens: [&[[i8; CHUNK]]; T],
    mut sums: [&mut [i32; ROWS_PER_PAIR]; T],
) {
    for first in (0..VECTORS).step_by(2) {
        rows::<2, T, B>(pair, first, tokens, sums.each_mut().map(|sums| &mut **sums));
    }
}

/// `Q` vectors of eight rows from vector `first` on, times `T` tokens.
#[target_feature(enable = "avx2")]
fn rows<const Q: usize, const T: usize, const B: usize>(
    pair: &[PairChunk],
    first: usize,
    tokens: [&[[i8; CHUNK]]; T],
    sums: [&mut [i32; ROWS_PER_PAIR]; T],
) {
    let prefetch = Prefetch::chosen();
    let mut totals = [[_mm256_setzero_si256(); Q]; T];
    for start in (0..pair.len()).step_by(B) {
        // i16 sums of one block, whose length is chosen so that none of them overflows.
        let mut block = [[_mm256_setzero_si256(); Q]; T];
        for (c, chunk) in pair.iter().enumerate().skip(start).take(B) {
            if T == 1 {
                prefetch.after(chunk);
            }
            let mut lines = [_mm256_setzero_si256(); Q];
            for (q, line) in lines.iter_mut().enumerate() {
                *line = load(chunk, first + q);
            }
            // Field by field, so that of the unpacked lines only `Q` registers are needed.
            for field in 0..FIELDS {
                for (t, sums) in block.iter_mut().enumerate() {
                    let x = broadcast(&tokens[t][c], field);
                    for (sum, line) in sums.iter_mut().zip(lines) {
                        let u = _mm256_and_si256(line, _mm256_set1_epi8(0x03));
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(u, x));
                    }
                }
                for line in &mut lines {
                    *line = _mm256_srli_epi16::<2>(*line);
                }
            }
        }
        for (totals, block) in totals.iter_mut().zip(block) {
            for (total, sums) in totals.iter_mut().zip(block) {
                let pairs = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
                *total = _mm256_add_epi32(*total, pairs);
            }
        }
    }
    for (sums, totals) in sums.into_iter().zip(totals) {
        let places = sums.as_chunks_mut::<ROWS>().0[first..].iter_mut();
        for (places, total) in places.zip(totals) {
            store(places, total);
        }
    }
}

/// Activations `4f .. 4f + 4` in every 32-bit lane, for field `f`.
#[target_feature(enable = "avx2")]
#[inline]
fn broadcast(x: &[i8; CHUNK], field: usize) -> __m256i {
    let four = x.as_chunks::<4>().0[field];
    _mm256_set1_epi32(i32::from_ne_bytes(four.map(i8::cast_unsigned)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(chunk: &PairChunk, vector: usize) -> __m256i {
    let bytes: &[u8; 32] = &chunk.0.as_chunks().0[vector];
    // SAFETY: 32 bytes, and their place in a 64-byte aligned chunk is a multiple of 32.
    unsafe { _mm256_load_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(places: &mut [i32; ROWS], values: __m256i) {
    // SAFETY: eight i32 are 32 bytes.
    unsafe { _mm256_storeu_si256(places.as_mut_ptr().cast(), values) }
}

/// [`reference::int8_tile`] without a byte product that could overflow 16 bits; four tokens share what is
/// widened of a line.
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    assert!(is_available(), "this CPU has no AVX2");
    let chunks = reference::chunks_of(panel, tokens, sums.len());
    // SAFETY: AVX2 is there, asserted above.
    unsafe { int8_tokens(panel, TokenCodes::dense(tokens, chunks), sums) }
}

#[target_feature(enable = "avx2")]
fn int8_tokens(panel: &[Line], tokens: TokenCodes, sums: &mut [[i32; INT8_ROWS]]) {
    let token = |t: usize| tokens.of(t, panel.len().div_ceil(4));
    match sums {
        [] => {}
        [a] => int8_products(panel, [token(0)], [a]),
        [a, b, c, d, rest @ ..] => {
            let four = [token(0), token(1), token(2), token(3)];
            int8_products(panel, four, [a, b, c, d]);
            if !rest.is_empty() {
                int8_tokens(panel, tokens.behind(4, 0), rest);
            }
        }
        [a, b, rest @ ..] => {
            int8_products(panel, [token(0), token(1)], [a, b]);
            if !rest.is_empty() {
                int8_tokens(panel, tokens.behind(2, 0), rest);
            }
        }
    }
}

/// Fours of a token that are widened before they are multiplied.
const WIDE: usize = 64;

/// A panel times `T` tokens, eight rows at a time. Bytes are widened to i16, of which a
/// product adds two:
///
/// ```text
/// line      [ row 0: u u u u | … | row 3: u u u u ]   16 bytes → 16 x i16
/// token     [ x x x x | x x x x | … ]                  four activations in each 64-bit lane
/// vpmaddwd  [ u·x + u·x , u·x + u·x | … ]              two i32 a row
/// ```
#[target_feature(enable = "avx2")]
fn int8_products<const T: usize>(
    panel: &[Line],
    tokens: [&[[i8; CHUNK]]; T],
    sums: [&mut [i32; INT8_ROWS]; T],
) {
    let mut totals = [[[_mm256_setzero_si256(); 2]; T]; 2];
    let mut wide = [[[0; 4]; WIDE]; T];
    for (block, lines) in panel.chunks(WIDE).enumerate() {
        for (wide, token) in wide.iter_mut().zip(tokens) {
            let places = wide.as_flattened_mut().as_chunks_mut().0.iter_mut();
            for (places, codes) in places.zip(&token[block * WIDE / 4..]) {
                widen(codes, places);
            }
        }
        add_lines::<0, T>(lines, &wide, &mut totals[0]);
        add_lines::<1, T>(lines, &wide, &mut totals[1]);
    }
    for (t, sums) in sums.into_iter().enumerate() {
        for (places, totals) in sums.as_chunks_mut::<ROWS>().0.iter_mut().zip(&totals) {
            // Two neighbouring lanes belong to a row; `vphaddd` leaves the middle quarters swapped.
            let rows = _mm256_hadd_epi32(totals[t][0], totals[t][1]);
            store(places, _mm256_permute4x64_epi64::<0b11_01_10_00>(rows));
        }
    }
}

/// Adds the products of a half of at most [`WIDE`] lines to `totals`. Not inlined: the sums of both halves
/// together are more than there are registers.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn add_lines<const HALF: usize, const T: usize>(
    lines: &[Line],
    tokens: &[[[i16; 4]; WIDE]; T],
    totals: &mut [[__m256i; 2]; T],
) {
    let (mut sums, prefetch) = (*totals, Prefetch::chosen());
    for (k, line) in lines.iter().enumerate().take(WIDE) {
        if T == 1 && HALF == 0 {
            prefetch.after(line);
        }
        let bytes = line.0.as_chunks::<16>().0;
        let u = [bytes[2 * HALF], bytes[2 * HALF + 1]].map(|bytes| {
            // SAFETY: 16 bytes.
            _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        });
        for (sums, token) in sums.iter_mut().zip(tokens) {
            let x = _mm256_set1_epi64x(bytemuck::cast(token[k]));
            for (sum, u) in sums.iter_mut().zip(u) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(u, x));
            }
        }
    }
    *totals = sums;
}

#[target_feature(enable = "avx2")]
#[inline]
fn widen(codes: &[i8; CHUNK], places: &mut [i16; CHUNK]) {
    // SAFETY: 16 bytes, and 16 places of two.
    unsafe {
        let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
        _mm256_storeu_si256(places.as_mut_ptr().cast(), codes);
    }
}

/// [`reference::rescale`] of several tokens, compiled for wide vectors.
pub(crate) fn rescale<const R: usize>(sums: &[[i32; R]], terms: RescaleTerms, out: &mut [f32]) {
    assert!(is_available(), "this CPU has no AVX2");
    // SAFETY: AVX2 is there, asserted above.
    unsafe { rescale_vectors(sums, terms, out) }
}

#[target_feature(enable = "avx2")]
fn rescale_vectors<const R: usize>(sums: &[[i32; R]], terms: RescaleTerms, out: &mut [f32]) {
    terms.each_token(sums, out, |sums, offset, weights, scale, out| {
        reference::rescale(sums, offset, weights, scale, out);
    });
}

/// The 8-bit operations a second of one core, on registers alone (two to a multiply-add): the products of
/// bytes and sums in 16 bits that ternary rows take.
pub(crate) fn peak_operations(rounds: usize) -> Option<f64> {
    if !is_available() {
        return None;
    }
    let start = std::time::Instant::now();
    // SAFETY: the instructions are there, asked above.
    let sum = unsafe { busy(rounds) };
    std::hint::black_box(sum);
    let products = rounds as f64 * 12.0 * 32.0;
    Some(2.0 * products / start.elapsed().as_secs_f64())
}

#[target_feature(enable = "avx2")]
fn busy(rounds: usize) -> i32 {
    let u = _mm256_set1_epi8(std::hint::black_box(1));
    let mut totals = [_mm256_set1_epi16(std::hint::black_box(1)); 12];
    for _ in 0..rounds {
        for total in &mut totals {
            // A product with the sum itself: one that stayed the same would be computed once.
            *total = _mm256_add_epi16(*total, _mm256_maddubs_epi16(u, *total));
        }
    }
    let total = totals.into_iter().reduce(|a, b| _mm256_add_epi16(a, b)).expect("12 totals");
    let mut sums = [0; ROWS];
    store(&mut sums, total);
    sums[0]
}
