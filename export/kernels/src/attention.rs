//! Attention of a few query rows over one key head, sixteen keys at a time.
//!
//! Keys and values lie as `pages` says. A score is the sum over the elements in order, an output the sum
//! over the tokens in order, each step one fused multiply-add. Vectors only do sixteen of these
//! sums side by side, so every kernel gives the same bits, and a row's result does not depend on
//! the rows beside it.
//!
//! ```text
//! scores    s[0..16] += q[d] · keys[block][d][0..16]       for d = 0 … D-1, a block of 16 tokens at a time
//! weights   exp(s - max s) / Σ                              over the visible tokens
//! output    o[0..16] += w[t] · values[t][0..16]             for t = 0, 1, …: oldest first
//! ```
#![expect(unsafe_code, reason = "one body is compiled for each instruction set")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

use std::ops::Range;

use half::f16;
use half::vec::HalfBitsVecExt;

use crate::Kernel;
pub use crate::pages::{HeadLayout, HeadView, LANES, PAGE};
use vector::{Load, Vector};

/// Query rows that share a pass over keys and values.
pub const QUERIES: usize = 8;

/// Tokens ahead whose values are asked for.
const AHEAD: usize = 12;

/// What keys and values are held in: f32, or f16 in half the memory, which converts to f32 exactly.
pub trait Element: Load {
    /// The nearest value, ties to even; beyond the largest finite one, that one.
    fn nearest(x: f32) -> Self;
    /// So many zeros. The system gives memory only where something else is written.
    fn zeros(count: usize) -> Vec<Self>;
}

impl Element for f32 {
    fn nearest(x: f32) -> Self {
        x
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

impl Element for f16 {
    fn nearest(x: f32) -> Self {
        // An infinite key would make every score of its token NaN.
        f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }
}

/// One query row: its vector `[D]` and how many tokens it sees, the oldest first.
#[derive(Clone, Copy, Debug)]
pub struct QueryRow<'a> {
    /// The query, already turned.
    pub query: &'a [f32],
    /// Tokens it sees.
    pub visible: usize,
}

/// `out [rows, padded D]` = softmax(`q·k / sqrt(D)`) · values, for at most [`QUERIES`] rows.
///
/// `scratch` is memory that may be used again.
pub fn attend<E: Element>(
    kernel: Kernel,
    rows: &[QueryRow],
    head: HeadView<E>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    match rows.len() {
        1 => run::<E, 1, 4>(kernel, rows, head, scratch, out),
        2 => run::<E, 2, 4>(kernel, rows, head, scratch, out),
        3 => run::<E, 3, 4>(kernel, rows, head, scratch, out),
        4 => run::<E, 4, 4>(kernel, rows, head, scratch, out),
        5 => run::<E, 5, 3>(kernel, rows, head, scratch, out),
        6 => run::<E, 6, 2>(kernel, rows, head, scratch, out),
        7 => run::<E, 7, 2>(kernel, rows, head, scratch, out),
        8 => run::<E, 8, 2>(kernel, rows, head, scratch, out),
        other => panic!("1 to {QUERIES} rows, got {other}"),
    }
}

/// `W`: how many vectors of keys or values 32 registers hold sums for, beside `Q` rows.
fn run<E: Element, const Q: usize, const W: usize>(
    kernel: Kernel,
    rows: &[QueryRow],
    head: HeadView<E>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let rows: &[QueryRow; Q] = rows.try_into().expect("counted by the caller");
    let longest = rows.iter().map(|row| row.visible).max().unwrap_or(0);
    let HeadLayout { width } = head.layout;
    assert!(rows.iter().all(|row| row.query.len() == width), "queries as wide as the head");
    assert!(out.len() == Q * head.layout.padded(), "one place for each row and element");
    assert!(head.pages.len() * PAGE >= longest, "keys and values for every token that is seen");
    let blocks = longest.div_ceil(LANES);
    scratch.clear();
    scratch.resize(Q * blocks * LANES, 0.0);
    // SAFETY: each body only needs the instructions of its kernel, which this CPU has: whoever
    // made the kernel asked.
    unsafe {
        match kernel {
            Kernel::Scalar => body::<[f32; LANES], E, Q, 1>(rows, head, scratch, out),
            #[cfg(target_arch = "aarch64")]
            Kernel::NeonDotprod => body::<[f32; LANES], E, Q, 1>(rows, head, scratch, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::AvxVnni => x86::avx2::<E, Q>(rows, head, scratch, out),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni => x86::avx512::<E, Q, W>(rows, head, scratch, out),
        }
    }
}

mod vector {
    //! What the instruction sets bring, closed to other crates.

    use half::f16;

    use super::LANES;

    /// Sixteen f32 side by side.
    pub trait Vector: Copy {
        /// # Safety
        /// The instructions of the implementation.
        unsafe fn splat(x: f32) -> Self;
        /// # Safety
        /// The instructions of the implementation.
        unsafe fn load(values: &[f32; LANES]) -> Self;
        /// # Safety
        /// The instructions of the implementation.
        unsafe fn load_half(values: &[f16; LANES]) -> Self;
        /// `self + a · b`, rounded once.
        ///
        /// # Safety
        /// The instructions of the implementation.
        unsafe fn add_product(self, a: Self, b: Self) -> Self;
        /// # Safety
        /// The instructions of the implementation.
        unsafe fn store(self, places: &mut [f32; LANES]);
        /// Asks for the memory `there`.
        fn fetch<E>(_there: &E) {}
    }

    /// A type that vectors of f32 are loaded from.
    pub trait Load: Copy + Send + Sync + 'static {
        /// # Safety
        /// The instructions of `V`.
        unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V;
    }

    impl Load for f32 {
        #[inline(always)]
        unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V {
            // SAFETY: the caller has the instructions of `V`.
            unsafe { V::load(values) }
        }
    }

    impl Load for f16 {
        #[inline(always)]
        unsafe fn load<V: Vector>(values: &[Self; LANES]) -> V {
            // SAFETY: the caller has the instructions of `V`.
            unsafe { V::load_half(values) }
        }
    }
}

impl Vector for [f32; LANES] {
    unsafe fn splat(x: f32) -> Self {
        [x; LANES]
    }

