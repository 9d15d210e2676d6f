//! Kernels for CPUs with AVX-512 and its 8-bit dot product (VNNI): Intel since Ice Lake, AMD since
//! Zen 4. The bodies are those of `dot4`.
#![expect(unsafe_code, reason = "vector loads and stores take raw pointers")]
#![expect(clippy::inline_always, reason = "the caller's instruction set must reach every line")]

mod rescale;

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_castsi512_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_srai_epi32, _mm512_srli_epi16, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use crate::dot4::{self, Lanes};
use crate::float_tile::{self, FloatLanes};
use crate::gemm::{Operands, Tile};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, each_group};
use crate::layout::{CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, SimdWork, TokenCodes};
use crate::pack::PackWork;
use crate::words::{RoundToBf16, Square};

pub(crate) use rescale::rescale;

/// Rows of a vector.
const ROWS: usize = 16;

/// Whether this CPU has the instructions; those of AVX2 are used for the rest.
pub(crate) fn is_available() -> bool {
    crate::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

impl Lanes for __m512i {
    const BYTES: usize = 64;
    /// 16 accumulators. With more the loop gains nothing, and with 24 it spills.
    const TOKENS: usize = 8;
    const WIDE_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(bytes: &[u8]) -> Self {
        // SAFETY: AVX-512, says the caller; 64 bytes.
        unsafe { _mm512_loadu_si512(bytes[..64].as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(codes: [i8; 4]) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_set1_epi32(i32::from_ne_bytes(codes.map(i8::cast_unsigned))) }
    }

    #[inline(always)]
    unsafe fn and(self, mask: u8) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_and_si512(self, _mm512_set1_epi8(mask.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn shifted<const F: usize>(self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe {
            match F {
                0 => self,
                1 => _mm512_srli_epi16::<2>(self),
                2 => _mm512_srli_epi16::<4>(self),
                _ => _mm512_srli_epi16::<6>(self),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products(self, u: Self, q: Self) -> Self {
        // SAFETY: AVX-512 VNNI, says the caller.
        unsafe { _mm512_dpbusd_epi32(self, u, q) }
    }

    #[inline(always)]
    unsafe fn add_wide_products(self, u: Self, q: Self) -> Self {
        // SAFETY: AVX-512 VNNI, says the caller.
        unsafe { _mm512_dpbusd_epi32(self, u, q) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_add_epi32(self, other) }
    }

    #[inline(always)]
    unsafe fn quarter(self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_srai_epi32::<2>(self) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [i32]) {
        // SAFETY: AVX-512, says the caller; sixteen places of four bytes.
        unsafe { _mm512_storeu_si512(sums[..ROWS].as_mut_ptr().cast(), self) }
    }
}

/// Whether this CPU also multiplies pairs of bf16.
pub(crate) fn has_bf16() -> bool {
    is_available() && is_x86_feature_detected!("avx512bf16")
}

/// f32 words.
impl FloatLanes for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load(sums: &[f32]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen values.
        unsafe { _mm512_loadu_ps(sums[..ROWS].as_ptr()) }
    }

    #[inline(always)]
    unsafe fn words(words: &[u32]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen words.
        unsafe { _mm512_loadu_ps(words[..ROWS].as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn broadcast(word: u32) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_set1_ps(f32::from_bits(word)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [f32]) {
        // SAFETY: AVX-512, says the caller; sixteen places.
        unsafe { _mm512_storeu_ps(sums[..ROWS].as_mut_ptr(), self) }
    }
}

/// Words of two bf16.
#[derive(Clone, Copy)]
struct Bf16Pairs(__m512);

impl FloatLanes for Bf16Pairs {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load(sums: &[f32]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen values.
        unsafe { Self(_mm512_loadu_ps(sums[..ROWS].as_ptr())) }
    }

    #[inline(always)]
    unsafe fn words(words: &[u32]) -> Self {
        // SAFETY: AVX-512, says the caller; sixteen words.
        unsafe { Self(_mm512_loadu_ps(words[..ROWS].as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn broadcast(word: u32) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { Self(_mm512_castsi512_ps(_mm512_set1_epi32(word.cast_signed()))) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512 BF16, says the caller; a `__m512bh` is 32 bf16 and any bits are some.
        unsafe {
            let pairs = |x: __m512| std::mem::transmute::<__m512, __m512bh>(x);
            let (a, b) = (pairs(a.0), pairs(b.0));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX-512, says the caller.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn store(self, sums: &mut [f32]) {
        // SAFETY: AVX-512, says the caller; sixteen places.
        unsafe { _mm512_storeu_ps(sums[..ROWS].as_mut_ptr(), self.0) }
    }
}

/// Words of two bf16, rounded by the instruction.
struct Rounding;

impl Rounding {
    /// The upper halves of the words come from `high`.
    #[inline(always)]
    unsafe fn halves(low: __m512, high: __m512) -> __m512i {
        // SAFETY: AVX-512 BF16, says the caller; any bits are 32 bf16 or 64 bytes.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline(always)]
    unsafe fn scaled(x: &[f32; ROWS], factors: __m512) -> __m512 {
        // SAFETY: AVX-512, says the caller; sixteen values.
        unsafe { _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), factors) }
    }

    #[inline(always)]
    unsafe fn words(words: __m512i) -> [u32; ROWS] {
        // SAFETY: both are 64 bytes, and any bits are sixteen words.
        unsafe { std::mem::transmute::<__m512i, [u32; ROWS]>(words) }
    }
}

impl RoundToBf16 for Rounding {
    #[inline(always)]
    unsafe fn of_rows(rows: [&[f32; ROWS]; 2], factors: [f32; 2]) -> [u32; ROWS] {
        // SAFETY: AVX-512 BF16, says the caller.
        unsafe {
            let scaled = |i: usize| Self::scaled(rows[i], _mm512_set1_ps(factors[i]));
            // Word i: half i of the first row, then half i of the second.
            let order: [u16; 2 * ROWS] =
                std::array::from_fn(|half| (half / 2 + half % 2 * ROWS) as u16);
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let halves = Self::halves(scaled(0), scaled(1));
            Self::words(_mm512_permutexvar_epi16(order, halves))
        }
    }

    #[inline(always)]
    unsafe fn of_neighbours(x: &[f32; 2 * ROWS], factors: &[f32; 2 * ROWS]) -> [u32; ROWS] {
        let [x, factors] = [x, factors].map(|values| values.as_chunks::<ROWS>().0);
        // SAFETY: AVX-512 BF16, says the caller.
        unsafe {
            let scaled = |i: usize| Self::scaled(&x[i], _mm512_loadu_ps(factors[i].as_ptr()));
            Self::words(Self::halves(scaled(0), scaled(1)))
        }
    }

    /// Words, pairs of words and quarters of a vector change places:
    ///
    /// ```text
    /// rows 0, 1     a0 a1 a2 a3 …     words:  a0 b0 a1 b1 …    a2 b2 a3 b3 …
    ///               b0 b1 b2 b3 …     pairs:  a0 b0 c0 d0 …    a1 b1 c1 d1 …    then whole quarters
    /// ```
    #[inline(always)]
    unsafe fn transposed(square: &Square) -> Square {
        // SAFETY: AVX-512, says the caller; a row is sixteen words.
        unsafe {
            // Loops and no closures: these would be compiled without the instructions.
            let mut rows = [_mm512_setzero_si512(); ROWS];
            for (vector, row) in rows.iter_mut().zip(square) {
                *vector = _mm512_loadu_si512(row.as_ptr().cast());
            }
            let mut words = rows;
            for i in (0..ROWS).step_by(2) {
                words[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
                words[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
            }
            let mut pairs = rows;
            for i in (0..ROWS).step_by(4) {
                for half in 0..2 {
                    let (low, high) = (words[i + half], words[i + half + 2]);
                    pairs[i + 2 * half] = _mm512_unpacklo_epi64(low, high);
                    pairs[i + 2 * half + 1] = _mm512_unpackhi_epi64(low, high);
                }
            }
            let mut columns = Square::default();
            for i in 0..4 {
                // Quarter q of these four is column 4q + i of four rows each.
                let [a, b, c, d] = [pairs[i], pairs[4 + i], pairs[8 + i], pairs[12 + i]];
                let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
                let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
                let quarters = [
                    _mm512_shuffle_i32x4::<0x88>(even[0], even[1]),
                    _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]),
                    _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]),
                    _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]),
                ];
                for (quarter, vector) in quarters.into_iter().enumerate() {
                    let column = &mut columns[4 * quarter + i];
                    _mm512_storeu_si512(column.as_mut_ptr().cast(), vector);
                }
            }
            columns
        }
    }
}

/// [`crate::Kernel::packed`] for this instruction set.
pub(crate) fn packed<W: PackWork>(work: W) {
    assert!(has_bf16(), "this CPU has no AVX-512 BF16");
    // SAFETY: the instructions are there, asserted above.
    unsafe { packed_with_instructions(work) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn packed_with_instructions<W: PackWork>(work: W) {
    // SAFETY: this function has the instructions.
    unsafe { work.run::<Rounding>() }
}

/// [`crate::Kernel::dispatch`] for this instruction set.
pub(crate) fn dispatch<W: SimdWork>(work: W) -> W::Output {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { with_instructions(work) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn with_instructions<W: SimdWork>(work: W) -> W::Output {
    work.run()
}

/// Adds a strip's products with a panel to `sums`, a row every `stride`.
pub(crate) fn float_tile(tile: Tile, sums: &mut [f32], stride: usize) {
    let pairs = tile.format.pairs();
    assert!(if pairs { has_bf16() } else { is_available() }, "this CPU has no AVX-512 BF16");
    // SAFETY: the instructions are there, asserted above.
    unsafe {
        match tile.format.operands {
            Operands::Bf16Tiles => chains(tile, sums, stride),
            _ if pairs => pair_words(tile, sums, stride),
            _ => floats(tile, sums, stride),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn pair_words(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe {
        match tile.width {
            48 => float_tile::tile::<Bf16Pairs, 8, 3>(tile, sums, stride),
            32 => float_tile::tile::<Bf16Pairs, 8, 2>(tile, sums, stride),
            _ => float_tile::tile::<Bf16Pairs, 8, 1>(tile, sums, stride),
        }
    }
}

#[target_feature(enable = "avx512f")]
fn chains(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe { float_tile::chains::<__m512, 8>(tile, sums, stride) }
}

#[target_feature(enable = "avx512f")]
fn floats(tile: Tile, sums: &mut [f32], stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe {
        match tile.width {
            48 => float_tile::tile::<__m512, 8, 3>(tile, sums, stride),
            32 => float_tile::tile::<__m512, 8, 2>(tile, sums, stride),
            _ => float_tile::tile::<__m512, 8, 1>(tile, sums, stride),
        }
    }
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    tokens.check(sums.len(), pair.len());
    // SAFETY: the instructions are there, asserted above.
    unsafe { ternary_products(pair, tokens, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn ternary_products(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::tile::<__m512i, 2, 4, 2>(pair, tokens, sums) }
}

/// [`each_group`] of a pair of panels.
pub(crate) fn grouped(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { grouped_products(pair, tokens, tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn grouped_products(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    each_group(pair, tokens, tile, |chunks, tokens, sums| {
        // SAFETY: the function around it has the instructions.
        unsafe { dot4::tile::<__m512i, 2, 2, 2>(chunks, tokens, sums) }
    });
}

/// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`.
pub(crate) fn int8_tile(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    assert!(is_available(), "this CPU has no AVX-512 VNNI");
    // SAFETY: the instructions are there, asserted above.
    unsafe { int8_products(panel, tokens, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8_products(panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
    // SAFETY: this function has the instructions.
    unsafe { dot4::int8_tile::<__m512i, 1, 4>(panel, tokens, sums) }
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
