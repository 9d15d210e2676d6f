//! The kernels in 256-bit instructions (x86-64 with AVX2, no VNNI needed).
//!
//! A field `f` stays where it lies in its byte as long as that costs nothing: fields 1 and 3 are
//! summed four times too large and shifted down when a block of chunks is done. `vpmaddubsw` adds
//! pairs in i16; a block of eight chunks keeps those sums exact (see [`BLOCK`]):
//!
//! ```text
//! bytes of 8 rows   [ b0 b1 b2 b3 | … ]   32 bytes
//! vpmaddubsw        [ u0·q0 + u1·q1 , u2·q2 + u3·q3 | … ]   16 x i16, summed over 8 chunks
//! vpmaddwd by 1     [ sum of the two ]                       8 x i32, one a row
//! ```

#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtepi8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_broadcastq_epi64,
    _mm256_cvtepu8_epi16, _mm256_fmadd_ps, _mm256_load_si256, _mm256_loadu_ps, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_srai_epi32, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_storeu_si256,
};
use std::array::from_fn;

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

/// Chunks whose products fit i16. Fields 1 and 3 weigh most: a code of at most 2, times 4, two
/// columns of each, 2 · 2 · 8 = 32 a chunk. 8 · 32 · 127 = 32 512 and 8 · 32 · -128 = -32 768.
const BLOCK: usize = 8;

/// The same where a code may be 3: 3 · 4 · 2 · 2 = 48 a chunk, 4 · 48 · -128 = -24 576.
const GROUP_BLOCK: usize = 4;

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

/// Four rows and two vectors are eight accumulators; with twelve one is spilled, and the sums wait
/// for memory.
#[target_feature(enable = "avx2,fma")]
fn floats(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe { float_tile::tile::<__m256, 4, 2>(tile, sums, stride) }
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
    // One token streams each line once; several reuse the unpacked fields of eight rows.
    // SAFETY: AVX2, says the caller.
    unsafe {
        match sums {
            [] => {}
            [sums] => rows::<VECTORS, 1, B>(pair, 0, [token(0)], [sums]),
            [a, b] => {
                each_vector([a, b], |q, sums| rows::<1, 2, B>(pair, q, from_fn(token), sums));
            }
            [a, b, c] => {
                each_vector([a, b, c], |q, sums| rows::<1, 3, B>(pair, q, from_fn(token), sums));
            }
            _ => {
                let (four, rest) = sums.split_first_chunk_mut::<4>().expect("four or more");
                each_vector(four.each_mut(), |q, sums| {
                    rows::<1, 4, B>(pair, q, from_fn(token), sums);
                });
                if !rest.is_empty() {
                    tile_in_blocks::<B>(pair, tokens.behind(4, 0), rest);
                }
            }
        }
    }
}

fn each_vector<const T: usize>(
    mut sums: [&mut [i32; ROWS_PER_PAIR]; T],
    mut compute: impl FnMut(usize, [&mut [i32; ROWS_PER_PAIR]; T]),
) {
    for vector in 0..VECTORS {
        compute(vector, sums.each_mut().map(|sums| &mut **sums));
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
    let mut totals = [[_mm256_setzero_si256(); Q]; T];
    for start in (0..pair.len()).step_by(B) {
        let block = start..pair.len().min(start + B);
        let tokens = tokens.map(|token| &token[block.clone()]);
        add_block(&pair[block], first, tokens, &mut totals);
    }
    for (sums, totals) in sums.into_iter().zip(totals) {
        for (sums, total) in
            sums[first * ROWS..][..Q * ROWS].as_chunks_mut().0.iter_mut().zip(totals)
        {
            store(sums, total);
        }
    }
}

/// Adds the products of at most [`BLOCK`] chunks, or of [`GROUP_BLOCK`] where a code may be +2, to `totals`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_block<const Q: usize, const T: usize>(
    block: &[PairChunk],
    first: usize,
    tokens: [&[[i8; CHUNK]]; T],
    totals: &mut [[__m256i; Q]; T],
) {
    // i16 sums of one block, whose length is chosen so that none of them overflows.
    let mut ones = [[_mm256_setzero_si256(); Q]; T];
    let (mut fours, prefetch) = (ones, Prefetch::chosen());
    for (c, chunk) in block.iter().enumerate() {
        if T == 1 {
            prefetch.after(chunk);
        }
        for q in 0..Q {
            let u = fields(load(chunk, first + q));
            for t in 0..T {
                let x = broadcast(&tokens[t][c]);
                let product = |f: usize| _mm256_maddubs_epi16(u[f], x[f]);
                let one = _mm256_add_epi16(product(0), product(2));
                let four = _mm256_add_epi16(product(1), product(3));
                ones[t][q] = _mm256_add_epi16(ones[t][q], one);
                fours[t][q] = _mm256_add_epi16(fours[t][q], four);
            }
        }
    }
    let pairs = |sums| _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    for t in 0..T {
        for q in 0..Q {
            // Exact: every term of `fours` is a multiple of 4.
            let quarter = _mm256_srai_epi32::<2>(pairs(fours[t][q]));
            let block = _mm256_add_epi32(pairs(ones[t][q]), quarter);
            totals[t][q] = _mm256_add_epi32(totals[t][q], block);
        }
    }
}