    unsafe fn load(values: &[f32; LANES]) -> Self {
        *values
    }

    unsafe fn load_half(values: &[f16; LANES]) -> Self {
        values.map(f16::to_f32)
    }

    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], self[lane]))
    }

    unsafe fn store(self, places: &mut [f32; LANES]) {
        *places = self;
    }
}

/// The whole of it, compiled into each instruction set's own function.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn body<V: Vector, E: Element, const Q: usize, const W: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let length = scores.len() / Q;
    let blocks = length / LANES;
    let mut block = 0;
    while block < blocks {
        // SAFETY: the caller has the instructions of `V`.
        unsafe {
            if block + W <= blocks {
                block_scores::<V, E, Q, W>(rows, head, block, scores);
                block += W;
            } else {
                block_scores::<V, E, Q, 1>(rows, head, block, scores);
                block += 1;
            }
        }
    }
    let scale = 1.0 / (head.layout.width as f32).sqrt();
    for (row, scores) in rows.iter().zip(scores.chunks_exact_mut(length.max(1))) {
        softmax(scores, row.visible, scale);
    }
    out.fill(0.0);
    let longest = rows.iter().map(|row| row.visible).max().unwrap_or(0);
    let padded = head.layout.padded();
    for start in (0..longest).step_by(PAGE) {
        let tokens = start..longest.min(start + PAGE);
        let mut first = 0;
        while first < padded {
            // SAFETY: as above.
            unsafe {
                if first + W * LANES <= padded {
                    weigh::<V, E, Q, W>(head, first, tokens.clone(), scores, out);
                    first += W * LANES;
                } else {
                    weigh::<V, E, Q, 1>(head, first, tokens.clone(), scores, out);
                    first += LANES;
                }
            }
        }
    }
}

