//! What this machine can do at most: how fast memory streams, how many 8-bit operations a core
//! makes. Speeds of kernels are stated as shares of these, measured in the same run.

use std::time::Instant;

use crate::Pages;
use crate::layout::{PairChunk, ROWS_PER_PAIR};
use crate::memory::PageBuffer;
use crate::prefetch::Prefetch;

/// Bytes a second that `threads` threads together read from memory, each in one linear stream;
/// the best of a few passes over `bytes` in all.
pub fn memory_read(bytes: usize, pages: Pages, threads: usize) -> f64 {
    let chunks = bytes / size_of::<PairChunk>() / threads;
    let ones = PairChunk([1; 4 * ROWS_PER_PAIR]);
    let parts: Vec<PageBuffer<PairChunk>> =
        (0..threads).map(|_| PageBuffer::on_pages(pages, ones, chunks)).collect();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(|| std::hint::black_box(sum(part)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (chunks * size_of::<PairChunk>() * threads) as f64 / best
}

/// Reads as the kernels do, ahead of what is needed: without that, less arrives.
fn sum(chunks: &[PairChunk]) -> u64 {
    // Sixteen sums, so that reading is what takes time.
    let (mut sums, prefetch) = ([0u64; 16], Prefetch::chosen());
    for chunk in chunks {
        prefetch.after(chunk);
        for (sum, word) in sums.iter_mut().zip(chunk.0.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// 8-bit operations a second of `threads` cores, two to a multiply-add: of AVX-512 VNNI, or of AVX2 where there
/// is nothing faster; `None` on other CPUs.
pub fn int8_operations(threads: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if let Some(peak) = peak_of_this_cpu() {
        let one = || (0..3).filter_map(|_| peak(1 << 22)).fold(0.0, f64::max);
        return Some(std::thread::scope(|scope| {
            let cores: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            cores.into_iter().map(|core| core.join().expect("nothing in it panics")).sum()
        }));
    }
    let _ = threads;
    None
}

/// What measures a core on registers alone.
#[cfg(target_arch = "x86_64")]
fn peak_of_this_cpu() -> Option<fn(usize) -> Option<f64>> {
    let has = |kernel| crate::Kernel::available().contains(&kernel);
    if has(crate::Kernel::Avx512Vnni) {
        return Some(crate::avx512::peak_operations);
    }
    (has(crate::Kernel::Avx2) && !has(crate::Kernel::AvxVnni))
        .then_some(crate::avx2::peak_operations)
}