/// The four fields of each byte, fields 1 and 3 four times too large.
#[target_feature(enable = "avx2")]
#[inline]
fn fields(line: __m256i) -> [__m256i; 4] {
    let (low, high) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
    let upper = _mm256_srli_epi16::<4>(line);
    let (and_low, and_high) = (|v| _mm256_and_si256(v, low), |v| _mm256_and_si256(v, high));
    [and_low(line), and_high(line), and_low(upper), and_high(upper)]
}

/// Activations `4f .. 4f + 4` in every 32-bit lane of vector `f`.
#[target_feature(enable = "avx2")]
#[inline]
fn broadcast(x: &[i8; CHUNK]) -> [__m256i; 4] {
    from_fn(|f| {
        let four = [x[4 * f], x[4 * f + 1], x[4 * f + 2], x[4 * f + 3]];
        _mm256_set1_epi32(i32::from_ne_bytes(four.map(|code| code as u8)))
    })
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

/// [`reference::int8_tile`] without a byte product that could overflow 16 bits; two tokens share what is
/// unpacked of a line.
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    assert!(is_available(), "this CPU has no AVX2");
    let chunks = reference::chunks_of(panel, tokens, sums.len());
    let token = |t: usize| tokens[t * chunks..][..chunks].as_flattened().as_chunks().0;
    let (pairs, rest) = sums.as_chunks_mut::<2>();
    for (pair, sums) in pairs.iter_mut().enumerate() {
        let tokens = from_fn(|t| token(2 * pair + t));
        // SAFETY: AVX2 is there, asserted above.
        unsafe { int8_products::<2>(panel, tokens, sums) }
    }
    if let [last] = rest {
        // SAFETY: AVX2 is there, asserted above.
        unsafe { int8_products(panel, [token(2 * pairs.len())], std::array::from_mut(last)) }
    }
}

#[target_feature(enable = "avx2")]
fn int8_products<const T: usize>(
    panel: &[Line],
    tokens: [&[[i8; 4]]; T],
    sums: &mut [[i32; INT8_ROWS]; T],
) {
    let tokens = tokens.map(|token| &token[..panel.len()]);
    let (mut totals, prefetch) = ([[_mm256_setzero_si256(); 4]; T], Prefetch::chosen());
    for (k, line) in panel.iter().enumerate() {
        if T == 1 {
            prefetch.after(line);
        }
        let u = from_fn::<_, 4, _>(|v| {
            let bytes = &line.0.as_chunks::<16>().0[v];
            // SAFETY: 16 bytes.
            _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        });
        for (totals, token) in totals.iter_mut().zip(&tokens) {
            let four = i32::from_ne_bytes(token[k].map(i8::cast_unsigned));
            let x = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(four)));
            for (total, u) in totals.iter_mut().zip(u) {
                *total = _mm256_add_epi32(*total, _mm256_madd_epi16(u, x));
            }
        }
    }
    // Two neighbouring lanes belong to a row.
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (sums, total) in sums.as_chunks_mut::<4>().0.iter_mut().zip(totals) {
            let mut lanes = [0; 8];
            store(&mut lanes, total);
            for (sum, pair) in sums.iter_mut().zip(lanes.as_chunks::<2>().0) {
                *sum = pair[0] + pair[1];
            }
        }
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