/// `q·k` of every row with `W` blocks of sixteen keys `[D, 16]`, the first of which is `block`.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn block_scores<V: Vector, E: Element, const Q: usize, const W: usize>(
    rows: &[QueryRow; Q],
    head: HeadView<E>,
    block: usize,
    scores: &mut [f32],
) {
    let (width, length) = (head.layout.width, scores.len() / Q);
    let mut queries: [&[f32]; Q] = [&[]; Q];
    for (query, row) in queries.iter_mut().zip(rows) {
        *query = &row.query[..width];
    }
    let last = length / LANES - 1;
    let keys: [_; W] = std::array::from_fn(|w| &head.block(block + w)[..width]);
    let ahead: [_; W] = std::array::from_fn(|w| &head.block(last.min(block + W + w))[..width]);
    // SAFETY: the caller has the instructions of `V`.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; Q];
        for d in 0..width {
            let mut key = [V::splat(0.0); W];
            for w in 0..W {
                key[w] = E::load(&keys[w][d]);
                // Blocks are long and lie apart: the hardware does not prefetch the next one in time.
                V::fetch(&ahead[w][d]);
            }
            for row in 0..Q {
                let query = V::splat(queries[row][d]);
                for w in 0..W {
                    sums[row][w] = sums[row][w].add_product(query, key[w]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let places = &mut scores[row * length + block * LANES..][..W * LANES];
            for (sum, place) in sums.into_iter().zip(places.as_chunks_mut().0) {
                sum.store(place);
            }
        }
    }
}

/// Adds some tokens of one page to `W` times sixteen elements of every row's output, from element `first` on.
///
/// # Safety
/// The instructions of `V`.
#[inline(always)]
unsafe fn weigh<V: Vector, E: Element, const Q: usize, const W: usize>(
    head: HeadView<E>,
    first: usize,
    tokens: Range<usize>,
    weights: &[f32],
    out: &mut [f32],
) {
    let (length, padded, page) = (weights.len() / Q, out.len() / Q, tokens.start / PAGE);
    let mut rows: [&[f32]; Q] = [&[]; Q];
    for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(length.max(1))) {
        *row = &weights[tokens.clone()];
    }
    let values = &head.values(page)[..tokens.len() * padded];
    // What comes after, which the hardware does not prefetch in time.
    let next = head.values((page + 1).min(head.pages.len() - 1));
    let ahead = head.values(page).chunks_exact(padded).skip(AHEAD).chain(next.chunks_exact(padded));
    // SAFETY: the caller has the instructions of `V`.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; Q];
        for (row, sums) in sums.iter_mut().enumerate() {
            let places = &out[row * padded + first..][..W * LANES];
            for (sum, place) in sums.iter_mut().zip(places.as_chunks().0) {
                *sum = V::load(place);
            }
        }
        for (t, (values, ahead)) in values.chunks_exact(padded).zip(ahead).enumerate() {
            let values = values[first..][..W * LANES].as_chunks().0;
            let ahead = &ahead[first..][..W * LANES];
            let mut value = [V::splat(0.0); W];
            for w in 0..W {
                value[w] = E::load(&values[w]);
                V::fetch(&ahead[w * LANES]);
            }
            for row in 0..Q {
                let weight = V::splat(rows[row][t]);
                for w in 0..W {
                    sums[row][w] = sums[row][w].add_product(weight, value[w]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let places = &mut out[row * padded + first..][..W * LANES];
            for (sum, place) in sums.into_iter().zip(places.as_chunks_mut().0) {
                sum.store(place);
            }
        }
    }
}

/// Scores of the tokens that are seen become weights; the others become 0.
#[inline(always)]
fn softmax(scores: &mut [f32], visible: usize, scale: f32) {
    let (seen, hidden) = scores.split_at_mut(visible.min(scores.len()));
    hidden.fill(0.0);
    let largest = largest(seen) * scale;
    for score in seen.iter_mut() {
        *score = exp(score.mul_add(scale, -largest));
    }
    let sum = sum(seen);
    for score in seen {
        *score /= sum;
    }
}

/// The largest value.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, value| max.max(*value))
}

/// In a fixed order: sixteen lanes, then the lanes, then the rest.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value;
        }
    }
    lanes.iter().chain(rest).sum()
}

/// `e^x` for `x ≤ 0` to about one unit in the last place, from the same steps everywhere: the
/// system's own function differs from machine to machine and does not fill vectors.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0; // 1.5 · 2²³
    // Below this the result is no normal number and counts for nothing.
    let x = if x < -87.0 { -87.0 } else { x };
    // The whole number is now in the last bits. (As a cast it would not vectorise.)
    let whole = x.mul_add(std::f32::consts::LOG2_E, NO_FRACTIONS);
    let n = whole - NO_FRACTIONS;
    // ln 2 in two parts, so that the remainder is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut sum = 1.987_569_1e-4f32;
    for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum.mul_add(r, factor);
    }
    let power = f32::from_bits((whole.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    (sum.mul_add(r * r, r) + 1.0) * power
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The bodies for x86-64.

    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_cvtph_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_storeu_ps,
        _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use half::f16;

    use super::{Element, HeadView, LANES, QueryRow, Vector, body};

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_definition() {
        let mut worst = 0.0f64;
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 1.3e-7, "{worst}");
        assert_eq!((exp(0.0), exp(-1e9) > 0.0), (1.0, true));
    }

    #[test]
    fn weights_of_hidden_tokens_are_zero_and_the_others_add_up_to_one() {
        let mut scores = [3.0, 1e4, 1e4, -1e4, 7.0];
        softmax(&mut scores, 4, 1.0);
        assert_eq!(scores[1..], [0.5, 0.5, scores[3], 0.0]);
        assert!(scores[3] < 1e-30);
    }
}
