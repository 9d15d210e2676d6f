//! Ternary codes a byte each, as tiles take them.
#![expect(unsafe_code, reason = "vectors are stored")]

use std::arch::x86_64::{
    _mm512_and_si512, _mm512_load_si512, _mm512_set1_epi8, _mm512_srli_epi16, _mm512_store_si512,
    _mm512_sub_epi8,
};
use std::cell::RefCell;

use super::tiles::QUADS;
use crate::layout::{Line, PairChunk};
use crate::prefetch::Prefetch;

/// Steps of 64 columns whose codes are unpacked together: 16 KiB for 32 rows, a part of the first cache.
pub(super) const STEPS: usize = 8;

/// Two panels of `STEPS` steps.
type Codes = [[Line; QUADS * STEPS]; 2];

thread_local! {
    pub(super) static CODES: RefCell<Codes> =
        const { RefCell::new([[const { Line([0; 64]) }; QUADS * STEPS]; 2]) };
}

/// The codes of some chunks, a byte each, into two panels `[4 · chunks]`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<const SIGNED: bool>(chunks: &[PairChunk], panels: [&mut [Line]; 2]) {
    // The next block is read when all tokens have met this one: no CPU guesses that.
    let prefetch = Prefetch::chosen();
    for chunk in chunks {
        prefetch.after(chunk);
    }
    let field = _mm512_set1_epi8(3);
    let one = _mm512_set1_epi8(SIGNED.into());
    let code = |bytes| {
        let code = _mm512_and_si512(bytes, field);
        if SIGNED { _mm512_sub_epi8(code, one) } else { code }
    };
    for (panel, codes) in panels.into_iter().enumerate() {
        for (chunk, lines) in chunks.iter().zip(codes.as_chunks_mut::<4>().0) {
            let [l0, l1, l2, l3] = lines.each_mut().map(|line| line.0.as_mut_ptr().cast());
            // SAFETY: half a chunk is 64 bytes, as a line is, and both are aligned to as many.
            unsafe {
                let bytes = _mm512_load_si512(chunk.0[64 * panel..][..64].as_ptr().cast());
                // What a shift brings in from the byte above is masked away.
                _mm512_store_si512(l0, code(bytes));
                _mm512_store_si512(l1, code(_mm512_srli_epi16::<2>(bytes)));
                _mm512_store_si512(l2, code(_mm512_srli_epi16::<4>(bytes)));
                _mm512_store_si512(l3, code(_mm512_srli_epi16::<6>(bytes)));
            }
        }
    }
}
