//! Kernels for CPUs with AVX-512 and its 8-bit dot product (VNNI): Intel since Ice Lake, AMD since
//! Zen 4.
//!
//! One token: each 64-byte line of a panel is read once, in order; its four two-bit fields are
//! masked, not shifted. Field `f` is then `4^f` times too large, so it has an accumulator of its
//! own, which is shifted back at the end (its low bits are zero). Eight accumulators, four fields
//! of two panels, hide the latency of the dot product.
//! Several tokens: a pair of panels is unpacked once into a buffer that stays in the cache, then
//! multiplied with twelve tokens at a time, 24 accumulators.
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_div_ps,
    _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_srai_epi32, _mm512_srli_epi16,
    _mm512_store_si512, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32,
};
use std::array::from_fn;

use crate::panels::{CHUNK, Line, PairChunk, ROWS_PER_PAIR};

/// Tokens of one tile: 24 accumulators, and 8 registers are left.
const TOKENS: usize = 12;

/// Rows of a vector.
const ROWS: usize = 16;

/// Whether this CPU has the instructions; those of AVX2 are used for the rest.
pub(crate) fn is_available() -> bool {
    crate::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: &[[i8; CHUNK]], sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    assert_eq!(tokens.len(), pair.len() * sums.len(), "each token as wide as the panels");
    // SAFETY: the instructions are there, asserted above.
    unsafe {
        match sums {
            [] => {}
            [sums] => one_token(pair, tokens, sums),
            _ => many_tokens(pair, tokens, sums),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn one_token(pair: &[PairChunk], token: &[[i8; CHUNK]], sums: &mut [i32; ROWS_PER_PAIR]) {
    let masks = [0x03, 0x0c, 0x30, 0xc0u8].map(|mask| _mm512_set1_epi8(mask as i8));
    let mut fields = [[_mm512_setzero_si512(); 4]; 2];
    for (chunk, x) in pair.iter().zip(token) {
        let x = broadcast(x);
        for (panel, fields) in fields.iter_mut().enumerate() {
            let line = load(half(chunk, panel));
            for f in 0..4 {
                fields[f] = _mm512_dpbusd_epi32(fields[f], _mm512_and_si512(line, masks[f]), x[f]);
            }
        }
    }
    for (panel, [a, b, c, d]) in fields.into_iter().enumerate() {
        let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
        let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
        store(sums, panel, _mm512_add_epi32(low, high));
    }
}

/// Chunks of a block: unpacked they are 16 KiB, which stay in the first cache beside the tokens.
const BLOCK: usize = 32;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn many_tokens(pair: &[PairChunk], tokens: &[[i8; CHUNK]], sums: &mut [[i32; ROWS_PER_PAIR]]) {
    sums.fill([0; ROWS_PER_PAIR]);
    let quads = tokens.as_flattened().as_chunks::<4>().0;
    let mut lines = [[Line([0; 64]); 2]; 4 * BLOCK];
    for (block, chunks) in pair.chunks(BLOCK).enumerate() {
        let unpacked = &mut lines[..4 * chunks.len()];
        unpack(chunks, unpacked);
        let place = Place { width: 4 * pair.len(), start: 4 * BLOCK * block };
        for (tile, sums) in sums.chunks_mut(TOKENS).enumerate() {
            let quads = &quads[tile * TOKENS * place.width..][..sums.len() * place.width];
            any_tile(unpacked, quads, place, sums);
        }
    }
}

/// Where a block lies in a token.
#[derive(Clone, Copy)]
struct Place {
    /// Columns of a token, by four.
    width: usize,
    /// The first of the block.
    start: usize,
}

/// One instance for each number of tokens in a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn any_tile(
    unpacked: &[[Line; 2]],
    quads: &[[i8; 4]],
    place: Place,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    match sums.len() {
        12 => products::<12>(unpacked, quads, place, sums),
        11 => products::<11>(unpacked, quads, place, sums),
        10 => products::<10>(unpacked, quads, place, sums),
        9 => products::<9>(unpacked, quads, place, sums),
        8 => products::<8>(unpacked, quads, place, sums),
        7 => products::<7>(unpacked, quads, place, sums),
        6 => products::<6>(unpacked, quads, place, sums),
        5 => products::<5>(unpacked, quads, place, sums),
        4 => products::<4>(unpacked, quads, place, sums),
        3 => products::<3>(unpacked, quads, place, sums),
        2 => products::<2>(unpacked, quads, place, sums),
        _ => products::<1>(unpacked, quads, place, sums),
    }
}

/// Field `f` of chunk `c` becomes line `4c + f` of both panels, a byte a code.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn unpack(pair: &[PairChunk], unpacked: &mut [[Line; 2]]) {
    let mask = _mm512_set1_epi8(3);
    for (chunk, out) in pair.iter().zip(unpacked.as_chunks_mut::<4>().0) {
        for panel in 0..2 {
            let line = load(half(chunk, panel));
            let fields = [
                line,
                _mm512_srli_epi16::<2>(line),
                _mm512_srli_epi16::<4>(line),
                _mm512_srli_epi16::<6>(line),
            ];
            for (out, field) in out.iter_mut().zip(fields) {
                // SAFETY: a line is 64 bytes and aligned to them.
                unsafe {
                    let place = out[panel].0.as_mut_ptr();
                    _mm512_store_si512(place.cast(), _mm512_and_si512(field, mask));
                }
            }
        }
    }
}

/// Adds the products of `T` tokens with the 32 rows of an unpacked block.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products<const T: usize>(
    unpacked: &[[Line; 2]],
    quads: &[[i8; 4]],
    place: Place,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    let token: [&[[i8; 4]]; T] =
        from_fn(|t| &quads[t * place.width + place.start..][..unpacked.len()]);
    let mut totals = [[_mm512_setzero_si512(); 2]; T];
    for (k, lines) in unpacked.iter().enumerate() {
        let lines = [load(&lines[0].0), load(&lines[1].0)];
        for t in 0..T {
            let x = _mm512_set1_epi32(i32::from_ne_bytes(token[t][k].map(|code| code as u8)));
            totals[t][0] = _mm512_dpbusd_epi32(totals[t][0], lines[0], x);
            totals[t][1] = _mm512_dpbusd_epi32(totals[t][1], lines[1], x);
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (panel, total) in totals.into_iter().enumerate() {
            let before = load_sums(sums, panel);
            store(sums, panel, _mm512_add_epi32(before, total));
        }
    }
}

/// [`crate::scalar::rescale`], sixteen at a time.
pub(crate) fn rescale(sums: &[i32], offset: i32, weights: &[f32], scale: f32, out: &mut [f32]) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { rescale_vectors(sums, offset, weights, scale, out) }
}

