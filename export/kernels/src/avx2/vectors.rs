//! Work on single vectors of floats: dot products and the quantisation of activations.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_ORD_Q, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128,
    _mm_movehdup_ps, _mm_movehl_ps, _mm256_add_ps, _mm256_and_ps, _mm256_andnot_ps,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_mul_ps, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_permutevar8x32_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_storeu_si256,
};
use std::array::from_fn;

use bitnet_format::quant::ActivationScale;
use half::{bf16, f16};

use super::is_available;
use crate::reference::{LANES, finish_dot};

#[target_feature(enable = "avx2")]
#[inline]
fn load_floats(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight f32 are 32 bytes.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_floats(places: &mut [f32; 8], values: __m256) {
    // SAFETY: eight f32 are 32 bytes.
    unsafe { _mm256_storeu_ps(places.as_mut_ptr(), values) }
}

/// `Σ w·x`, as [`crate::Kernel::dot`] states.
pub(crate) fn dot(w: &[f32], x: &[f32]) -> f32 {
    assert!(is_available(), "this CPU has no AVX2");
    assert_eq!(w.len(), x.len(), "two vectors of one length");
    // SAFETY: AVX2 is there, asserted above.
    unsafe { dot_f32_lanes(w, x) }
}

/// [`dot`] with BF16 weights.
pub(crate) fn dot_bf16(w: &[bf16], x: &[f32]) -> f32 {
    assert!(is_available(), "this CPU has no AVX2");
    assert_eq!(w.len(), x.len(), "two vectors of one length");
    // SAFETY: AVX2 is there, asserted above.
    unsafe { dot_bf16_lanes(w, x) }
}

/// [`dot`] with F16 weights.
pub(crate) fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    assert!(is_available(), "this CPU has no AVX2");
    assert_eq!(w.len(), x.len(), "two vectors of one length");
    // SAFETY: AVX2 and F16C are there, asserted above.
    unsafe { dot_f16_lanes(w, x) }
}

#[target_feature(enable = "avx2,f16c")]
fn dot_f16_lanes(w: &[f16], x: &[f32]) -> f32 {
    dot_lanes(w, x, |w: &[f16; 8]| {
        // SAFETY: eight F16 are 16 bytes.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(w.as_ptr().cast()) })
    })
}

#[target_feature(enable = "avx2")]
fn dot_f32_lanes(w: &[f32], x: &[f32]) -> f32 {
    dot_lanes(w, x, |w| load_floats(w))
}

#[target_feature(enable = "avx2")]
fn dot_bf16_lanes(w: &[bf16], x: &[f32]) -> f32 {
    dot_lanes(w, x, |w: &[bf16; 8]| {
        // SAFETY: eight BF16 are 16 bytes. A BF16 is the upper half of its f32.
        let halves = unsafe { _mm_loadu_si128(w.as_ptr().cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn dot_lanes<W: Copy + Into<f32>>(w: &[W], x: &[f32], load: impl Fn(&[W; 8]) -> __m256) -> f32 {
    const VECTORS: usize = LANES / 8;
    let mut sums = [_mm256_setzero_ps(); VECTORS];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        let (w, x) = (w.as_chunks().0, x.as_chunks().0);
        for (i, sum) in sums.iter_mut().enumerate() {
            // Product and sum apart, not fused: the reference rounds both.
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(load(&w[i]), load_floats(&x[i])));
        }
    }
    if w_rest.is_empty() {
        return add_lanes(sums);
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        store_floats(lanes, sum);
    }
    finish_dot(lanes, w_rest, x_rest)
}

/// Halves added to halves: 32 lanes, 16, 8, 4, 2, 1.
#[target_feature(enable = "avx2")]
#[inline]
fn add_lanes(sums: [__m256; 4]) -> f32 {
    let (low, high) = (_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// One token's codes and scale, as `bitnet_format::quant::quantise_row` states.
pub(crate) fn quantise(row: &[f32], codes: &mut [i8]) -> ActivationScale {
    assert!(is_available(), "this CPU has no AVX2");
    assert_eq!(row.len(), codes.len(), "one code for each activation");
    // SAFETY: AVX2 is there, asserted above.
    unsafe {
        let scale = ActivationScale::from_absmax(absmax(row));
        write_codes(row, codes, scale.multiplier());
        scale
    }
}

/// Largest |x|, NaN not counted: `vmaxps` returns its second operand when one is NaN.
#[target_feature(enable = "avx2")]
fn absmax(row: &[f32]) -> f32 {
    let sign = _mm256_set1_ps(-0.0);
    let (vectors, rest) = row.as_chunks::<8>();
    // Four maxima side by side hide the latency; a maximum does not depend on the order.
    let mut largest = [_mm256_setzero_ps(); 4];
    for (i, vector) in vectors.iter().enumerate() {
        let lane = &mut largest[i % 4];
        *lane = _mm256_max_ps(_mm256_andnot_ps(sign, load_floats(vector)), *lane);
    }
    let mut lanes = [0.0f32; 32];
    for (lanes, vector) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(largest) {
        store_floats(lanes, vector);
    }
    lanes.iter().chain(rest).fold(0.0, |max, x| max.max(x.abs()))
}

#[target_feature(enable = "avx2")]
fn write_codes(row: &[f32], codes: &mut [i8], scale: f32) {
    let ((x, x_rest), (c, c_rest)) = (row.as_chunks::<32>(), codes.as_chunks_mut::<32>());
    for (x, codes) in x.iter().zip(c) {
        let x = x.as_chunks().0;
        let rounded: [__m256i; 4] = from_fn(|i| round(load_floats(&x[i]), scale));
        let low = _mm256_packs_epi32(rounded[0], rounded[1]);
        let high = _mm256_packs_epi32(rounded[2], rounded[3]);
        // Packing works within 128-bit halves; this puts the groups of four back in order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        // SAFETY: 32 codes are 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), packed) }
    }
    for (code, &x) in c_rest.iter_mut().zip(x_rest) {
        *code = (x * scale).round_ties_even().clamp(-128.0, 127.0) as i8;
    }
}

/// `x · scale` to the nearest integer, ties to even (the default of `MXCSR`), NaN to 0.
///
/// |x · scale| is at most 127 and an ulp, because the scale comes from the largest |x|.
#[target_feature(enable = "avx2")]
#[inline]
fn round(x: __m256, scale: f32) -> __m256i {
    let scaled = _mm256_mul_ps(x, _mm256_set1_ps(scale));
    let number = _mm256_cmp_ps::<_CMP_ORD_Q>(scaled, scaled);
    _mm256_cvtps_epi32(_mm256_and_ps(scaled, number))
}
