//! Vectors of AVX2 and AVX-512, and the loops compiled with them.

use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_storeu_ps, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

use half::f16;

use super::body::{QueryRow, body};
use super::vector::{Element, Vector};
use crate::pages::{HeadView, LANES};

impl Vector for [__m256; 2] {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX, says the caller.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: AVX, says the caller; two times eight values.
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())] }
    }

    #[inline(always)]
    unsafe fn load_half(values: &[f16; LANES]) -> Self {
        // SAFETY: F16C, says the caller; two times eight values of two bytes.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(values[8..].as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: FMA, says the caller.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], self[0]), _mm256_fmadd_ps(a[1], b[1], self[1])] }
    }

    #[inline(always)]
    unsafe fn store(self, places: &mut [f32; LANES]) {
        // SAFETY: AVX, says the caller; two times eight places.
        unsafe {
            _mm256_storeu_ps(places.as_mut_ptr(), self[0]);
            _mm256_storeu_ps(places[8..].as_mut_ptr(), self[1]);
        }
    }

    #[inline(always)]
    fn fetch<E>(there: &E) {
        // SAFETY: a hint; it faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(there).cast()) }
    }
}

impl Vector for __m512 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen values.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_half(values: &[f16; LANES]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen values of two bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn store(self, places: &mut [f32; LANES]) {
        // SAFETY: AVX-512, says the caller; sixteen places.
        unsafe { _mm512_storeu_ps(places.as_mut_ptr(), self) }
    }

    #[inline(always)]
    fn fetch<E>(there: &E) {
        // SAFETY: a hint; it faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(there).cast()) }
    }
}

/// [`body`] for AVX2 with FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn avx2<E: Element, const Q: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: this function has the instructions.
    unsafe { body::<[__m256; 2], E, Q, 1>(rows, head, scores, out) }
}

/// [`body`] for AVX-512.
#[target_feature(enable = "avx512f,fma")]
pub(super) fn avx512<E: Element, const Q: usize, const W: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    // SAFETY: this function has the instructions.
    unsafe { body::<__m512, E, Q, W>(rows, head, scores, out) }
}