#[target_feature(enable = "avx512f")]
fn rescale_vectors(sums: &[i32], offset: i32, weights: &[f32], scale: f32, out: &mut [f32]) {
    let (out, out_rest) = out.as_chunks_mut::<ROWS>();
    let (sums, sums_rest) = sums.as_chunks::<ROWS>();
    let (offsets, scales) = (_mm512_set1_epi32(offset), _mm512_set1_ps(scale));
    let weights_rest = &weights[ROWS * sums.len()..];
    for ((out, sums), weights) in out.iter_mut().zip(sums).zip(weights.as_chunks::<ROWS>().0) {
        // SAFETY: each is sixteen values of four bytes.
        unsafe {
            let sums = _mm512_sub_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), offsets);
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(weights.as_ptr()));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_div_ps(scaled, scales));
        }
    }
    crate::scalar::rescale(sums_rest, offset, weights_rest, scale, out_rest);
}

/// `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with one token's codes `[K/4]`.
pub(crate) fn int8_rows(panel: &[Line], token: &[[i8; 4]]) -> [i32; ROWS] {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    assert_eq!(panel.len(), token.len(), "a token as wide as the panel");
    // SAFETY: the instructions are there, asserted above.
    unsafe { int8_products(panel, token) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8_products(panel: &[Line], token: &[[i8; 4]]) -> [i32; ROWS] {
    let product = |total, line: &Line, x: &[i8; 4]| {
        let x = _mm512_set1_epi32(i32::from_ne_bytes(x.map(|code| code as u8)));
        _mm512_dpbusd_epi32(total, load(&line.0), x)
    };
    let mut totals = [_mm512_setzero_si512(); 4];
    let ((lines, lines_rest), (xs, xs_rest)) = (panel.as_chunks::<4>(), token.as_chunks::<4>());
    for (lines, xs) in lines.iter().zip(xs) {
        for i in 0..4 {
            totals[i] = product(totals[i], &lines[i], &xs[i]);
        }
    }
    for (line, x) in lines_rest.iter().zip(xs_rest) {
        totals[0] = product(totals[0], line, x);
    }
    let [a, b, c, d] = totals;
    let mut sums = [0; ROWS];
    let total = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    // SAFETY: sixteen i32 are 64 bytes.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total) };
    sums
}

/// Activations `4f .. 4f + 4` in every 32-bit lane of vector `f`.
#[target_feature(enable = "avx512f")]
#[inline]
fn broadcast(x: &[i8; CHUNK]) -> [__m512i; 4] {
    from_fn(|f| {
        let four = [x[4 * f], x[4 * f + 1], x[4 * f + 2], x[4 * f + 3]];
        _mm512_set1_epi32(i32::from_ne_bytes(four.map(|code| code as u8)))
    })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

/// The line of one of the two panels.
fn half(chunk: &PairChunk, panel: usize) -> &[u8; 64] {
    &chunk.0.as_chunks().0[panel]
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_sums(sums: &[i32; ROWS_PER_PAIR], panel: usize) -> __m512i {
    let places: &[i32; ROWS] = &sums.as_chunks().0[panel];
    // SAFETY: sixteen i32 are 64 bytes.
    unsafe { _mm512_loadu_si512(places.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(sums: &mut [i32; ROWS_PER_PAIR], panel: usize, values: __m512i) {
    let places: &mut [i32; ROWS] = &mut sums.as_chunks_mut().0[panel];
    // SAFETY: sixteen i32 are 64 bytes.
    unsafe { _mm512_storeu_si512(places.as_mut_ptr().cast(), values) }
}

/// The 8-bit operations a second of one core, on registers alone (two to a multiply-add).
pub(crate) fn peak_operations(rounds: usize) -> Option<f64> {
    if !is_available() {
        return None;
    }
    let start = std::time::Instant::now();
    // SAFETY: the instructions are there, asked above.
    let sum = unsafe { busy(rounds) };
    std::hint::black_box(sum);
    let products = rounds as f64 * 24.0 * 64.0;
    Some(2.0 * products / start.elapsed().as_secs_f64())
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn busy(rounds: usize) -> i32 {
    let mut totals = [_mm512_setzero_si512(); 24];
    let (u, q) = (std::hint::black_box(3), std::hint::black_box(5));
    let (u, q) = (_mm512_set1_epi8(u), _mm512_set1_epi8(q));
    for _ in 0..rounds {
        for total in &mut totals {
            *total = _mm512_dpbusd_epi32(*total, u, q);
        }
        std::hint::black_box(());
    }
    let mut sums = [0; ROWS];
    let total = totals.into_iter().reduce(|a, b| _mm512_add_epi32(a, b));
    // SAFETY: sixteen i32 are 64 bytes.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), total.expect("24 totals")) };
    sums[0]
}
