//! Sums of products to outputs, sixteen at a time. A division takes as long as 32 products of 64 bytes, so
//! a quotient is made from the inverse and corrected until it is the one that the division rounds to.
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]

use std::arch::x86_64::{
    __m512, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    _mm512_sub_epi32,
};

use super::{ROWS, is_available};
use crate::layout::RescaleTerms;

/// [`crate::reference::rescale`] of several tokens.
pub(crate) fn rescale<const R: usize>(sums: &[[i32; R]], terms: RescaleTerms, out: &mut [f32]) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { rescale_vectors(sums, terms, out) }
}

#[target_feature(enable = "avx512f")]
fn rescale_vectors<const R: usize>(sums: &[[i32; R]], terms: RescaleTerms, out: &mut [f32]) {
    let weights_allow = terms.weights.iter().all(|&weight| stays_normal(weight));
    terms.each_token(sums, out, |sums, offset, weights, scale, out| {
        if weights_allow && stays_normal(scale) {
            let inverse = _mm512_set1_ps(1.0 / scale);
            rescale_token(sums, offset, weights, scale, out, |x, scale| {
                corrected_quotient(x, scale, inverse)
            });
        } else {
            rescale_token(sums, offset, weights, scale, out, |x, scale| _mm512_div_ps(x, scale));
        }
    });
}

/// Whether no number on the way to a quotient of a sum times one such number and another is zero
/// by underflow, subnormal or infinite.
fn stays_normal(value: f32) -> bool {
    const LARGEST: f32 = (1u64 << 40) as f32;
    (1.0 / LARGEST..=LARGEST).contains(&value)
}

/// `x / y` as IEEE 754 rounds it; `inverse` is `1 / y`, rounded likewise.
///
/// After one correction the quotient is at most one unit in the last place away; of such a one the
/// remainder is exact, and the second correction rounds to the nearest (Markstein 1990; Muller and others,
/// Handbook of Floating-Point Arithmetic, section 4.7).
#[target_feature(enable = "avx512f")]
#[inline]
fn corrected_quotient(x: __m512, y: __m512, inverse: __m512) -> __m512 {
    let first = _mm512_mul_ps(x, inverse);
    let second = _mm512_fmadd_ps(_mm512_fnmadd_ps(y, first, x), inverse, first);
    _mm512_fmadd_ps(_mm512_fnmadd_ps(y, second, x), inverse, second)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn rescale_token(
    sums: &[i32],
    offset: i32,
    weights: &[f32],
    scale: f32,
    out: &mut [f32],
    divide: impl Fn(__m512, __m512) -> __m512,
) {
    let ((out, out_rest), (weights, weights_rest)) =
        (out.as_chunks_mut::<ROWS>(), weights.as_chunks::<ROWS>());
    let (sums, sums_rest) = sums.as_chunks::<ROWS>();
    let (offsets, scales) = (_mm512_set1_epi32(offset), _mm512_set1_ps(scale));
    for ((out, sums), weights) in out.iter_mut().zip(sums).zip(weights) {
        // SAFETY: each is sixteen values of four bytes.
        unsafe {
            let sums = _mm512_sub_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), offsets);
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(weights.as_ptr()));
            _mm512_storeu_ps(out.as_mut_ptr(), divide(scaled, scales));
        }
    }
    crate::reference::rescale(sums_rest, offset, weights_rest, scale, out_rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x / y` of whole vectors.
    #[target_feature(enable = "avx512f")]
    fn quotients(x: &[f32; ROWS], y: f32) -> [f32; ROWS] {
        let mut out = [0.0; ROWS];
        // SAFETY: sixteen values each.
        unsafe {
            let x = _mm512_loadu_ps(x.as_ptr());
            let quotients = corrected_quotient(x, _mm512_set1_ps(y), _mm512_set1_ps(1.0 / y));
            _mm512_storeu_ps(out.as_mut_ptr(), quotients);
        }
        out
    }

    #[test]
    fn a_corrected_quotient_is_that_of_the_division() {
        if !is_available() {
            return;
        }
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 32) as u32
        };
        for _ in 0..200_000 {
            // Mantissas of every kind: any bits, few bits set, few bits missing.
            let mut mantissa = || match next() % 4 {
                0 => (1 << (next() % 24)) & 0x7f_ffff,
                1 => 0x7f_ffff ^ (next() % 8),
                2 => next() % 8,
                _ => next() & 0x7f_ffff,
            };
            let y = f32::from_bits(mantissa() | 0x3f80_0000);
            let x = std::array::from_fn(|_| f32::from_bits(mantissa() | 0x3f80_0000));
            // SAFETY: the instructions are there, asked above.
            let found = unsafe { quotients(&x, y) };
            assert_eq!(found.map(f32::to_bits), x.map(|x| (x / y).to_bits()), "{x:?} / {y}");
        }
    }

    #[test]
    fn a_corrected_quotient_beside_the_middle_of_two_numbers_is_that_of_the_division() {
        if !is_available() {
            return;
        }
        let mut seed = 1u64;
        let mut found = 0;
        while found < 100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // `X · 2²⁵ = Y · M + r` with an odd M of 25 bits: X / Y lies r / (Y · 2²⁵) beside M / 2²⁵, the
            // middle of two floats, and no quotient of 24 bits lies closer.
            let y = (seed >> 40) | 1 << 23 | 1;
            let rest = [1i64, -1, 3, -3, 5, -5][(seed >> 20) as usize % 6];
            // The inverse of an odd number modulo 2⁶⁴: each step doubles the bits that are right.
            let inverse = (0..6).fold(y, |inverse, _| {
                inverse.wrapping_mul(2u64.wrapping_sub(y.wrapping_mul(inverse)))
            });
            let middle = inverse.wrapping_mul(rest.wrapping_neg().cast_unsigned()) % (1 << 25);
            let x = (y * middle).wrapping_add_signed(rest) >> 25;
            if middle < 1 << 24 || x < 1 << 23 {
                continue;
            }
            found += 1;
            let (x, y) = (x as f32, y as f32);
            // SAFETY: the instructions are there, asked above.
            let quotient = unsafe { quotients(&[x; ROWS], y) }[0];
            assert_eq!(quotient.to_bits(), (x / y).to_bits(), "{x} / {y}");
        }
    }
}
